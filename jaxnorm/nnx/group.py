"""Group norm and instance norm as Flax NNX modules."""

from __future__ import annotations

from jaxnorm._layers import group
from jaxnorm.nnx._base import Affine, module


@module
class GroupNorm(group.GroupNorm, Affine):
    """Group normalization; see `jaxnorm.group_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x = jnp.array([[1., 3., 10., 30.]])
      >>> norm = jnx.GroupNorm(4, num_groups=2, epsilon=0.0)
      >>> norm(x).tolist()
      [[-1.0, 1.0, -1.0, 1.0]]
    """


@module
class InstanceNorm(group.InstanceNorm, Affine):
    """Instance normalization; see `jaxnorm.instance_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x = jnp.array([[[1., 10.], [3., 30.]]])
      >>> norm = jnx.InstanceNorm(2, epsilon=0.0)
      >>> norm(x).tolist()
      [[[-1.0, -1.0], [1.0, 1.0]]]
    """
