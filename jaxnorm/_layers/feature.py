"""Layer norm and RMS norm as layers: what their options say of an input."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._layers.layer import AffineLayer, Context, MappedOptions, Own
from jaxnorm.functional import feature


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FeatureLayer(AffineLayer, MappedOptions):
    epsilon: float
    reduction_axes: Axes
    feature_axes: Axes
    gamma_offset: float

    def features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.canonical_axes(self.feature_axes, shape, "feature_axes")

    def arguments(self, x: jax.Array, context: Context) -> dict[str, Any]:
        """Returns what the options say, as functions take it."""
        return {
            "axis": _axes.canonical_axes(self.reduction_axes, x.shape, "reduction_axes"),
            "feature_axes": self.features_of(x.shape),
            "epsilon": self.epsilon,
            "gamma_offset": self.gamma_offset,
            "dtype": self.dtype,
            **self.mapped(context),
        }


class LayerNormLayer(_FeatureLayer):
    """The options of `jaxnorm.linen.LayerNorm`."""

    def apply(self, x: jax.Array, own: Own, context: Context, mask: ArrayLike | None) -> jax.Array:
        """Normalizes `x`."""
        return feature.layer_norm(x, **own, mask=mask, **self.arguments(x, context))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RMSNormLayer(_FeatureLayer):
    """The options of `jaxnorm.linen.RMSNorm`."""

    cast_before_gamma: bool

    def apply(self, x: jax.Array, own: Own, context: Context, mask: ArrayLike | None) -> jax.Array:
        """Normalizes `x`."""
        options = self.arguments(x, context)
        cast = self.cast_before_gamma
        return feature.rms_norm(x, **own, mask=mask, cast_before_gamma=cast, **options)
