"""Norms whose scale and shift come from a condition, as Flax linen modules."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxnorm._layers import conditional
from jaxnorm.linen._base import Module


class AdaptiveNorm(conditional.AdaptiveNorm, Module, kw_only=True):
    """Scale and shift from a condition: norm(x) * (1 + scale) + shift.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x, condition = jnp.array([[[1., 3.]]]), jnp.array([[5., 6., 7.]])
      >>> norm = jnn.AdaptiveNorm(jnn.LayerNorm(epsilon=0.0), gate=True)
      >>> variables = norm.init(jax.random.key(0), x, condition)
      >>> y, gate = norm.apply(variables, x, condition)
      >>> y.tolist(), gate.tolist(), variables["params"]["condition"]["kernel"].shape
      ([[[-1.0, 1.0]]], [[[0.0, 0.0]]], (3, 6))
    """

    __call__ = nn.compact(conditional.AdaptiveNorm.__call__)

    @nn.nowrap
    def _project(self, condition: jax.Array, size: int) -> jax.Array:
        dense = nn.Dense(
            size,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            name="condition",
        )
        return dense(condition)


class SPADE(conditional.SPADE, Module, kw_only=True):
    """Scale and shift for each position from a map: norm(x) * (1 + scale) + shift.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x, segmentation = jnp.ones((1, 4, 4, 2)), jnp.ones((1, 8, 8, 3))
      >>> norm = jnn.SPADE(jnn.InstanceNorm())
      >>> variables = norm.init(jax.random.key(0), x, segmentation)
      >>> norm.apply(variables, x, segmentation).shape, sorted(variables["params"])
      ((1, 4, 4, 2), ['hidden_map', 'scale', 'shift'])
    """

    __call__ = nn.compact(conditional.SPADE.__call__)

    @nn.nowrap
    def _convolve(self, name: str, value: jax.Array, channels: int) -> jax.Array:
        window = self._window(value.ndim - 2)
        return nn.Conv(channels, window, param_dtype=self.param_dtype, name=name)(value)
