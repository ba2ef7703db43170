"""Group norm and instance norm as layers: what their options say of an input."""

from __future__ import annotations

import dataclasses

import jax

from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._layers.layer import ChannelLayer, Context, MappedOptions, Own, positions
from jaxnorm.functional import group


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstanceNormLayer(ChannelLayer, MappedOptions):
    """The options of `jaxnorm.linen.InstanceNorm`."""

    reduction_axes: Axes | None

    def apply(self, x: jax.Array, own: Own, context: Context, mask: ArrayLike | None) -> jax.Array:
        """Normalizes `x`."""
        return group.instance_norm(
            x,
            **own,
            axis=positions(self.reduction_axes, x.shape),
            channel_axis=self.channel(x.shape),
            epsilon=self.epsilon,
            mask=mask,
            dtype=self.dtype,
            **self.mapped(context),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupNormLayer(ChannelLayer, MappedOptions):
    """The options of `jaxnorm.linen.GroupNorm`."""

    num_groups: int | None
    group_size: int | None
    reduction_axes: Axes | None

    def apply(self, x: jax.Array, own: Own, context: Context, mask: ArrayLike | None) -> jax.Array:
        """Normalizes `x`."""
        return group.group_norm(
            x,
            **own,
            num_groups=self.num_groups,
            group_size=self.group_size,
            axis=positions(self.reduction_axes, x.shape),
            channel_axis=self.channel(x.shape),
            epsilon=self.epsilon,
            mask=mask,
            dtype=self.dtype,
            **self.mapped(context),
        )
