"""Norms whose scale and shift come from a condition, as Flax NNX modules."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx

from jaxnorm._layers import conditional
from jaxnorm.nnx._base import Affine, Module, module


def _adopt(norm: Any, rngs: nnx.Rngs | None, label: str, *names: str) -> tuple[int, nnx.Rngs]:
    """Takes the parameters of those names from the norm; returns its features, and the keys."""
    if not isinstance(norm, Affine):
        raise TypeError(
            f"{label} needs a module of jaxnorm.nnx that takes gamma and beta in the call, such as "
            f"jaxnorm.nnx.LayerNorm(4), got {norm!r}."
        )
    if rngs is None:
        raise ValueError(f"{label} has layers of its own and needs rngs=nnx.Rngs(0).")
    norm._leave_to_calls(*names)
    return norm._sizes[-1], rngs


@module
class AdaptiveNorm(conditional.AdaptiveNorm, Module):
    """Scale and shift from a condition: norm(x) * (1 + scale) + shift.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> from flax import nnx
      >>> x, condition = jnp.array([[[1., 3.]]]), jnp.array([[5., 6., 7.]])
      >>> norm = jnx.AdaptiveNorm(jnx.LayerNorm(2, epsilon=0.0), 3, gate=True, rngs=nnx.Rngs(0))
      >>> y, gate = norm(x, condition)
      >>> y.tolist(), gate.tolist(), norm.condition.kernel.shape
      ([[[-1.0, 1.0]]], [[[0.0, 0.0]]], (3, 6))
    """

    in_features: int = dataclasses.field(kw_only=False)
    """size of the condition."""

    def _make(self, *, rngs: nnx.Rngs | None, **given: Any) -> None:
        names = ("gamma", "beta") if self.use_shift else ("gamma",)
        features, keys = _adopt(self.norm, rngs, self._label, *names)
        self.condition = nnx.Linear(
            self.in_features,
            self._outputs(features),
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            param_dtype=self.param_dtype,
            rngs=keys,
        )

    def _project(self, condition: jax.Array, size: int) -> jax.Array:
        return self.condition(condition)


@module
class SPADE(conditional.SPADE, Module):
    """Scale and shift for each position from a map: norm(x) * (1 + scale) + shift.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> from flax import nnx
      >>> x, segmentation = jnp.ones((1, 4, 4, 2)), jnp.ones((1, 8, 8, 3))
      >>> norm = jnx.SPADE(jnx.InstanceNorm(2), 3, rngs=nnx.Rngs(0))
      >>> norm(x, segmentation).shape, norm.hidden_map.kernel.shape
      ((1, 4, 4, 2), (3, 3, 3, 128))
    """

    in_features: int = dataclasses.field(kw_only=False)
    """channels of the map."""
    num_position_axes: int = 2
    """how many axes there are between the batch's and the channels'."""

    def _make(self, *, rngs: nnx.Rngs | None, **given: Any) -> None:
        features, keys = _adopt(self.norm, rngs, self._label, "gamma", "beta")
        window = self._window(self.num_position_axes)

        def convolution(inputs: int, outputs: int) -> nnx.Conv:
            return nnx.Conv(inputs, outputs, window, param_dtype=self.param_dtype, rngs=keys)

        self.hidden_map = convolution(self.in_features, self.hidden)
        self.scale = convolution(self.hidden, features)
        self.shift = convolution(self.hidden, features)

    def _convolve(self, name: str, value: jax.Array, channels: int) -> jax.Array:
        return getattr(self, name)(value)
