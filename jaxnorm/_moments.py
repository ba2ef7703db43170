"""Mean, variance and count of the pooled elements: computed, merged, and averaged over time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxnorm import _axes, _collectives
from jaxnorm._axes import ArrayLike, Axes
from jaxnorm._collectives import AxisIndexGroups
from jaxnorm._pool import Pool, abs2, compute_dtype, real_dtype, reduce_precision, widen

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


def as_is(*arrays: Any) -> Any:
    """Passes arrays from one stage of a computation to the next."""
    return arrays


def local_count(x: jax.Array, mask: jax.Array | None, pool: Pool) -> jax.Array:
    """Returns the number of elements of each pool on this device, of rank 0 without a mask."""
    real = real_dtype(x.dtype)
    if mask is None:
        return jnp.asarray(pool.size(x.shape), real)
    return pool.sum(jnp.broadcast_to(mask, x.shape).astype(real))


def centered_moments(
    x: jax.Array, mask: jax.Array | None, pool: Pool, isolate: Callable[..., Any] = as_is
) -> tuple[Centered, jax.Array]:
    """Returns the moments of `x` and their count.

    `isolate` stands between the passes over `x`; see `jaxnorm._primitives.isolate`.
    """
    shift, count = _shift(lax.stop_gradient(x), mask, pool)
    # Saved where they are made: what follows needs them, and so do its derivatives.
    shift, count = save(lax.stop_gradient(shift)), save(count)
    x, mask, shift = isolate(x, mask, shift)
    centered = widen(x, mask) - pool.spread(shift, x.shape)
    if mask is not None:
        centered = jnp.where(mask, centered, 0)
    first, second = pool.sum(centered), pool.sum(abs2(centered))
    if pool.names:
        first, second = _collectives.psum((first, second), pool.names, pool.index_groups)
    divisor = jnp.maximum(count, 1)
    offset = _snap(first / divisor.astype(first.dtype))
    var = jnp.maximum(second / divisor - abs2(offset), 0)
    # Of a sum that overflows (inf - inf would be NaN) the inverse root is 0.
    return Centered(shift, offset, jnp.where(second < jnp.inf, var, jnp.inf)), count


def _shift(x, mask, pool: Pool) -> tuple[jax.Array, jax.Array]:
    """Returns a value within about one standard deviation of the mean, and the full count.

    Its bits must be the same wherever XLA computes it, also where it is fused into a consumer:
    a mean that one fusion rounds and another contracts into a fused multiply-add would no longer
    belong to its remainder. Reducing the precision works on the bits and cannot be contracted.
    """
    wide = widen(x, mask)
    size = pool.size(x.shape)
    # Dividing before adding keeps the sum of huge values finite; dividing by the size, not by
    # the count, lets the sum and the count cross devices together.
    inverse = 1 / jnp.asarray(size, wide.real.dtype)
    mean, count = pool.sum(wide * inverse.astype(wide.dtype)), local_count(x, mask, pool)
    if pool.names and mask is None:
        shards = _collectives.shards(pool.names, pool.index_groups)
        mean = mean / jnp.asarray(shards, mean.dtype)
        (mean,) = _collectives.psum((mean,), pool.names, pool.index_groups)
        count = count * jnp.asarray(shards, count.dtype)
    elif pool.names:
        mean, count = _collectives.psum((mean, count), pool.names, pool.index_groups)
    if mask is not None:
        mean = mean / (jnp.maximum(count, 1) * inverse).astype(mean.dtype)
    return reduce_precision(mean, 3), count


def _snap(offset: jax.Array) -> jax.Array:
    """Returns `offset` rounded to a few bits where that changes it by rounding errors only.

    Of a constant input, x - shift is a constant of few bits, but its mean need not be: XLA
    multiplies by the reciprocal of the count, and long sums are rounded. Snapped to it, the
    remainder is exactly 0. Elsewhere this moves the mean by less than 1e-6 of its remainder.
    """
    if jnp.iscomplexobj(offset):
        return lax.complex(_snap(offset.real), _snap(offset.imag))
    coarse = lax.stop_gradient(reduce_precision(offset, 12))
    near = jnp.abs(offset - coarse) <= 1e-6 * jnp.abs(coarse)
    # The difference carries the gradient: zero in value, the identity in derivative.
    return jnp.where(near, coarse + (offset - lax.stop_gradient(offset)), offset)


def mean_square(x: jax.Array, mask: jax.Array | None, pool: Pool) -> tuple[Centered, jax.Array]:
    """Returns the mean of |x|^2 in place of the moments, and the count."""
    count = local_count(x, mask, pool)
    total = pool.sum(abs2(widen(x, mask)))
    return Centered(None, None, total / jnp.maximum(count, 1)), count


def to_moments(stats: Centered, count: jax.Array, axes: Sequence[int]) -> Moments:
    """Returns public moments, without the reduced axes."""
    squeeze = functools.partial(jnp.squeeze, axis=tuple(axes))
    mean = jnp.zeros_like(stats.var) if stats.shift is None else stats.shift + stats.offset
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
    pool = Pool(axes, None, names, _collectives.freeze_groups(axis_index_groups))
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
