"""Sums over windows that move along axes, of what lies inside the array."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def window_sum(x: jax.Array, reach: Mapping[int, tuple[int, int]]) -> jax.Array:
    """Returns at each place the sum of `x` from so many places before it to so many after.

    `reach` says how many, for each axis that the window extends along. The sum is taken along one
    axis after the other, and only ever added to: differences of running sums would lose the digits
    of what is small beside what came before.
    """
    if jnp.iscomplexobj(x):
        return lax.complex(window_sum(x.real, reach), window_sum(x.imag, reach))
    for axis, (before, after) in reach.items():
        x = _sum_along(x, axis, before, after)
    return x


def window_count(
    mask: jax.Array | None,
    shape: tuple[int, ...],
    reach: Mapping[int, tuple[int, int]],
    dtype: jnp.dtype,
) -> jax.Array:
    """Returns how many elements a window holds at each place, of those that a mask keeps.

    Along axes that the mask does not vary along, a number for each place that is known beforehand.
    """
    sizes = (1,) * len(shape) if mask is None else mask.shape
    known = [a for a in reach if sizes[a] != shape[a] or shape[a] == 1]
    counted = {a: pair for a, pair in reach.items() if a not in known}
    count = jnp.ones((1,) * len(shape), dtype) if mask is None else mask.astype(dtype)
    count = window_sum(count, counted)
    for axis in known:
        size, (before, after) = shape[axis], reach[axis]
        # The number of places may be a symbol, which NumPy does not know.
        numpy = np if isinstance(size, int) else jnp
        place = numpy.arange(size)
        held = numpy.minimum(place, before) + 1 + numpy.minimum(size - 1 - place, after)
        others = tuple(a for a in range(len(shape)) if a != axis)
        count = count * jnp.expand_dims(jnp.asarray(held, dtype), others)
    return count


def _sum_along(x: jax.Array, axis: int, before: int, after: int) -> jax.Array:
    """Returns the sum along one axis: of sums of a few neighbours, a few that lie next to each.

    So many additions as a window's root, not as it is long, and fewer roundings.
    """
    size = x.shape[axis]
    if isinstance(size, int):
        before, after = min(before, size - 1), min(after, size - 1)
        if size > 1 and before == after == size - 1:
            return jnp.broadcast_to(jnp.sum(x, axis, keepdims=True), x.shape)
    length = before + 1 + after
    few, times, _ = _divide(length)
    if times == 1:
        return _reduce(x, axis, length, 1, (before, after))
    whole = few * times
    # Those that end at each place, and beyond the last; further out they are 0.
    sums = _reduce(x, axis, few, 1, (few - 1, few - 1))
    total = _reduce(sums, axis, times, few, (before - few + 1, whole - few - before))
    for shift in range(whole - before, after + 1):
        # A shifted copy needs no memory of its own, as a reduction does.
        sides = [(-shift, shift, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)]
        total = total + lax.pad(x, np.zeros((), x.dtype), sides)
    return total


def _divide(length: int) -> tuple[int, int, int]:
    """Returns how many neighbours to add, how many such sums, and how many elements are left."""
    if length < 8:
        return length, 1, 0
    return min(
        ((few, *divmod(length, few)) for few in range(2, length // 2 + 1)),
        key=sum,
    )


def _reduce(x: jax.Array, axis: int, length: int, step: int, padding: tuple[int, int]) -> jax.Array:
    """Returns sums of `length` elements that lie `step` apart along an axis."""

    def along(value, other):
        return tuple(value if a == axis else other for a in range(x.ndim))

    zero = np.zeros((), x.dtype)
    return lax.reduce_window(
        x,
        zero,
        lax.add,
        along(length, 1),
        along(1, 1),
        along(padding, (0, 0)),
        window_dilation=along(step, 1),
    )
