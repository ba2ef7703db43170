"""What takes a norm's place, and norms joined to an activation, as Flax linen modules."""

from __future__ import annotations

import flax.linen as nn

from jaxnorm._layers import activation
from jaxnorm.linen._base import Module


class DynamicTanh(activation.DynamicTanh, Module, kw_only=True):
    """A learned squashing in place of layer norm; see `jaxnorm.dynamic_tanh`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[0., 100., -100.]])
      >>> norm = jnn.DynamicTanh()
      >>> norm.apply(norm.init(jax.random.key(0), x), x).tolist()
      [[0.0, 1.0, -1.0]]
    """

    __call__ = nn.compact(activation.DynamicTanh.__call__)


class DynamicErf(activation.DynamicErf, Module, kw_only=True):
    """A learned squashing by the error function; see `jaxnorm.dynamic_erf`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[0., 100., -100.]])
      >>> norm = jnn.DynamicErf()
      >>> norm.apply(norm.init(jax.random.key(0), x), x).round(3).tolist()
      [[0.0, 1.0, -1.0]]
    """

    __call__ = nn.compact(activation.DynamicErf.__call__)


class LayerScale(activation.LayerScale, Module, kw_only=True):
    """Scales the branches of a residual network by factors that start near zero: x * gamma.

    Example:
      >>> import jax, jax.numpy as jnp, flax.linen as nn, jaxnorm.linen as jnn
      >>> x = jnp.array([[2., 4.]])
      >>> scale = jnn.LayerScale(gamma_init=nn.initializers.constant(0.5))
      >>> scale.apply(scale.init(jax.random.key(0), x), x).tolist()
      [[1.0, 2.0]]
    """

    __call__ = nn.compact(activation.LayerScale.__call__)


class PolyNorm(activation.PolyNorm, Module, kw_only=True):
    """A polynomial of normalized powers, in an activation's place; see `jaxnorm.poly_norm`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[1., -1., 1., -1.]])
      >>> norm = jnn.PolyNorm(epsilon=0.0, use_bias=False)
      >>> norm.apply(norm.init(jax.random.key(0), x), x).round(3).tolist()
      [[1.0, -0.3330000042915344, 1.0, -0.3330000042915344]]
    """

    __call__ = nn.compact(activation.PolyNorm.__call__)


class GatedRMSNorm(activation.GatedRMSNorm, Module, kw_only=True):
    """RMS norm with a gate; see `jaxnorm.gated_rms_norm`. Called with the input and the gate.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x, gate = jnp.array([[3., -3.]]), jnp.array([[1., 1.]])
      >>> norm = jnn.GatedRMSNorm(epsilon=0.0)
      >>> norm.apply(norm.init(jax.random.key(0), x, gate), x, gate).round(3).tolist()
      [[1.0, -1.0]]
    """

    __call__ = nn.compact(activation.GatedRMSNorm.__call__)


class EvoNormS0(activation.EvoNormS0, Module, kw_only=True):
    """Group norm joined to an activation; see `jaxnorm.evo_norm_s0`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[-100., 100.]])
      >>> norm = jnn.EvoNormS0(num_groups=1)
      >>> norm.apply(norm.init(jax.random.key(0), x), x).tolist()
      [[0.0, 1.0]]
    """

    __call__ = nn.compact(activation.EvoNormS0.__call__)
