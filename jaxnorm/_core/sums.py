"""Sums along axes that are accurate in float32, in the stages that a backend needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._core.mesh import splits_evenly, undivided
from jaxnorm._core.plain import is_plain
from jaxnorm._core.plan import PORTABLE, Plan


def sum_axes(x: jax.Array, axes: Sequence[int], plan: Plan = PORTABLE) -> jax.Array:
    """Returns the sum over `axes`, which stay with size 1.

    XLA on CPU may add up several axes in one sequence, whose rounding errors grow with its length,
    where it splits a single long axis by itself. So a staged sum takes one axis after the other.
    Rounding away one bit in between keeps XLA from merging the stages into one again, which an
    optimization barrier does not on every version of jax.
    """
    if plan.reduction == "axes":
        first, *others = sorted(axes, reverse=True) or [()]
        x = jnp.sum(x, first, keepdims=True)
        for axis in others:
            x = jnp.sum(reduce_precision(x, 1), axis, keepdims=True)
        return x
    axis, blocks = _find_blocks(x.shape, axes) if plan.reduction == "blocks" else (0, 1)
    if blocks == 1:
        return jnp.sum(x, tuple(axes), keepdims=True)
    pooled = tuple(a + (a >= axis) for a in axes)
    x = jnp.sum(split_axis(x, axis, blocks), pooled, keepdims=True)
    return jnp.sum(reduce_precision(x, 1), axis)


def _find_blocks(shape: tuple[int, ...], axes: Sequence[int]) -> tuple[int, int]:
    """Returns an axis of sums of columns, each example's own, and how many blocks it is cut into.

    About 8: so many XLA on GPU needs to keep its threads busy. A power of 2 if there is one: then
    no data move between devices that the axis may be divided over. Of columns through all examples
    there are so few that XLA divides them itself.
    """
    if 0 in axes or len(shape) - 1 in axes:
        return 0, 1
    for axis in sorted(axes):
        size = shape[axis]
        divisors = [n for n in range(4, 65) if isinstance(size, int) and size and size % n == 0]
        if divisors:
            return axis, min(divisors, key=lambda n: (n.bit_count() > 1, abs(n - 8)))
    return 0, 1


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


def reduce_precision(x: jax.Array, dropped_bits: int) -> jax.Array:
    """Returns `x` with its last bits rounded away."""
    if is_plain():
        return x
    if jnp.iscomplexobj(x):
        return lax.complex(
            reduce_precision(x.real, dropped_bits), reduce_precision(x.imag, dropped_bits)
        )
    info = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, info.nexp, info.nmant - dropped_bits)
