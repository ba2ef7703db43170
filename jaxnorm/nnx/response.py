"""Norms by the size of responses as Flax NNX modules."""

from __future__ import annotations

from jaxnorm._layers import response
from jaxnorm.nnx._base import Affine, Module, Sized, module


@module
class ScaleNorm(response.ScaleNorm, Sized):
    """Vectors of a learned length, one for all; see `jaxnorm.lp_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.ScaleNorm(4)
      >>> float(norm.gamma[...]), norm(jnp.array([[3., 0., 0., 4.]])).round(3).tolist()
      (2.0, [[1.2000000476837158, 0.0, 0.0, 1.600000023841858]])
    """


@module
class LocalResponseNorm(response.LocalResponseNorm, Module):
    """Local response normalization over channels; see `jaxnorm.local_response_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.LocalResponseNorm(size=3, alpha=3.0, beta=1.0, k=1.0)
      >>> norm(jnp.array([1., 0., 1.])).tolist()
      [0.5, 0.0, 0.5]
    """


@module
class DivisiveNorm(response.DivisiveNorm, Affine):
    """Divisive normalization by the elements nearby; see `jaxnorm.divisive_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.DivisiveNorm(1, window=3, reduction_axes=1)
      >>> norm(jnp.array([[[1.], [3.]]])).round(3).tolist()
      [[[-0.7070000171661377], [0.7070000171661377]]]
    """


@module
class FilterResponseNorm(response.FilterResponseNorm, Affine):
    """Filter response normalization; see `jaxnorm.filter_response_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.FilterResponseNorm(1, epsilon=0.0)
      >>> norm(jnp.array([[[2.], [-2.]]])).tolist()
      [[[1.0], [0.0]]]
    """


@module
class GlobalResponseNorm(response.GlobalResponseNorm, Affine):
    """Global response normalization; see `jaxnorm.global_response_norm`. Starts as the identity.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.GlobalResponseNorm(2)
      >>> norm(jnp.array([[[3., 0.], [4., 15.]]])).tolist()
      [[[3.0, 0.0], [4.0, 15.0]]]
    """
