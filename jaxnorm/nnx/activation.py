"""What takes a norm's place, and norms joined to an activation, as Flax NNX modules."""

from __future__ import annotations

from jaxnorm._layers import activation
from jaxnorm.nnx._base import Affine, Module, Sized, module


@module
class DynamicTanh(activation.DynamicTanh, Affine):
    """A learned squashing in place of layer norm; see `jaxnorm.dynamic_tanh`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> jnx.DynamicTanh(3)(jnp.array([[0., 100., -100.]])).tolist()
      [[0.0, 1.0, -1.0]]
    """


@module
class DynamicErf(activation.DynamicErf, Affine):
    """A learned squashing by the error function; see `jaxnorm.dynamic_erf`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> jnx.DynamicErf(3)(jnp.array([[0., 100., -100.]])).round(3).tolist()
      [[0.0, 1.0, -1.0]]
    """


@module
class LayerScale(activation.LayerScale, Sized):
    """Scales the branches of a residual network by factors that start near zero: x * gamma.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> from flax import nnx
      >>> scale = jnx.LayerScale(2, gamma_init=nnx.initializers.constant(0.5))
      >>> scale(jnp.array([[2., 4.]])).tolist()
      [[1.0, 2.0]]
    """


@module
class PolyNorm(activation.PolyNorm, Module):
    """A polynomial of normalized powers, in an activation's place; see `jaxnorm.poly_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.PolyNorm(epsilon=0.0, use_bias=False)
      >>> norm(jnp.array([[1., -1., 1., -1.]])).round(3).tolist()
      [[1.0, -0.3330000042915344, 1.0, -0.3330000042915344]]
    """


@module
class GatedRMSNorm(activation.GatedRMSNorm, Sized):
    """RMS norm with a gate; see `jaxnorm.gated_rms_norm`. Called with the input and the gate.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x, gate = jnp.array([[3., -3.]]), jnp.array([[1., 1.]])
      >>> jnx.GatedRMSNorm(2, epsilon=0.0)(x, gate).round(3).tolist()
      [[1.0, -1.0]]
    """


@module
class EvoNormS0(activation.EvoNormS0, Affine):
    """Group norm joined to an activation; see `jaxnorm.evo_norm_s0`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> jnx.EvoNormS0(2, num_groups=1)(jnp.array([[-100., 100.]])).tolist()
      [[0.0, 1.0]]
    """
