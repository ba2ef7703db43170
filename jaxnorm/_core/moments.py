"""Mean, variance and count of the pooled elements: computed, merged, and averaged over time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxnorm._core import axes as _axes
from jaxnorm._core import collectives
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.plan import PORTABLE, Plan
from jaxnorm._core.pool import (
    Pool,
    abs2,
    compute_dtype,
    keep,
    real_dtype,
    reduce_precision,
    split_axis,
    subtract,
    widen,
)

SAVED = "jaxnorm_statistics"


class Moments(NamedTuple):
    """Mean, biased variance and number of the elements pooled.

    Attributes:
      mean: the mean; the axes reduced over are removed.
      var: the variance, divided by `count` (biased); same shape, real.
      count: how many elements were pooled; broadcasts against `mean`.
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


class Centered(NamedTuple):
    """Moments with the mean in two parts, with the rank of the input.

    At mean/std 1e6 a float32 mean is off by up to 0.03 standard deviations, so the mean is
    carried as `shift + offset`. `x - shift` is nearly exact where the shift is large, and
    `offset` is the mean of that remainder. Without centering both are None, and `var` is the
    mean square.
    """

    shift: jax.Array | None
    offset: jax.Array | None
    var: jax.Array


def save(x: Any) -> Any:
    """Marks `x` as a statistic that `jax.checkpoint` keeps for the backward pass."""
    if x is None:
        return None
    if jnp.iscomplexobj(x):
        # jax.checkpoint cannot keep a complex array (it rounds what it keeps).
        return lax.complex(save(x.real), save(x.imag))
    return checkpoint_name(x, SAVED)


def save_only_statistics(*names, **params):
    """A `jax.checkpoint` policy: keep per-group statistics, compute all else again."""
    return jax.checkpoint_policies.save_only_these_names(SAVED)(*names, **params)


def local_count(
    x: jax.Array, mask: jax.Array | None, pool: Pool, plan: Plan = PORTABLE
) -> jax.Array:
    """Returns the number of elements of each pool on this device, of rank 0 without a mask."""
    real = real_dtype(x.dtype)
    if mask is None:
        return jnp.asarray(pool.size(x.shape), real)
    return pool.count_kept(mask, x.shape, real, plan)


def centered_moments(
    x: jax.Array, mask: jax.Array | None, pool: Pool, plan: Plan = PORTABLE
) -> tuple[Centered, jax.Array]:
    """Returns the moments of `x` and their count."""
    shift, count = find_shift(x, mask, pool, plan)
    x, mask, shift = plan.next_pass(x, mask, shift)
    return moments_about(shift, count, x, mask, pool, plan), count


def use_quick_moments(
    use: Callable[[jax.Array, Centered], Any],
    x: jax.Array,
    mask: jax.Array | None,
    pool: Pool,
    plan: Plan,
    use_exact: Callable[[jax.Array, Centered], Any] | None = None,
) -> Any:
    """Returns use(x, moments of x) on one device; masked slots of that x are 0.

    Where no mean is large beside its standard deviation, E[x^2] - E[x]^2 is exact enough, and
    XLA on CPU has loops of its own for these sums. That is found out as the program runs: for
    any other input the sums are taken again, about the mean, for `use_exact`, which is `use` if
    not given. The use is part of both branches: statistics would be copied as they leave them.
    """
    x, n = _selected(x, mask, plan), pool.size(x.shape)
    if mask is not None:
        n = jnp.maximum(local_count(x, mask, pool, plan), 1).reshape(-1)
    shape = pool.statistic_shape(x.shape)
    # One axis each: XLA on CPU copies what it lays out in several ways for axes of size 1.
    total = pool.sum(widen(x, None), plan).reshape(-1)
    (x,) = plan.next_pass(x)
    squares = pool.sum(abs2(widen(x, None)), plan).reshape(-1)

    def mean_and_var():
        mean = total / n
        return mean, squares / n - mean * mean

    def quick():
        mean, var = (m.reshape(shape) for m in mean_and_var())
        return use(x, Centered(mean, jnp.zeros_like(mean), var))

    def exact():
        if mask is None:
            mean = (total / n).reshape(shape)
            shift = _first_if_near(mean, x, pool, 1e-5)
            stats = moments_from(shift, x, pool, plan)
        else:
            stats, _ = centered_moments(x, mask, pool, plan)
        again, *parts = plan.next_pass(x, *stats)
        return (use_exact or use)(again, Centered(*parts))

    # Squares that vanish in float32 say nothing about the spread.
    mean, var = mean_and_var()
    tells = (var > jnp.finfo(var.dtype).tiny) & (mean * mean <= 2 * var)
    return lax.cond(jnp.all(tells | (mean == 0)), quick, exact)


def _selected(x: jax.Array, mask: jax.Array | None, plan: Plan) -> jax.Array:
    """Returns `x` with zeros in the masked slots, put there in a pass of its own.

    XLA on CPU has no fast loops that select and sum.
    """
    return x if mask is None else plan.next_pass(keep(mask, x))[0]


def moments_from(shift: jax.Array, x: jax.Array, pool: Pool, plan: Plan) -> Centered:
    """Returns the moments of `x` on one device, with an element or the mean of each pool as shift.

    Rounding x - element to float32 errs by at most an ulp of the two largest results, whichever
    element it is; the squares are summed about the mean itself. Of a constant, x - element is
    exactly 0.
    """
    n = pool.size(x.shape)
    x, shift = plan.next_pass(x, widen(shift, None))
    offset = pool.sum(subtract(x, None, pool, shift), plan) / n
    x, shift_, offset_ = plan.next_pass(x, shift, offset)
    rest = subtract(x, None, pool, shift_, offset_)
    return Centered(shift, offset, pool.sum(abs2(rest), plan) / n)


def moments_about(
    shift: jax.Array, count: jax.Array, x: jax.Array, mask: jax.Array | None, pool: Pool, plan: Plan
) -> Centered:
    """Returns the moments of `x`, found from the sums of x - shift and of its square."""
    first = pool.sum(keep(mask, subtract(x, mask, pool, shift)), plan)
    x, mask, shift_ = plan.next_pass(x, mask, *plan.unshared(shift))
    second = pool.sum(abs2(keep(mask, subtract(x, mask, pool, shift_))), plan)
    if pool.names:
        first, second = collectives.psum(_apart((first, second)), pool.names, pool.index_groups)
        # Saved, or the backward pass would send them again.
        first, second = save(first), save(second)
    divisor = jnp.maximum(count, 1)
    offset = first / divisor.astype(first.dtype)
    if not _starts_at_first(mask, pool, plan):
        offset = _snap(offset)
    # Where the squares overflow the variance is infinite, not inf - inf.
    square = jnp.minimum(abs2(offset), jnp.finfo(second.dtype).max)
    return Centered(shift, offset, jnp.maximum(second / divisor - square, 0))


def _apart(sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Returns the sums less a bit, so that XLA does not merge them with those over mapped axes."""
    return tuple(reduce_precision(s, 1) for s in sums)


def find_shift(
    x: jax.Array, mask: jax.Array | None, pool: Pool, plan: Plan
) -> tuple[jax.Array, jax.Array]:
    """Returns a value within a few standard deviations of the mean, and the full count.

    Its bits must be the same wherever XLA computes it, also where it is fused into a consumer:
    a mean that one fusion rounds and another contracts into a fused multiply-add would no longer
    belong to its remainder. Reducing the precision works on the bits and cannot be contracted.
    """
    x = lax.stop_gradient(x)
    count = local_count(x, mask, pool, plan)
    if plan.sample and mask is None:
        x = _sample(x, pool)
    wide = widen(x, mask)
    size = pool.size(x.shape)
    # Dividing before adding keeps the sum of huge values finite; dividing by the size, not by
    # the count, lets the sum and the count cross devices together.
    inverse = 1 / jnp.asarray(size, wide.real.dtype)
    mean = pool.sum(wide * inverse.astype(wide.dtype), plan)
    if pool.names and mask is None:
        shards = collectives.shards(pool.names, pool.index_groups)
        mean = mean / jnp.asarray(shards, mean.dtype)
        (mean,) = collectives.psum(_apart((mean,)), pool.names, pool.index_groups)
        count = count * jnp.asarray(shards, count.dtype)
    elif pool.names:
        sums = (*_apart((mean,)), count)
        mean, count = collectives.psum(sums, pool.names, pool.index_groups)
    if mask is not None:
        mean = mean / (jnp.maximum(count, 1) * inverse).astype(mean.dtype)
    shift = reduce_precision(mean, 3)
    if _starts_at_first(mask, pool, plan):
        shift = _first_if_near(shift, x, pool, 1e-6)
    # Saved where they are made: what follows needs them, and so do its derivatives.
    return save(lax.stop_gradient(shift)), count if mask is None else save(count)


def _first_if_near(shift: jax.Array, x: jax.Array, pool: Pool, distance: float) -> jax.Array:
    """Returns the first element of each pool instead of `shift` where they are almost equal.

    A constant input equals its first element: then x - shift is exactly 0.
    """
    first = pool.first(x).astype(shift.dtype)
    return jnp.where(jnp.abs(first - shift) <= distance * jnp.abs(shift), first, shift)


def _starts_at_first(mask, pool: Pool, plan: Plan) -> bool:
    """Whether a constant input is found by its first element; else `_snap` finds it."""
    return plan.sample and mask is None and not pool.names


def _sample(x: jax.Array, pool: Pool) -> jax.Array:
    """Returns an eighth of the elements of each pool, spread over its longest axis; all of few.

    Their mean lies within sqrt(7) standard deviations of the pool's, whatever they are: if a share
    f of the elements has a mean that far off, (mean_f - mean)^2 f <= var (1 - f). The nearer it
    is, the more exact is the variance; so a few large elements must not lead it astray.
    """
    axis = max(pool.axes, key=lambda a: x.shape[a], default=None)
    if axis is None or x.shape[axis] < 16 or pool.size(x.shape) < 512:
        return x
    size = x.shape[axis]
    if axis < x.ndim - 1:
        return lax.slice_in_dim(x, 3, None, 8, axis)
    if size % 64:
        return x
    # Blocks of neighbours: memory is read in pieces.
    blocks = lax.slice_in_dim(split_axis(x, axis, 8), 0, size // 64, axis=axis + 1)
    return blocks.reshape(*x.shape[:axis], size // 8)


def _snap(offset: jax.Array) -> jax.Array:
    """Returns `offset` rounded to a few bits where that changes it by rounding errors only.

    Of a constant input, x - shift is a constant of few bits, but its mean need not be: XLA
    multiplies by the reciprocal of the count, and long sums are rounded. Snapped to it, the
    remainder is exactly 0. Elsewhere this moves the mean by at most 5e-7 of its remainder. In
    plain arithmetic, which XLA on CPU can fuse with the passes over the input.
    """
    if jnp.iscomplexobj(offset):
        return lax.complex(_snap(offset.real), _snap(offset.imag))
    value = lax.stop_gradient(offset)
    # Adding and subtracting a multiple of 2^12 rounds away 12 bits.
    large = value * 4096
    coarse = (value + large) - large
    rest = value - coarse
    slack = jnp.maximum(coarse, -coarse) * (4 * jnp.finfo(value.dtype).eps)
    snapped = coarse + (jnp.maximum(rest - slack, 0) + jnp.minimum(rest + slack, 0))
    # The difference is exact: this is `snapped`, with the derivative of `offset`.
    return offset + (snapped - value)


def mean_square(
    x: jax.Array, mask: jax.Array | None, pool: Pool, plan: Plan = PORTABLE
) -> tuple[Centered, jax.Array]:
    """Returns the mean of |x|^2 in place of the moments, and the count."""
    count = local_count(x, mask, pool, plan)
    total = pool.sum(abs2(widen(_selected(x, mask, plan), None)), plan)
    return Centered(None, None, total / (count if mask is None else jnp.maximum(count, 1))), count


def to_moments(stats: Centered, count: jax.Array, axes: Sequence[int]) -> Moments:
    """Returns public moments, without the reduced axes."""
    squeeze = functools.partial(jnp.squeeze, axis=tuple(axes))
    if stats.shift is None or stats.offset is None:
        mean = jnp.zeros_like(stats.var)
    else:
        mean = stats.shift + stats.offset
    return Moments(squeeze(mean), squeeze(stats.var), squeeze(count) if count.ndim else count)


def moments(
    x: ArrayLike,
    axis: Axes,
    *,
    mask: ArrayLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: AxisIndexGroups = None,
) -> Moments:
    """Computes the mean, the biased variance and the count of `x` over `axis`.

    mean = sum(x) / count and var = sum(|x - mean|^2) / count. The sums are taken of the remainder
    after a shift that lies close to the mean, never of x^2, so they stay exact for inputs whose
    mean is large beside their spread.

    Args:
      x: floating-point or complex array of rank 1 or more.
      axis: the axes reduced over, in any order and sign.
      mask: boolean, broadcasts against `x`; elements where it is False are left out.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) to pool over as well.
      axis_index_groups: groups of indices of `axis_name` that pool together.

    Returns:
      `Moments` in float32 or wider, without the reduced axes. With no element to pool, zeros.

    Raises:
      TypeError: `x` has an integer dtype, or `mask` is not boolean.
      ValueError: an axis is out of range or given twice, or `mask` does not broadcast.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> m = jaxnorm.moments(jnp.array([[1., 2., 3.], [4., 6., 8.]]), axis=1)
      >>> m.mean.tolist(), m.count.tolist()
      ([2.0, 6.0], 3.0)
    """
    x = _axes.check_input(x)
    axes = _axes.canonical_axes(axis, x.shape)
    names = _axes.check_axis_name(axis_name)
    if mask is not None:
        mask = _axes.expand_mask(mask, x.shape)
    pool = Pool(axes, None, names, collectives.freeze_groups(axis_index_groups))
    return pooled_moments(x, mask, pool)


@functools.partial(jax.jit, static_argnums=2, inline=True)
def pooled_moments(x, mask, pool: Pool) -> Moments:
    if x.size == 0:
        return empty_moments(x, pool)

    @functools.partial(jax.checkpoint, policy=save_only_statistics)
    def compute(x):
        stats, count = centered_moments(x, mask, pool)
        return to_moments(Centered(*map(save, stats)), count, pool.axes)

    return compute(x)


def empty_moments(x: jax.Array, pool: Pool) -> Moments:
    """Returns the moments of no elements: zeros."""
    shape = tuple(s for a, s in enumerate(x.shape) if a not in pool.axes)
    zero = jnp.zeros(shape, compute_dtype(x.dtype))
    return Moments(zero, zero.real, jnp.zeros((), zero.real.dtype))
