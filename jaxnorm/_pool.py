"""Which elements share their statistics, and sums over them that are accurate in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


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

    def sum(self, x: jax.Array) -> jax.Array:
        """Returns the sum over each pool on this device.

        The axes keep size 1; a grouped channel axis keeps one entry per group.
        """
        x = sum_axes(x, self.axes)
        if self.groups is None:
            return x
        channel, parts = self.groups
        return jnp.sum(
            x.reshape(*x.shape[:channel], parts, -1, *x.shape[channel + 1 :]), channel + 1
        )

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

    def insert_axis(self, position: int) -> Pool:
        """Returns the same pool for arrays with one more axis, inserted at `position`."""
        groups = self.groups
        if groups is not None:
            groups = (*insert_axis(groups[:1], position), groups[1])
        return self._replace(axes=insert_axis(self.axes, position), groups=groups)


def insert_axis(axes: Sequence[int], position: int) -> tuple[int, ...]:
    """Returns `axes` as they are numbered once an axis is inserted at `position`."""
    return tuple(a + (a >= position) for a in axes)


def reduce_precision(x: jax.Array, dropped_bits: int) -> jax.Array:
    """Returns `x` with its last bits rounded away."""
    if jnp.iscomplexobj(x):
        return lax.complex(
            reduce_precision(x.real, dropped_bits), reduce_precision(x.imag, dropped_bits)
        )
    info = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, info.nexp, info.nmant - dropped_bits)


def sum_axes(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Returns the sum over `axes`, which stay with size 1, in short sums only.

    XLA on CPU may add up several reduced axes in one sequence, whose rounding errors grow with
    its length; it splits a single long axis by itself. So each axis is summed on its own.
    Rounding away one bit in between keeps XLA from merging the sums into one again.
    """
    for position, axis in enumerate(sorted(axes, reverse=True)):
        if position:
            x = reduce_precision(x, 1)
        x = jnp.sum(x, axis, keepdims=True)
    return x


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
