"""Which elements share their statistics, and the arithmetic of single elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._core.axes import check_axis_name
from jaxnorm._core.collectives import AxisIndexGroups, freeze_groups
from jaxnorm._core.plain import is_plain
from jaxnorm._core.plan import PORTABLE, Plan
from jaxnorm._core.sums import reduce_precision, split_axis, sum_axes


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
        x = sum_axes(x, self.axes, plan)
        if self.groups is None:
            return x
        channel, parts = self.groups
        if plan.reduction == "axes":
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

    def broadcast_to_input(self, statistic: Any, shape: tuple[int, ...]) -> Any:
        """Returns `statistic` so that it broadcasts against an array of shape `shape`."""
        if statistic is None or self.groups is None:
            return statistic
        channel, parts = self.groups
        before, after = statistic.shape[:channel], statistic.shape[channel + 1 :]
        size = shape[channel] // parts
        wide = jnp.expand_dims(statistic, channel + 1)
        wide = jnp.broadcast_to(wide, (*before, parts, size, *after))
        return wide.reshape(*before, parts * size, *after)

    def is_row(self, shape: tuple[int, ...]) -> bool:
        """Whether the elements of a pool lie next to each other."""
        pooled = [a for a in self.axes if shape[a] != 1]
        return self.groups is None and pooled == [len(shape) - 1]

    def varies_within(self, gamma: Any) -> bool:
        """Whether gamma takes several values within a pool, so that sums of it mix them."""
        sizes = np.shape(gamma)
        return not self.axes or any(sizes[a] != 1 for a in self.axes if sizes)

    def renumber(self, number: Callable[[int], int]) -> Pool:
        """Returns the same pool for arrays whose axes are numbered anew, several alike as one."""
        groups = None if self.groups is None else (number(self.groups[0]), self.groups[1])
        return self._replace(axes=tuple(dict.fromkeys(map(number, self.axes))), groups=groups)


def pool_of(
    axes: tuple[int, ...],
    axis_name: str | Sequence[str] | None,
    axis_index_groups: AxisIndexGroups,
    groups: tuple[int, int] | None = None,
) -> Pool:
    """Returns the pool along `axes` and over mapped axes, checked to be bound."""
    names, index_groups = check_axis_name(axis_name), freeze_groups(axis_index_groups)
    if index_groups is not None and not names:
        raise ValueError(
            f"axis_index_groups={axis_index_groups!r} are groups of indices of axis_name, which is "
            "not given; give both or neither."
        )
    return Pool(axes, groups, names, index_groups)


def unit_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the axes of size 1. XLA for TPU pads them a hundredfold where they are the last."""
    return tuple(a for a, size in enumerate(shape) if size == 1)


def reduced_shape(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """Returns `shape` with size 1 along `axes`."""
    return tuple(1 if a in axes else s for a, s in enumerate(shape))


def snap(offset: jax.Array, errors: int = 16) -> jax.Array:
    """Returns `offset` rounded to a few bits where that changes it by so many eps at most.

    Of a constant input, x - shift is a constant of few bits, but its mean need not be: XLA
    multiplies by the reciprocal of the count, and long sums are rounded. Snapped to it, the
    remainder is exactly 0.
    """
    if is_plain():
        return offset
    if jnp.iscomplexobj(offset):
        return lax.complex(snap(offset.real, errors), snap(offset.imag, errors))
    value = lax.stop_gradient(offset)
    coarse = reduce_precision(value, 12)
    rest = value - coarse
    slack = jnp.abs(coarse) * (errors * jnp.finfo(value.dtype).eps)
    snapped = coarse + (jnp.maximum(rest - slack, 0) + jnp.minimum(rest + slack, 0))
    # The difference is exact: this is `snapped`, with the derivative of `offset`.
    return offset + (snapped - value)


def bounded(mean: jax.Array, dropped_bits: int = 0) -> jax.Array:
    """Returns `mean`, rounded, nowhere so large that x - mean is infinite for a finite x.

    And 0 where its sum was NaN: numbers of both signs have overflowed. Beyond the bound the
    rounding of x alone has squares that are not finite, so that whatever is subtracted, the
    variance is infinite and the result 0.
    """
    if jnp.iscomplexobj(mean):
        return reduce_precision(jnp.where(jnp.isfinite(mean), mean, 0), dropped_bits)
    largest = float(jnp.finfo(mean.dtype).max) * float(jnp.finfo(mean.dtype).eps) / 4
    # With a clamp XLA on GPU would not compute rows in one kernel, so the rounding lies in between;
    # nor with `isfinite`.
    mean = jnp.maximum(jnp.where(mean == mean, mean, 0), -largest)
    return jnp.minimum(reduce_precision(mean, dropped_bits), largest)


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


def zero_masked(mask: jax.Array | None, x: jax.Array) -> jax.Array:
    """Returns `x` with zeros in the masked slots."""
    return x if mask is None else jnp.where(mask, x, 0)


def subtract(x: jax.Array, mask: jax.Array | None, pool: Any, *statistics: Any) -> jax.Array:
    """Returns `x` less statistics of its pools (None: nothing), in float32 or wider."""
    wide = widen(x, mask)
    for statistic in statistics:
        if statistic is not None:
            wide = wide - pool.broadcast_to_input(statistic, x.shape)
    return wide
