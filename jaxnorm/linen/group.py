"""Group norm and instance norm as Flax linen modules."""

from __future__ import annotations

from jaxnorm._core.axes import Axes
from jaxnorm._layers.group import GroupNormLayer, InstanceNormLayer
from jaxnorm.linen._base import MappedNorm


class GroupNorm(MappedNorm, kw_only=True):
    """Group normalization; see `jaxnorm.group_norm`.

    Attributes:
      num_groups: into how many groups the channels are divided; 32 if `group_size` is not given.
      group_size: channels per group, instead of `num_groups`.
      channel_axis: the axis of the channels.
      reduction_axes: the axes pooled beside the group's channels; default: all but axis 0.
      axis_name: mapped axes to pool over as well, for positions divided over devices.
      axis_index_groups: groups of indices of `axis_name` that pool together.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[1., 3., 10., 30.]])
      >>> norm = jnn.GroupNorm(num_groups=2, epsilon=0.0)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> norm.apply(variables, x).tolist()
      [[-1.0, 1.0, -1.0, 1.0]]

    Reference: Wu & He 2018, Group Normalization, arXiv:1803.08494.
    """

    technique = GroupNormLayer

    num_groups: int | None = None
    group_size: int | None = None
    channel_axis: int = -1
    reduction_axes: Axes | None = None


class InstanceNorm(MappedNorm, kw_only=True):
    """Instance normalization; see `jaxnorm.instance_norm`.

    Attributes:
      channel_axis: the axis of the channels.
      reduction_axes: the axes pooled; default: all but axis 0 and the channels.
      axis_name: mapped axes to pool over as well, for positions divided over devices.
      axis_index_groups: groups of indices of `axis_name` that pool together.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[[1., 10.], [3., 30.]]])
      >>> norm = jnn.InstanceNorm(epsilon=0.0)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> norm.apply(variables, x).tolist()
      [[[-1.0, -1.0], [1.0, 1.0]]]

    Reference: Ulyanov, Vedaldi & Lempitsky 2016, Instance Normalization, arXiv:1607.08022.
    """

    technique = InstanceNormLayer

    channel_axis: int = -1
    reduction_axes: Axes | None = None
