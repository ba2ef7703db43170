"""Layer norm and RMS norm as Flax NNX modules."""

from __future__ import annotations

from jaxnorm._layers import feature
from jaxnorm.nnx._base import Affine, module


@module
class LayerNorm(feature.LayerNorm, Affine):
    """Layer normalization; see `jaxnorm.layer_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x = jnp.array([[1., 3.], [2., 6.]])
      >>> norm = jnx.LayerNorm(2, epsilon=0.0)
      >>> norm(x).tolist()
      [[-1.0, 1.0], [-1.0, 1.0]]
    """


@module
class RMSNorm(feature.RMSNorm, Affine):
    """Root mean square normalization; see `jaxnorm.rms_norm`. Has no beta by default.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x = jnp.array([[2., 2.], [0., 0.]])
      >>> norm = jnx.RMSNorm(2, epsilon=0.0)
      >>> norm(x).tolist()
      [[1.0, 1.0], [0.0, 0.0]]
    """
