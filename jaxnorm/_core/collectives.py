"""Sums over mapped axes, also within groups of their indices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

AxisIndexGroups = Sequence[Sequence[int]] | None
FrozenGroups = tuple[tuple[int, ...], ...] | None


def freeze_groups(groups: AxisIndexGroups) -> FrozenGroups:
    """Returns `axis_index_groups` in a hashable form."""
    return None if groups is None else tuple(tuple(int(i) for i in group) for group in groups)


def psum(
    values: tuple[jax.Array, ...], names: tuple[str, ...], groups: FrozenGroups = None
) -> tuple[jax.Array, ...]:
    """Returns the sums of `values` over the mapped axes `names`, each group of indices by itself.

    One collective, which jax.lax.psum with `axis_index_groups` cannot give in `vmap` or in
    `shard_map`: each group's sums travel in a slot of their own, and each index reads its slot.
    """
    if groups is None:
        return lax.psum(values, names)
    slot = _slot(names, groups)

    def put(value):
        mine = jnp.arange(len(groups)) == slot
        return jnp.where(mine.reshape((-1,) + (1,) * value.ndim), value[None], 0)

    totals = lax.psum(tuple(put(v) for v in values), names)
    return tuple(lax.dynamic_index_in_dim(t, slot, keepdims=False) for t in totals)


def shards(names: tuple[str, ...], groups: FrozenGroups = None) -> int | jax.Array:
    """Returns how many indices of the mapped axes `names` are pooled with this one."""
    if groups is None:
        return size(names)
    sizes = {len(group) for group in groups}
    if len(sizes) == 1:
        return sizes.pop()
    return jnp.asarray([len(group) for group in groups])[_slot(names, groups)]


def size(names: tuple[str, ...]) -> int:
    """Returns the number of indices of the mapped axes `names` together."""
    return math.prod(lax.psum(1, name) for name in names)


def _slot(names: tuple[str, ...], groups: tuple[tuple[int, ...], ...]) -> jax.Array:
    """Returns which of the `groups` this index of the mapped axes belongs to."""
    indices = [index for group in groups for index in group]
    if sorted(indices) != list(range(size(names))):
        raise ValueError(
            f"axis_index_groups={[list(g) for g in groups]} must hold each index of axis_name="
            f"{'/'.join(names)!r}, 0 to {size(names) - 1}, exactly once."
        )
    group_of = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    return jnp.asarray(group_of[np.argsort(indices)])[lax.axis_index(names)]
