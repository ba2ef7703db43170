"""Layer norm and RMS norm: their options, and what these say of an input."""

from __future__ import annotations

from typing import Any

import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import Axes
from jaxnorm._layers.call import Call, Context, Params, State
from jaxnorm._layers.layer import MappedNorm, options
from jaxnorm.functional import feature


@options
class _FeatureNorm(MappedNorm):
    reduction_axes: Axes = -1
    """the axes pooled."""
    feature_axes: Axes = -1
    """the axes that gamma and beta vary along."""

    def _features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.canonical_axes(self.feature_axes, shape, "feature_axes")

    def _arguments(self, x: jax.Array, context: Context) -> dict[str, Any]:
        """Returns what the options say, as functions take it."""
        return {
            "axis": _axes.canonical_axes(self.reduction_axes, x.shape, "reduction_axes"),
            "feature_axes": self._features_of(x.shape),
            "epsilon": self.epsilon,
            "dtype": self.dtype,
            **self._mapped(context),
        }


@options
class LayerNorm(_FeatureNorm):
    """Layer normalization; see `jaxnorm.layer_norm`.

    The same in training and at test time: it keeps no statistics.

    Reference: Ba, Kiros & Hinton 2016, Layer Normalization, arXiv:1607.06450.
    """

    gamma_offset: float = 0.0
    """added to gamma; give `gamma_init=jax.nn.initializers.zeros` with 1.0."""

    def _normalize(self, x: jax.Array, params: Params, state: State, call: Call) -> jax.Array:
        arguments = self._arguments(x, call.context)
        offset = self.gamma_offset
        return feature.layer_norm(x, **params, mask=call.mask, gamma_offset=offset, **arguments)


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

    def _normalize(self, x: jax.Array, params: Params, state: State, call: Call) -> jax.Array:
        return feature.rms_norm(
            x,
            **params,
            mask=call.mask,
            gamma_offset=self.gamma_offset,
            cast_before_gamma=self.cast_before_gamma,
            **self._arguments(x, call.context),
        )
