"""The p-norm of the elements of a pool, for every finite input."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._core.pool import abs2
from jaxnorm._core.sums import sum_axes


class Length(NamedTuple):
    """The p-norm of x as `unit * rest`, which is not infinite where the norm itself would be.

    `unit` is a constant: the largest |x|, or 1 where all vanish. `rest` is the norm of x / unit, of
    gradient 0 where all are 0.
    """

    unit: jax.Array
    rest: jax.Array


def length_of(wide: jax.Array, axes: tuple[int, ...], p: float = 2.0) -> Length:
    """Returns the p-norm of `wide`, in float32 or wider, over `axes`, which stay with size 1."""
    unit = largest(wide, axes)
    # Squares of what is smaller are 0, and 1 / unit is infinite.
    unit = jnp.where(unit >= jnp.finfo(unit.dtype).tiny, unit, 1)
    part = wide / unit.astype(wide.dtype)
    if p == math.inf:
        return Length(unit, jnp.max(jnp.abs(part), axes, keepdims=True, initial=0))
    if p == 2:
        total = sum_axes(abs2(part), axes)
    elif p == 1:
        return Length(unit, sum_axes(jnp.abs(part), axes))
    else:
        total = sum_axes(jnp.abs(part) ** p, axes)
    positive = total > 0
    safe = jnp.where(positive, total, 1)
    root = jnp.sqrt(safe) if p == 2 else safe ** (1 / p)
    return Length(unit, jnp.where(positive, root, 0))


def largest(wide: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns the largest |x| over `axes`, a constant."""
    return jnp.max(jnp.abs(lax.stop_gradient(wide)), axes, keepdims=True, initial=0)
