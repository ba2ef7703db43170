"""Sums over windows that move along axes, of what lies inside the array."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def window_sum(x: jax.Array, reach: Mapping[int, tuple[int, int]]) -> jax.Array:
    """Returns at each place the sum of `x` from so many places before it to so many after.

    `reach` says how many, for each axis that the window extends along.
    """
    if jnp.iscomplexobj(x):
        return lax.complex(window_sum(x.real, reach), window_sum(x.imag, reach))
    padding = [reach.get(a, (0, 0)) for a in range(x.ndim)]
    sizes = tuple(before + 1 + after for before, after in padding)
    return lax.reduce_window(x, np.zeros((), x.dtype), lax.add, sizes, (1,) * x.ndim, padding)
