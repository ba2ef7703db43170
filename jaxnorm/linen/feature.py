"""Layer norm and RMS norm as Flax linen modules."""

from __future__ import annotations

import flax.linen as nn

from jaxnorm._layers import feature
from jaxnorm.linen._base import Module


class LayerNorm(feature.LayerNorm, Module, kw_only=True):
    """Layer normalization; see `jaxnorm.layer_norm`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[1., 3.], [2., 6.]])
      >>> norm = jnn.LayerNorm(epsilon=0.0)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> norm.apply(variables, x).tolist()
      [[-1.0, 1.0], [-1.0, 1.0]]
    """

    __call__ = nn.compact(feature.LayerNorm.__call__)


class RMSNorm(feature.RMSNorm, Module, kw_only=True):
    """Root mean square normalization; see `jaxnorm.rms_norm`. Has no beta by default.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[2., 2.], [0., 0.]])
      >>> norm = jnn.RMSNorm(epsilon=0.0)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> norm.apply(variables, x).tolist()
      [[1.0, 1.0], [0.0, 0.0]]
    """

    __call__ = nn.compact(feature.RMSNorm.__call__)
