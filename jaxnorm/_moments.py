"""Mean, variance and count of the pooled elements: computed, merged, and averaged over time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxnorm import _axes
from jaxnorm._axes import ArrayLike, Axes
from jaxnorm._pool import Pool, abs2, compute_dtype, real_dtype, reduce_precision, widen

SAVED = "jaxnorm_statistics"

AxisIndexGroups = Sequence[Sequence[int]] | None


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
    count = local_count(x, mask, pool)
    shift, count = _shift(lax.stop_gradient(x), mask, count, pool)
    shift = lax.stop_gradient(shift)
    x, mask, shift = isolate(x, mask, shift)
    centered = widen(x, mask) - pool.spread(shift, x.shape)
    if mask is not None:
        centered = jnp.where(mask, centered, 0)
    first, second = pool.sum(centered), pool.sum(abs2(centered))
    if pool.names:
        first, second = lax.psum((first, second), pool.names, axis_index_groups=pool.index_groups)
    divisor = jnp.maximum(count, 1)
    offset = first / divisor.astype(first.dtype)
    var = jnp.maximum(second / divisor - abs2(offset), 0)
    return Centered(shift, offset, var), count


def _shift(x, mask, count, pool: Pool) -> tuple[jax.Array, jax.Array]:
    """Returns a value within about one standard deviation of the mean, and the full count.

    Its bits must be the same wherever XLA computes it, also where it is fused into a consumer:
    a mean that one fusion rounds and another contracts into a fused multiply-add would no longer
    belong to its remainder. Reducing the precision works on the bits and cannot be contracted.
    """
    wide = widen(x, mask)
    # Dividing before adding keeps the sum of huge values finite.
    inverse = pool.spread(1 / jnp.maximum(count, 1), x.shape) if count.ndim else 1 / count
    mean = pool.sum(wide * inverse.astype(wide.dtype))
    if pool.names:
        groups = pool.index_groups
        if mask is None:
            shards = lax.psum(1, pool.names, axis_index_groups=groups)
            mean, count = (
                lax.psum(mean / shards, pool.names, axis_index_groups=groups),
                count * shards,
            )
        else:
            total, count = lax.psum(
                (mean * count.astype(mean.dtype), count), pool.names, axis_index_groups=groups
            )
            mean = total / jnp.maximum(count, 1).astype(mean.dtype)
    shift = reduce_precision(mean, 3)
    if mask is None and not pool.names:
        # A constant input equals its first element: then x - shift is exactly 0.
        first = pool.first(x).astype(wide.dtype)
        shift = jnp.where(jnp.abs(first - shift) <= 1e-6 * jnp.abs(shift), first, shift)
    return shift, count


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
    pool = Pool(axes, None, names, freeze_groups(axis_index_groups))
    return _moments(x, mask, pool)


def freeze_groups(groups: AxisIndexGroups) -> tuple[tuple[int, ...], ...] | None:
    """Returns `axis_index_groups` in a hashable form."""
    return None if groups is None else tuple(tuple(int(i) for i in group) for group in groups)


@functools.partial(jax.jit, static_argnums=2, inline=True)
def _moments(x, mask, pool: Pool) -> Moments:
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


def merge_moments(*moments: Moments) -> Moments:
    """Merges the moments of disjoint sets of elements into those of their union.

    count = n_a + n_b, mean = mean_a + (mean_b - mean_a) n_b / count, and
    var = (n_a var_a + n_b var_b + |mean_b - mean_a|^2 n_a n_b / count) / count
    (Chan, Golub & LeVeque 1979), exact in any order; moments of count 0 change nothing.

    Args:
      *moments: one or more `Moments` whose shapes broadcast.

    Returns:
      The `Moments` of all elements together.

    Raises:
      ValueError: no moments are given.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> a = jaxnorm.moments(jnp.array([1., 2.]), axis=0)
      >>> b = jaxnorm.moments(jnp.array([3., 4., 5.]), axis=0)
      >>> m = jaxnorm.merge_moments(a, b)
      >>> float(m.mean), float(m.var), float(m.count)
      (3.0, 2.0, 5.0)
    """
    if not moments:
        raise ValueError("merge_moments needs at least one Moments, got none.")
    return functools.reduce(_merge_two, (Moments(*map(jnp.asarray, m)) for m in moments))


def _merge_two(a: Moments, b: Moments) -> Moments:
    count = a.count + b.count
    safe = jnp.where(count > 0, count, 1)
    # An empty side takes the other's values: its own may be anything, even NaN.
    mean_a, var_a = (jnp.where(a.count > 0, u, v) for u, v in zip(a[:2], b[:2], strict=True))
    mean_b, var_b = (jnp.where(b.count > 0, v, u) for u, v in zip(a[:2], b[:2], strict=True))
    weight_a, weight_b = a.count / safe, b.count / safe
    delta = mean_b - mean_a
    mean = jnp.where(count > 0, mean_a + delta * weight_b.astype(delta.dtype), 0)
    var = weight_a * var_a + weight_b * var_b + abs2(delta) * (weight_a * weight_b)
    return Moments(mean, jnp.where(count > 0, var, 0), count)


def update_moments(
    running: Moments, batch: Moments, *, momentum: float, unbiased: bool = True
) -> Moments:
    """Moves running moments towards those of a batch.

    new = momentum * running + (1 - momentum) * batch, for the mean and the variance. With
    `unbiased`, the batch's variance is first multiplied by m / (m - 1), m = `batch.count`, as in
    the batch norm paper (Ioffe & Szegedy 2015, arXiv:1502.03167).

    Args:
      running: the running moments; their dtypes are kept.
      batch: the batch's moments; where its count is 0 nothing changes.
      momentum: the decay of the old value, in [0, 1].
      unbiased: whether the running variance estimates the population's.

    Returns:
      The new running `Moments`; `count` is the number of elements seen.

    Raises:
      ValueError: `momentum` is a number outside [0, 1].

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> start = jaxnorm.Moments(jnp.zeros(()), jnp.ones(()), jnp.zeros(()))
      >>> batch = jaxnorm.moments(jnp.array([1., 3.]), axis=0)
      >>> new = jaxnorm.update_moments(start, batch, momentum=0.5)
      >>> float(new.mean), float(new.var), float(new.count)
      (1.0, 1.5, 2.0)
    """
    if isinstance(momentum, (int, float)) and not 0 <= momentum <= 1:
        raise ValueError(f"momentum must lie in [0, 1], got {momentum!r}.")
    running, batch = (Moments(*map(jnp.asarray, m)) for m in (running, batch))
    var = batch.var
    if unbiased:
        var = var * (batch.count / jnp.maximum(batch.count - 1, 1))

    def move(old, new):
        moved = momentum * old + (1 - momentum) * new
        return jnp.where(batch.count > 0, moved, old).astype(old.dtype)

    return Moments(
        move(running.mean, batch.mean),
        move(running.var, var),
        (running.count + batch.count).astype(running.count.dtype),
    )
