"""Group norm and instance norm: their options, and what these say of an input."""

from __future__ import annotations

import functools
from typing import Any

import jax

from jaxnorm._layers.call import Call, Context, Params, State
from jaxnorm._layers.layer import MappedNorm, PositionNorm
from jaxnorm._layers.options import options
from jaxnorm.functional import group


@options
class _Positions(PositionNorm, MappedNorm):
    def _pooled(self, x: jax.Array, context: Context) -> dict[str, Any]:
        """Returns what the options say, as functions take it."""
        name, groups = self._mapped(context)
        return {**self._arguments(x), "axis_name": name, "axis_index_groups": groups}


@options
class GroupNorm(_Positions):
    """Group normalization; see `jaxnorm.group_norm`.

    Reference: Wu & He 2018, Group Normalization, arXiv:1803.08494.
    """

    num_groups: int | None = None
    """into how many groups the channels are divided; 32 if `group_size` is not given."""
    group_size: int | None = None
    """channels per group, instead of `num_groups`."""

    def _normalize(self, x: jax.Array, params: Params, state: State, call: Call) -> jax.Array:
        groups = {"num_groups": self.num_groups, "group_size": self.group_size}
        arguments = {**self._pooled(x, call.context), **groups}
        affine = params.get("gamma"), params.get("beta")
        return group.normalize_groups(_report(call.context), x, *affine, call.mask, **arguments)


@options
class InstanceNorm(_Positions):
    """Instance normalization; see `jaxnorm.instance_norm`.

    Reference: Ulyanov, Vedaldi & Lempitsky 2016, Instance Normalization, arXiv:1607.08022.
    """

    def _normalize(self, x: jax.Array, params: Params, state: State, call: Call) -> jax.Array:
        arguments = self._pooled(x, call.context)
        affine = params.get("gamma"), params.get("beta")
        return group.normalize_positions(_report(call.context), x, *affine, call.mask, **arguments)


def _report(context: Context) -> group.Report:
    """Returns what to do about groups of one value: nothing where variables are only made."""
    return group.ignore if context.initializing else functools.partial(group.refuse, context.label)
