"""Norms of graphs as Flax NNX modules."""

from __future__ import annotations

import dataclasses
from dataclasses import InitVar

import jax
from flax import nnx

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike
from jaxnorm._layers.graph import GraphNormLayer
from jaxnorm.nnx._base import AffineModule, Initializer, module


@module
class GraphNorm(AffineModule):
    """Normalization over the nodes of each graph; see `jaxnorm.graph_norm`.

    The options that are not listed are those of `jaxnorm.linen.GraphNorm`.

    Attributes:
      num_features: size of the features of a node; sizes where they have several axes.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x, graphs = jnp.array([[1.], [10.], [3.], [30.]]), jnp.array([0, 1, 0, 1])
      >>> jnx.GraphNorm(1, num_segments=2, epsilon=0.0)(x, graphs).tolist()
      [[-1.0], [-1.0], [1.0], [1.0]]

    Reference: Cai, Luo, Xu, He, Liu & Wang 2020, GraphNorm, arXiv:2009.03294.
    """

    technique = GraphNormLayer

    num_segments: int = dataclasses.field()
    epsilon: float = 1e-5
    use_alpha: bool = True
    alpha_init: InitVar[Initializer] = nnx.initializers.ones

    def __call__(
        self,
        x: ArrayLike,
        segment_ids: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x`; a gamma or beta given here replaces the module's own."""
        x = _axes.check_input(x)
        return self.options.apply(x, segment_ids, self._own(x, gamma=gamma, beta=beta), mask)
