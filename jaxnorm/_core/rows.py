"""A normalization of rows that XLA makes one kernel of, which reads each row once."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxnorm._core.formula import Options, result
from jaxnorm._core.plan import Plan
from jaxnorm._core.pool import abs2, compute_dtype
from jaxnorm._core.split_moments import SplitMoments, is_narrow
from jaxnorm._core.statistics import without_rounding
from jaxnorm._core.sums import reduce_precision

# A row of n elements is scaled by c = 1 / (4 n) or more. Squares vanish below 1e-38: those of
# deviations that are less than 1e-19 / c. For n of a million that is 1e-12, whose square is nothing
# beside this.
SMALLEST_SCALED_EPSILON = 1e-12


def rows_in_one_kernel(x, gamma, beta, options: Options, plan: Plan):
    """Normalizes c x with c^2 epsilon, which is the same: sums of small numbers do not overflow."""
    size, narrow = x.shape[-1], is_narrow(x.dtype, options.dtype)
    scale = 2.0 ** -(math.ceil(math.log2(size)) + 2)
    x = x.astype(compute_dtype(x.dtype)) * scale
    options = options._replace(epsilon=options.epsilon * scale**2)
    stats = _find(x, divided=plan.row_kernel == "divided")
    one_mean = stats.with_one_mean() if narrow else stats
    y = result(x, gamma, beta, None, one_mean if plan.row_kernel == "divided" else stats, options)
    # The compiler drops the statistics, which nothing uses.
    shift, offset, var = one_mean
    return y, shift / scale, None if offset is None else offset / scale, var / scale**2


def _find(x, divided: bool) -> SplitMoments:
    """Finds the statistics of rows of numbers so small that no sum overflows, in two passes.

    A constant row leaves equal remainders of few bits, whose sum is exact. If `divided` so is their
    mean, by a division: XLA would multiply by the reciprocal of a number that it knows. Nor can a
    quotient be contracted into the subtraction.
    """
    size: Any = x.shape[-1]
    if divided:
        size = lax.optimization_barrier(jnp.asarray(size, x.dtype))
    shift = jnp.sum(x, -1, keepdims=True) / size
    shift = shift if divided else reduce_precision(shift, 3)
    rest = x - shift
    offset = jnp.sum(rest, -1, keepdims=True) / size
    square = jnp.minimum(abs2(offset), jnp.finfo(x.dtype).max)
    var = jnp.maximum(jnp.sum(abs2(rest), -1, keepdims=True) / x.shape[-1] - square, 0)
    return SplitMoments(shift, offset if divided else without_rounding(offset, var, square), var)
