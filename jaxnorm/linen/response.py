"""Norms by the size of responses as Flax linen modules."""

from __future__ import annotations

import flax.linen as nn

from jaxnorm._layers import response
from jaxnorm.linen._base import Module


class ScaleNorm(response.ScaleNorm, Module, kw_only=True):
    """Vectors of a learned length, one for all; see `jaxnorm.lp_norm`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[3., 0., 0., 4.]])
      >>> norm = jnn.ScaleNorm()
      >>> variables = norm.init(jax.random.key(0), x)
      >>> float(variables["params"]["gamma"])
      2.0
      >>> norm.apply(variables, x).round(3).tolist()
      [[1.2000000476837158, 0.0, 0.0, 1.600000023841858]]
    """

    __call__ = nn.compact(response.ScaleNorm.__call__)


class LocalResponseNorm(response.LocalResponseNorm, Module, kw_only=True):
    """Local response normalization over channels; see `jaxnorm.local_response_norm`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> norm = jnn.LocalResponseNorm(size=3, alpha=3.0, beta=1.0, k=1.0)
      >>> norm.apply({}, jnp.array([1., 0., 1.])).tolist()
      [0.5, 0.0, 0.5]
    """

    __call__ = nn.compact(response.LocalResponseNorm.__call__)


class DivisiveNorm(response.DivisiveNorm, Module, kw_only=True):
    """Divisive normalization by the elements nearby; see `jaxnorm.divisive_norm`.

    Its parameters sigma, gamma and beta have one value for each place on the last axis.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[[1.], [3.]]])
      >>> norm = jnn.DivisiveNorm(window=3, reduction_axes=1)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> norm.apply(variables, x).round(3).tolist()
      [[[-0.7070000171661377], [0.7070000171661377]]]
    """

    __call__ = nn.compact(response.DivisiveNorm.__call__)


class FilterResponseNorm(response.FilterResponseNorm, Module, kw_only=True):
    """Filter response normalization; see `jaxnorm.filter_response_norm`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[[2.], [-2.]]])
      >>> norm = jnn.FilterResponseNorm(epsilon=0.0)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> norm.apply(variables, x).tolist()
      [[[1.0], [0.0]]]
    """

    __call__ = nn.compact(response.FilterResponseNorm.__call__)


class GlobalResponseNorm(response.GlobalResponseNorm, Module, kw_only=True):
    """Global response normalization; see `jaxnorm.global_response_norm`. Starts as the identity.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[[3., 0.], [4., 15.]]])
      >>> norm = jnn.GlobalResponseNorm()
      >>> variables = norm.init(jax.random.key(0), x)
      >>> norm.apply(variables, x).tolist()
      [[[3.0, 0.0], [4.0, 15.0]]]
    """

    __call__ = nn.compact(response.GlobalResponseNorm.__call__)
