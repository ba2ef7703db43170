"""Which elements share their statistics, and sums over them that are accurate in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._core.mesh import splits_evenly, undivided
from jaxnorm._core.plan import CPU_ONE_LOOP, CPU_SMALL, PORTABLE, RECENT_XLA, Plan


class Pool(NamedTuple):
    """The elements that are pooled: along axes, within groups of channels, across devices."""

    axes: tuple[int, ...]
    groups: tuple[int, int] | None = None  # (channel axis, number of groups)
    names: tuple[str, ...] = ()
    index_groups: tuple[tuple[int, ...], ...] | None = None

    def size(self, shape: tuple[int, ...]) -> int:
        """Returns the number of elements of a pool on one device."""
        size = math.prod(shape[a] for a in self.axes)
        if self.groups is not None:
            channel, parts = self.groups
            size *= shape[channel] // parts
        return size

    def statistic_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of one value for each pool of an array of shape `shape`."""
        reduced = reduced_shape(shape, self.axes)
        if self.groups is None:
            return reduced
        channel, parts = self.groups
        return (*reduced[:channel], parts, *reduced[channel + 1 :])

    def sum(self, x: jax.Array, plan: Plan = PORTABLE) -> jax.Array:
        """Returns the sum over each pool on this device.

        The axes keep size 1; a grouped channel axis keeps one entry per group.
        """
        elements = self.size(x.shape)
        x = sum_axes(x, self.axes, plan)
        if self.groups is None:
            return x
        channel, parts = self.groups
        if plan.split and not _is_short(elements):
            x = reduce_precision(x, 1)  # see `sum_axes`
        return jnp.sum(split_axis(x, channel, parts), channel + 1)

    def count_kept(
        self, mask: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, plan: Plan = PORTABLE
    ) -> jax.Array:
        """Returns how many elements of each pool a mask keeps of an array of shape `shape`."""
        if self.groups is not None:
            # Groups are counted channel by channel.
            channel, _ = self.groups
            sizes = (shape[a] if a == channel else size for a, size in enumerate(mask.shape))
            mask = jnp.broadcast_to(mask, tuple(sizes))
        # Axes that the mask does not vary along need no sum.
        times = math.prod(shape[a] for a in self.axes if mask.shape[a] != shape[a])
        counted = self.sum(mask.astype(dtype), plan) * jnp.asarray(times, dtype)
        return jnp.broadcast_to(counted, self.statistic_shape(shape))

    def first(self, x: jax.Array) -> jax.Array:
        """Returns the first element of each pool."""
        for axis in self.axes:
            x = lax.slice_in_dim(x, 0, 1, axis=axis)
        if self.groups is not None:
            channel, parts = self.groups
            x = lax.slice_in_dim(x, 0, None, x.shape[channel] // parts, axis=channel)
        return x

    def is_sliced(self, shape: tuple[int, ...]) -> bool:
        """Whether sums of arrays of shape `shape` may begin with slices; see `sum_axes`."""
        return _sliced_axis(shape, self.axes) is not None

    def largest(self, x: jax.Array) -> jax.Array:
        """Returns the largest element of each pool."""
        x = jnp.max(x, self.axes, keepdims=True)
        if self.groups is None:
            return x
        channel, parts = self.groups
        return jnp.max(split_axis(x, channel, parts), channel + 1)

    def spread(self, statistic: Any, shape: tuple[int, ...]) -> Any:
        """Returns `statistic` so that it broadcasts against an array of shape `shape`."""
        if statistic is None or self.groups is None:
            return statistic
        channel, parts = self.groups
        before, after = statistic.shape[:channel], statistic.shape[channel + 1 :]
        size = shape[channel] // parts
        wide = jnp.expand_dims(statistic, channel + 1)
        wide = jnp.broadcast_to(wide, (*before, parts, size, *after))
        return wide.reshape(*before, parts * size, *after)

    def is_by_rows(self, gamma: Any) -> bool:
        """Whether gamma takes several values within a pool, so that sums of it mix them."""
        return not self.axes or (gamma is not None and any(gamma.shape[a] != 1 for a in self.axes))

    def renumber(self, number: Callable[[int], Sequence[int]]) -> Pool:
        """Returns the same pool for arrays whose axes are numbered anew."""
        groups = self.groups
        if groups is not None:
            (channel,) = number(groups[0])
            groups = (channel, groups[1])
        return self._replace(axes=renumber(self.axes, number), groups=groups)


def renumber(axes: Sequence[int], number: Callable[[int], Sequence[int]]) -> tuple[int, ...]:
    """Returns the new numbers of `axes`, each once."""
    return tuple(sorted({n for a in axes for n in number(a)}))


def split_axis(x: Any, axis: int, parts: int) -> Any:
    """Returns `x` (None stays None) with an axis divided into `parts`, on an axis of their own.

    An axis of size 1, along which `x` does not vary, becomes two of size 1. With explicit sharding
    JAX does not reshape an axis that is divided into other parts over devices.
    """
    if x is None:
        return None
    if not splits_evenly(x, axis, parts):
        x = undivided(x, axis)
    size = x.shape[axis]
    pair = (1, 1) if size == 1 else (parts, size // parts)
    return x.reshape(*x.shape[:axis], *pair, *x.shape[axis + 1 :])


def reduced_shape(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """Returns `shape` with size 1 along `axes`."""
    return tuple(1 if a in axes else s for a, s in enumerate(shape))


def reduce_precision(x: jax.Array, dropped_bits: int) -> jax.Array:
    """Returns `x` with its last bits rounded away."""
    if jnp.iscomplexobj(x):
        return lax.complex(
            reduce_precision(x.real, dropped_bits), reduce_precision(x.imag, dropped_bits)
        )
    info = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, info.nexp, info.nmant - dropped_bits)


# Up to this many elements are added up in any order within the rounding that is allowed.
_SHORT = 128
# XLA on CPU computes what more slices are taken of in a loop of its own; fewer do not pay where
# they are a pass of their own.
_MOST_SLICES = 8
_FEWEST_SLICES = 4
# Where such a pass pays, measured on two cores: elements of the last axis, and of another one; then
# in all, and of the last axis, which is added in vectors.
_LONG_ROW = 1 << 8
_LONG_COLUMN = 1 << 9
_MANY_COLUMNS = 1 << 16
_FEWEST_COLUMNS = 16


def sum_axes(x: jax.Array, axes: Sequence[int], plan: Plan = PORTABLE) -> jax.Array:
    """Returns the sum over `axes`, which stay with size 1, in short sums only.

    XLA on CPU may add up several reduced axes in one sequence, whose rounding errors grow with
    its length; it splits a single long axis by itself. So the outermost axis is summed on its
    own. Rounding away one bit in between keeps XLA from merging the sums into one again.

    Where the plan says so, slices are added first; see `_add_slices`.
    """
    axes = sorted(axes)
    if plan.short_axes or plan.slices:
        x = _shorten(x, axes, plan)
    if not plan.split or len(axes) < 2 or _is_short(math.prod(x.shape[a] for a in axes)):
        return jnp.sum(x, tuple(axes), keepdims=True)
    inner = axes[1:]
    if _has_library_loops(x) and inner == list(range(inner[0], inner[0] + len(inner))):
        stages = [inner, axes[:1]]
    else:
        stages = [[a] for a in reversed(axes)]
    for position, stage in enumerate(stages):
        if position:
            x = reduce_precision(x, 1)
        x = jnp.sum(x, tuple(stage), keepdims=True)
    return x


def _shorten(x: jax.Array, axes: list[int], plan: Plan) -> jax.Array:
    """Returns `x`, or the sum of slices of it along one of the axes where that saves time."""
    if plan.short_axes:
        # As part of the loop that sums the rest.
        short = [a for a in axes[:-1] if x.shape[a] <= CPU_ONE_LOOP]
        if short and math.prod(x.shape[a] for a in axes) > CPU_ONE_LOOP:
            x = _add_slices(x, max(short, key=lambda a: x.shape[a]))
    elif (axis := _sliced_axis(x.shape, axes)) is not None:
        # In a pass of their own, which XLA of jax 0.10.2 takes apart if nothing lies in between.
        x = reduce_precision(_add_slices(x, axis), 1)
    return x


def _sliced_axis(shape: Sequence[int], axes: Sequence[int]) -> int | None:
    """Returns the axis along which a pass that adds slices pays, if there is one."""
    row, size = len(shape) - 1, math.prod(shape)
    if row in axes:
        axis, pays = row, shape[row] >= _LONG_ROW and size >= CPU_SMALL
    else:
        axis = max(axes, key=lambda a: shape[a], default=row)
        long = shape[axis] >= _LONG_COLUMN and size >= _MANY_COLUMNS
        pays = long and shape[row] >= _FEWEST_COLUMNS
    return axis if pays and _count_slices(shape[axis]) >= _FEWEST_SLICES else None


def _add_slices(x: jax.Array, axis: int) -> jax.Array:
    """Returns the sum of slices along an axis, which becomes as long as one of them.

    XLA on CPU adds slices in vectors, but the elements of a sum one after the other. Nor does it
    write a product that is to be summed to memory in full then.
    """
    size = x.shape[axis]
    width = size // _count_slices(size)
    slices = [lax.slice_in_dim(x, i, i + width, axis=axis) for i in range(0, size, width)]
    while len(slices) > 1:
        pairs = [a + b for a, b in zip(slices[::2], slices[1::2], strict=False)]
        slices = pairs + slices[2 * len(pairs) :]
    return slices[0]


def _count_slices(size: int) -> int:
    return max(n for n in range(1, _MOST_SLICES + 1) if size % n == 0)


def _is_short(elements: Any) -> bool:
    # A symbolic size is not known to be short.
    return isinstance(elements, int) and elements <= _SHORT


def _has_library_loops(x: jax.Array) -> bool:
    """Whether XLA on CPU may sum in loops of its library, which are accurate over several axes."""
    return RECENT_XLA and (not isinstance(x.size, int) or x.size >= CPU_SMALL)


def abs2(x: jax.Array) -> jax.Array:
    """Returns |x|^2, real."""
    if jnp.iscomplexobj(x):
        return x.real * x.real + x.imag * x.imag
    return x * x


def compute_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """Returns the dtype of statistics for inputs of `dtype`: float32 or wider."""
    dtype = jnp.dtype(dtype)
    return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)


def real_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """Returns the dtype of variances and counts for inputs of `dtype`."""
    return jnp.finfo(compute_dtype(dtype)).dtype


def widen(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns `x` in float32 or wider; zeros in masked slots keep NaN there out of products."""
    wide = x.astype(compute_dtype(x.dtype))
    return wide if mask is None else jnp.where(mask, wide, 0)


def keep(mask: jax.Array | None, x: jax.Array) -> jax.Array:
    """Returns `x` with zeros in the masked slots."""
    return x if mask is None else jnp.where(mask, x, 0)


def subtract(x: jax.Array, mask: jax.Array | None, pool: Any, *statistics: Any) -> jax.Array:
    """Returns `x` less statistics of its pools (None: nothing), in float32 or wider."""
    wide = widen(x, mask)
    for statistic in statistics:
        if statistic is not None:
            wide = wide - pool.spread(statistic, x.shape)
    return wide
