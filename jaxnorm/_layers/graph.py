"""Graph norm as a layer: its parameters, and what its options say."""

from __future__ import annotations

import dataclasses

import jax

from jaxnorm._core.axes import ArrayLike
from jaxnorm._layers.layer import AffineLayer, Own, Parameter, Parameters
from jaxnorm.functional import graph


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphNormLayer(AffineLayer):
    """The options of `jaxnorm.linen.GraphNorm`."""

    num_segments: int
    epsilon: float
    use_alpha: bool

    def features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(range(1, len(shape)))

    def parameters(self, sizes: tuple[int, ...]) -> Parameters:
        alpha = Parameter(sizes, "alpha_init") if self.use_alpha else None
        return {**super().parameters(sizes), "alpha": alpha}

    def apply(
        self, x: jax.Array, segment_ids: ArrayLike, own: Own, mask: ArrayLike | None
    ) -> jax.Array:
        """Normalizes `x`."""
        return graph.graph_norm(
            x,
            segment_ids,
            **own,
            num_segments=self.num_segments,
            epsilon=self.epsilon,
            mask=mask,
            dtype=self.dtype,
        )
