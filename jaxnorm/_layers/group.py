"""Group norm and instance norm as layers: what their options say of an input."""

from __future__ import annotations

import dataclasses
import functools

import jax

from jaxnorm._core.axes import ArrayLike
from jaxnorm._layers.layer import Context, MappedOptions, Own, PositionLayer
from jaxnorm.functional import group


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstanceNormLayer(PositionLayer, MappedOptions):
    """The options of `jaxnorm.linen.InstanceNorm`."""

    def apply(self, x: jax.Array, own: Own, context: Context, mask: ArrayLike | None) -> jax.Array:
        """Normalizes `x`."""
        options = {**self.arguments(x), **self.mapped(context)}
        return group.normalize_positions(_report(context), x, *_affine(own), mask, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupNormLayer(PositionLayer, MappedOptions):
    """The options of `jaxnorm.linen.GroupNorm`."""

    num_groups: int | None
    group_size: int | None

    def apply(self, x: jax.Array, own: Own, context: Context, mask: ArrayLike | None) -> jax.Array:
        """Normalizes `x`."""
        groups = {"num_groups": self.num_groups, "group_size": self.group_size}
        options = {**self.arguments(x), **self.mapped(context), **groups}
        return group.normalize_groups(_report(context), x, *_affine(own), mask, **options)


def _report(context: Context) -> group.Report:
    """Returns what to do about groups of one value: nothing where variables are only made."""
    return group.ignore if context.initializing else functools.partial(group.refuse, context.label)


def _affine(own: Own) -> tuple[ArrayLike | None, ArrayLike | None]:
    return own.get("gamma"), own.get("beta")
