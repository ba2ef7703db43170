"""Layer norm and RMS norm as Flax NNX modules."""

from __future__ import annotations

from jaxnorm._layers import feature
from jaxnorm.nnx._base import Affine, module


@module
class LayerNorm(feature.LayerNorm, Affine):
    """Layer normalization; see `jaxnorm.layer_norm`.

    The same in training and at test time: it keeps no statistics.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x = jnp.array([[1., 3.], [2., 6.]])
      >>> norm = jnx.LayerNorm(2, epsilon=0.0)
      >>> norm(x).tolist()
      [[-1.0, 1.0], [-1.0, 1.0]]

    Reference: Ba, Kiros & Hinton 2016, Layer Normalization, arXiv:1607.06450.
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

    Reference: Zhang & Sennrich 2019, Root Mean Square Layer Normalization, arXiv:1910.07467.
    """
