"""Group norm and instance norm as Flax NNX modules."""

from __future__ import annotations

from jaxnorm._core.axes import Axes
from jaxnorm._layers.group import GroupNormLayer, InstanceNormLayer
from jaxnorm.nnx._base import MappedNorm, module


@module
class GroupNorm(MappedNorm):
    """Group normalization; see `jaxnorm.group_norm`.

    The options that are not listed are those of `jaxnorm.linen.GroupNorm`.

    Attributes:
      num_features: number of channels.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x = jnp.array([[1., 3., 10., 30.]])
      >>> norm = jnx.GroupNorm(4, num_groups=2, epsilon=0.0)
      >>> norm(x).tolist()
      [[-1.0, 1.0, -1.0, 1.0]]

    Reference: Wu & He 2018, Group Normalization, arXiv:1803.08494.
    """

    technique = GroupNormLayer

    num_groups: int | None = None
    group_size: int | None = None
    channel_axis: int = -1
    reduction_axes: Axes | None = None


@module
class InstanceNorm(MappedNorm):
    """Instance normalization; see `jaxnorm.instance_norm`.

    The options that are not listed are those of `jaxnorm.linen.InstanceNorm`.

    Attributes:
      num_features: number of channels.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x = jnp.array([[[1., 10.], [3., 30.]]])
      >>> norm = jnx.InstanceNorm(2, epsilon=0.0)
      >>> norm(x).tolist()
      [[[-1.0, -1.0], [1.0, 1.0]]]

    Reference: Ulyanov, Vedaldi & Lempitsky 2016, Instance Normalization, arXiv:1607.08022.
    """

    technique = InstanceNormLayer

    channel_axis: int = -1
    reduction_axes: Axes | None = None
