"""Graph norm: its options and parameters."""

from __future__ import annotations

import dataclasses

import jax
from jax.nn import initializers

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike
from jaxnorm._layers.layer import AffineLayer, Initializer, Parameters
from jaxnorm._layers.options import options
from jaxnorm.functional import graph


@options
class GraphNorm(AffineLayer):
    """Normalization over the nodes of each graph; see `jaxnorm.graph_norm`.

    Reference: Cai, Luo, Xu, He, Liu & Wang 2020, GraphNorm, arXiv:2009.03294.
    """

    num_segments: int = dataclasses.field()
    """how many graphs there can be."""
    epsilon: float = 1e-5
    """added to the variances."""
    use_alpha: bool = True
    """whether the share of the mean that is subtracted is a parameter alpha, or 1."""
    alpha_init: Initializer = initializers.ones
    """its initializer."""

    def _features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(range(1, len(shape)))

    def _parameters(self, sizes: tuple[int, ...]) -> Parameters:
        alpha = self._parameter(sizes, self.alpha_init, self.use_alpha)
        return {**super()._parameters(sizes), "alpha": alpha}

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
        return graph.graph_norm(
            x,
            segment_ids,
            **self._params(x, gamma=gamma, beta=beta),
            num_segments=self.num_segments,
            epsilon=self.epsilon,
            mask=mask,
            dtype=self.dtype,
        )
