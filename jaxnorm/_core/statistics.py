"""How the statistics of a pool are found, in one of three ways.

Each is a function (x, mask, pool, near, plan, one_mean) -> statistics, count:

- `two_pass`: the mean, then sums about it;
- `sampled_shift`: a value near the mean from an eighth of the elements, then sums about it;
- `shifted`: sums about a value that is at hand before x is read, and only where these cannot be
  trusted, sums about the mean that they gave.

They keep the rank of the input, with size 1 along the pooled axes, one entry for each group.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._core import collectives
from jaxnorm._core.plain import is_plain
from jaxnorm._core.plan import PLAIN, PORTABLE, Plan
from jaxnorm._core.pool import (
    Pool,
    abs2,
    bounded,
    compute_dtype,
    real_dtype,
    snap,
    subtract,
    unit_axes,
    widen,
    zero_masked,
)
from jaxnorm._core.residuals import save
from jaxnorm._core.split_moments import SplitMoments
from jaxnorm._core.sums import reduce_precision

# What sums of equal numbers may be off by, in eps; 100,000 on GPU by 100.
SUM_ERRORS = 256


def compute_statistics(
    x,
    mask,
    pool: Pool,
    shift_hint,
    plan: Plan = PORTABLE,
    *,
    center: bool = True,
    one_mean: bool = False,
) -> tuple[SplitMoments, jax.Array]:
    """Returns the statistics of `x` and the count, found by the plan's algorithm.

    With `one_mean` the mean is one number; see `Centered.with_one_mean`.
    """
    if not center:
        return mean_square(x, mask, pool, plan)
    if is_plain():
        return textbook(x, mask, pool)
    algorithms = {"shifted": shifted, "sampled_shift": sampled_shift, "two_pass": two_pass}
    return algorithms[plan.algorithm](x, mask, pool, shift_hint, plan, one_mean)


def textbook(x, mask, pool: Pool) -> tuple[SplitMoments, jax.Array]:
    """Returns the mean, sum(x) / n, and the variance, sum(|x - mean|^2) / n.

    The three ways find the same, and the mean in two parts.
    """
    total, count = pool.sum(widen(x, mask), PLAIN), local_count(x, mask, pool)
    (total,), count = _across((total,), count, mask, pool)
    number = count if mask is None else jnp.maximum(count, 1)
    mean = total / number.astype(total.dtype)
    squares = pool.sum(abs2(zero_masked(mask, subtract(x, mask, pool, mean))), PLAIN)
    (squares,), _ = _across((squares,), None, mask, pool)
    return SplitMoments(mean, None, squares / number), count


def two_pass(
    x, mask, pool: Pool, shift_hint, plan: Plan, one_mean: bool = False
) -> tuple[SplitMoments, jax.Array]:
    """Finds the mean, then takes sums about it."""
    del shift_hint
    shift, count = mean_of(x, mask, pool, plan)
    (x, mask), shift = plan.next_pass((x, mask), shift)
    return shifted_sums(shift, count, x, mask, pool, plan, one_mean=one_mean)


def sampled_shift(
    x, mask, pool: Pool, shift_hint, plan: Plan, one_mean: bool = False
) -> tuple[SplitMoments, jax.Array]:
    """Finds the mean of an eighth of the elements, then takes sums about it."""
    if mask is not None:
        return two_pass(x, mask, pool, shift_hint, plan, one_mean)
    shift, _ = mean_of(_sample(x, pool, plan), None, pool, plan)
    count = local_count(x, mask, pool)
    (x, _), shift = plan.next_pass((x, None), shift)
    return shifted_sums(shift, count, x, None, pool, plan, one_mean=one_mean)


def shifted(x, mask, pool: Pool, shift_hint, plan: Plan, one_mean: bool = False):
    """Takes sums about `near` (None: 0), and for pools whose sums cannot be trusted, others.

    They can where the mean is not further than sqrt(2) deviations from `near`: the variance is off
    by about eps (1 + 2 (mean - near)^2 / var). The others' are taken about the mean found. Each
    pool decides for itself, so that no statistic depends on another pool's elements; whether the
    second pass runs at all is one condition. It stands around the statistics alone, without axes of
    size 1, which XLA for TPU pads a hundredfold.
    """
    shape = pool.statistic_shape(x.shape)
    if shift_hint is not None:
        shift_hint = reduce_precision(shift_hint.astype(compute_dtype(x.dtype)), 3)
        shift_hint = jnp.broadcast_to(jnp.where(jnp.isfinite(shift_hint), shift_hint, 0), shape)

    def flat(statistics):
        return jax.tree.map(lambda s: jnp.squeeze(s, unit_axes(shape)), statistics)

    def again(quick):
        mean = stats.shift + stats.offset
        if shift_hint is not None:
            # So far off `near` can be that x - near kept nothing of x, nor of its mean.
            lost = (stats.shift != 0) & ~_is_close(stats, 300)
            found = functools.partial(mean_of, x, mask, pool, plan)
            mean = lax.cond(
                jnp.any(lost), lambda m: jnp.where(lost, flat(found()[0]), m), lambda m: m, mean
            )
        (rest, kept), shift = plan.next_pass((x, mask), bounded(mean, 3).reshape(shape))
        exact, _ = shifted_sums(shift, count, rest, kept, pool, plan, one_mean=one_mean)
        return jax.tree.map(functools.partial(jnp.where, trusted), quick, flat(exact))

    stats, count = shifted_sums(shift_hint, None, x, mask, pool, plan, plain=True)
    stats = flat(stats)
    trusted = _is_close(stats, 2**0.5)
    quick = stats.with_one_mean() if one_mean else stats
    # The branch that ordinary data take returns its operand as it is: other forms ended libtpu.
    quick = lax.cond(jnp.all(trusted), lambda quick: quick, again, quick)
    return jax.tree.map(lambda s: s.reshape(shape), quick), count


def _is_close(stats: SplitMoments, deviations: float) -> jax.Array:
    """Whether the mean is at most so many deviations from the shift, as far as float32 can tell."""
    _, offset, var = stats
    # Without "or equal", squares that vanish in float32 tell nothing.
    within = (abs2(offset) < deviations**2 * var) | (offset == 0)
    return within & (var < jnp.inf)


def shifted_sums(
    shift, count, x, mask, pool: Pool, plan: Plan, *, plain: bool = False, one_mean: bool = False
) -> tuple[SplitMoments, jax.Array]:
    """Returns the statistics from sums of x - shift (None: 0) and of its square, and the count.

    A `count` of None is found as well, with the sums. Nothing is multiplied inside the sums: on CPU
    that would cost nearly as much as they do. If not `plain`, sums that overflow
    leave a finite mean, and nothing remains of a constant.
    """

    def rest(x, mask, shift):
        return zero_masked(mask, subtract(x, mask, pool, shift))

    first = pool.sum(rest(x, mask, shift), plan)
    (x, mask), again = plan.next_pass((x, mask), shift)
    second = pool.sum(abs2(rest(x, mask, again)), plan)
    sums, own = (first, second), (local_count(x, mask, pool, plan) if count is None else None)
    (first, second), total = _across(sums, own, mask, pool)
    count = total if count is None else count
    divisor = jnp.maximum(count, 1)
    offset = first / divisor.astype(first.dtype)
    if not plain:
        offset = bounded(offset)
    # Where the squares overflow the variance is infinite, not inf - inf.
    square = jnp.minimum(abs2(offset), jnp.finfo(second.dtype).max)
    var = jnp.maximum(second / divisor - square, 0)
    if not plain:
        offset = without_rounding(offset, var, square)
    stats = SplitMoments(jnp.zeros_like(offset) if shift is None else shift, offset, var)
    return stats.with_one_mean() if one_mean else stats, count


def without_rounding(offset, var, square) -> jax.Array:
    """Returns `offset`, without its rounding errors where the pool is a constant."""
    is_constant = var <= 4 * SUM_ERRORS * jnp.finfo(var.dtype).eps * square
    return jnp.where(is_constant, snap(offset, SUM_ERRORS), offset)


def mean_square(x, mask, pool: Pool, plan: Plan) -> tuple[SplitMoments, jax.Array]:
    """Returns the mean of |x|^2 in place of the statistics, and the count."""
    count = local_count(x, mask, pool, plan)
    total = pool.sum(abs2(widen(x, mask)), plan)
    (total,), count = _across((total,), count, mask, pool)
    return SplitMoments(
        None, None, total / (count if mask is None else jnp.maximum(count, 1))
    ), count


def local_count(x, mask, pool: Pool, plan: Plan = PORTABLE) -> jax.Array:
    """Returns the number of elements of each pool on this device, of rank 0 without a mask."""
    real = real_dtype(x.dtype)
    if mask is None:
        return jnp.asarray(pool.size(x.shape), real)
    return pool.count_kept(mask, x.shape, real, plan)


def mean_of(x, mask, pool: Pool, plan: Plan) -> tuple[jax.Array, jax.Array]:
    """Returns the mean of each pool, finite and rounded to a few bits less, and the full count.

    Its bits must be the same wherever XLA computes it, also where it is fused into a consumer:
    a mean that one fusion rounds and another contracts into a fused multiply-add would no longer
    belong to its remainder. Reducing the precision works on the bits and cannot be contracted.
    """
    x = lax.stop_gradient(x)
    count = local_count(x, mask, pool, plan)
    (total,), count = _across((pool.sum(widen(x, mask), plan),), count, mask, pool)
    mean = total / jnp.maximum(count, 1).astype(total.dtype)
    # Saved where they are made: what follows needs them, and so do its derivatives.
    return save(lax.stop_gradient(bounded(mean, 3))), count if mask is None else save(count)


def _across(sums, count, mask, pool: Pool) -> tuple[tuple[jax.Array, ...], Any]:
    """Returns the sums, and the count if it is given, of all devices that pool together.

    In one collective; saved, or the backward pass would send them again.
    """
    if not pool.names:
        return sums, count
    parts = _unmerged(*sums) if mask is None or count is None else (*_unmerged(*sums), count)
    totals = [save(v) for v in collectives.psum(parts, pool.names, pool.index_groups)]
    if len(parts) > len(sums):
        *totals, count = totals
    elif count is not None:
        shards = collectives.shards(pool.names, pool.index_groups)
        count = count * jnp.asarray(shards, count.dtype)
    return tuple(totals), count


def _unmerged(*sums: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the sums less a bit, so that XLA does not merge them with those over mapped axes."""
    return tuple(reduce_precision(s, 1) for s in sums)


def _sample(x: jax.Array, pool: Pool, plan: Plan) -> jax.Array:
    """Returns an eighth of the elements of each pool, spread over its longest axis; all of few.

    Their mean lies within sqrt(7) standard deviations of the pool's, whatever they are: if a share
    f of the elements has a mean that far off, (mean_f - mean)^2 f <= var (1 - f). The nearer it
    is, the more exact is the variance; so a few large elements must not lead it astray.
    """
    # Arrays on several devices are commonly divided along their first axis.
    axes = [a for a in pool.axes if plan.one_device or a != 0]
    axis = max(axes, key=lambda a: x.shape[a], default=None)
    if axis is None or not isinstance(x.size, int) or x.shape[axis] < 4:
        return x
    size = x.shape[axis]
    if axis < x.ndim - 1:
        return lax.slice_in_dim(x, 3, None, 4 if 8 < size < 16 else 8, axis)
    # Neighbours: memory is read in pieces.
    return lax.slice_in_dim(x, 0, -(-size // 8), axis=axis)
