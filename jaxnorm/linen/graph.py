"""Norms of graphs as Flax linen modules."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike
from jaxnorm._layers.graph import GraphNormLayer
from jaxnorm.linen._base import AffineModule


class GraphNorm(AffineModule, kw_only=True):
    """Normalization over the nodes of each graph; see `jaxnorm.graph_norm`.

    Attributes:
      epsilon: added to the variances.
      num_segments: how many graphs there can be.
      use_alpha: whether the share of the mean that is subtracted is a parameter alpha, or 1.
      alpha_init: its initializer.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x, graphs = jnp.array([[1.], [10.], [3.], [30.]]), jnp.array([0, 1, 0, 1])
      >>> norm = jnn.GraphNorm(num_segments=2, epsilon=0.0)
      >>> norm.apply(norm.init(jax.random.key(0), x, graphs), x, graphs).tolist()
      [[-1.0], [-1.0], [1.0], [1.0]]

    Reference: Cai, Luo, Xu, He, Liu & Wang 2020, GraphNorm, arXiv:2009.03294.
    """

    technique = GraphNormLayer

    num_segments: int
    epsilon: float = 1e-5
    use_alpha: bool = True
    alpha_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
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
        return self.options.apply(x, segment_ids, self.own(x, gamma=gamma, beta=beta), mask)
