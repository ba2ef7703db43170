"""Layer norm and RMS norm: their options, and what these say of an input."""

from __future__ import annotations

from typing import Any

import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import Axes
from jaxnorm._layers.call import Call, Params, State
from jaxnorm._layers.layer import MappedNorm
from jaxnorm._layers.options import options
from jaxnorm.functional import feature


@options
class _FeatureNorm(MappedNorm):
    reduction_axes: Axes = -1
    """the axes pooled."""
    feature_axes: Axes = -1
    """the axes that gamma and beta vary along."""
    gamma_offset: float = 0.0
    """added to gamma; give `gamma_init=jax.nn.initializers.zeros` with 1.0."""

    def _features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.canonical_axes(self.feature_axes, shape, "feature_axes")

    def _formula(self) -> dict[str, Any]:
        """Returns what the formula has besides that of layer norm."""
        return {}

    def _normalize(self, x: jax.Array, params: Params, state: State, call: Call) -> jax.Array:
        return feature.normalize_features(
            x,
            params.get("gamma"),
            params.get("beta"),
            _axes.canonical_axes(self.reduction_axes, x.shape, "reduction_axes"),
            self.feature_axes,
            self.epsilon,
            call.mask,
            self._mapped(call.context),
            self.dtype,
            gamma_offset=float(self.gamma_offset),
            **self._formula(),
        )


@options
class LayerNorm(_FeatureNorm):
    """Layer normalization; see `jaxnorm.layer_norm`.

    The same in training and at test time: it keeps no statistics.

    Reference: Ba, Kiros & Hinton 2016, Layer Normalization, arXiv:1607.06450.
    """


@options
class RMSNorm(_FeatureNorm):
    """Root mean square normalization; see `jaxnorm.rms_norm`.

    Reference: Zhang & Sennrich 2019, Root Mean Square Layer Normalization, arXiv:1910.07467.
    """

    use_beta: bool = False
    gamma_offset: float = 0.0
    """added to gamma; 1.0 with `gamma_init=jax.nn.initializers.zeros` is Gemma's rule."""
    cast_before_gamma: bool = False
    """round to the input's dtype before gamma is applied, Llama's rule."""

    def _formula(self) -> dict[str, Any]:
        return {"center": False, "cast_before_gamma": self.cast_before_gamma}
