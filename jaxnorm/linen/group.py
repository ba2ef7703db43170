"""Group norm and instance norm as Flax linen modules."""

from __future__ import annotations

import flax.linen as nn

from jaxnorm._layers import group
from jaxnorm.linen._base import Module


class GroupNorm(group.GroupNorm, Module, kw_only=True):
    """Group normalization; see `jaxnorm.group_norm`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[1., 3., 10., 30.]])
      >>> norm = jnn.GroupNorm(num_groups=2, epsilon=0.0)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> norm.apply(variables, x).tolist()
      [[-1.0, 1.0, -1.0, 1.0]]
    """

    __call__ = nn.compact(group.GroupNorm.__call__)


class InstanceNorm(group.InstanceNorm, Module, kw_only=True):
    """Instance normalization; see `jaxnorm.instance_norm`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[[1., 10.], [3., 30.]]])
      >>> norm = jnn.InstanceNorm(epsilon=0.0)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> norm.apply(variables, x).tolist()
      [[[-1.0, -1.0], [1.0, 1.0]]]
    """

    __call__ = nn.compact(group.InstanceNorm.__call__)
