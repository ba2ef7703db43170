"""Group norm and instance norm as Flax NNX modules."""

from __future__ import annotations

import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm.functional import group
from jaxnorm.nnx._base import MappedModule, module


@module
class GroupNorm(MappedModule):
    """Group normalization; see `jaxnorm.group_norm`.

    Attributes:
      num_features: number of channels.
      num_groups: into how many groups the channels are divided; 32 if `group_size` is not given.
      group_size: channels per group, instead of `num_groups`.
      channel_axis: the axis of the channels.
      reduction_axes: the axes pooled beside the group's channels; default: all but axis 0.
      axis_name: mapped axes to pool over as well, for positions divided over devices.
      axis_index_groups: groups of indices of `axis_name` that pool together.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x = jnp.array([[1., 3., 10., 30.]])
      >>> norm = jnx.GroupNorm(4, num_groups=2, epsilon=0.0)
      >>> norm(x).tolist()
      [[-1.0, 1.0, -1.0, 1.0]]

    Reference: Wu & He 2018, Group Normalization, arXiv:1803.08494.
    """

    num_groups: int | None = None
    group_size: int | None = None
    channel_axis: int = -1
    reduction_axes: Axes | None = None

    def __call__(
        self,
        x: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x`; a gamma or beta given here replaces the module's own."""
        x = _axes.check_input(x)
        channel = _axes.canonical_axis(self.channel_axis, x.shape, "channel_axis")
        axes = None if self.reduction_axes is None else self.field_axes("reduction_axes", x)
        gamma, beta = self.affine(x, channel, gamma, beta)
        return group.group_norm(
            x,
            gamma,
            beta,
            num_groups=self.num_groups,
            group_size=self.group_size,
            channel_axis=channel,
            axis=axes,
            epsilon=self.epsilon,
            mask=mask,
            **self.mapped(),
            dtype=self.dtype,
        )


@module
class InstanceNorm(MappedModule):
    """Instance normalization; see `jaxnorm.instance_norm`.

    Attributes:
      num_features: number of channels.
      channel_axis: the axis of the channels.
      reduction_axes: the axes pooled; default: all but axis 0 and the channels.
      axis_name: mapped axes to pool over as well, for positions divided over devices.
      axis_index_groups: groups of indices of `axis_name` that pool together.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x = jnp.array([[[1., 10.], [3., 30.]]])
      >>> norm = jnx.InstanceNorm(2, epsilon=0.0)
      >>> norm(x).tolist()
      [[[-1.0, -1.0], [1.0, 1.0]]]

    Reference: Ulyanov, Vedaldi & Lempitsky 2016, Instance Normalization, arXiv:1607.08022.
    """

    channel_axis: int = -1
    reduction_axes: Axes | None = None

    def __call__(
        self,
        x: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x`; a gamma or beta given here replaces the module's own."""
        x = _axes.check_input(x)
        channel = _axes.canonical_axis(self.channel_axis, x.shape, "channel_axis")
        axes = None if self.reduction_axes is None else self.field_axes("reduction_axes", x)
        gamma, beta = self.affine(x, channel, gamma, beta)
        return group.instance_norm(
            x,
            gamma,
            beta,
            axis=axes,
            channel_axis=channel,
            epsilon=self.epsilon,
            mask=mask,
            **self.mapped(),
            dtype=self.dtype,
        )
