"""Mean, variance and count of the pooled elements: computed, merged, and averaged over time."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxnorm import _axes
from jaxnorm._axes import ArrayLike, Axes

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
    """Moments with the mean in two parts, each with the reduced axes kept at size 1.

    At mean/std 1e6 a float32 mean is off by up to 0.03 standard deviations, so the mean is
    carried as `shift + offset`. `x - shift` is nearly exact where the shift is large, and
    `offset` is the mean of that remainder.
    """

    shift: jax.Array
    offset: jax.Array
    var: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]

    def to_moments(self, axes: Sequence[int]) -> Moments:
        squeeze = functools.partial(jnp.squeeze, axis=tuple(axes))
        count = squeeze(self.count) if self.count.ndim else self.count
        return Moments(squeeze(self.shift + self.offset), squeeze(self.var), count)


def compute_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """Returns the dtype of statistics for inputs of `dtype`: float32 or wider."""
    dtype = jnp.dtype(dtype)
    return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)


def real_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """Returns the dtype of variances and counts for inputs of `dtype`."""
    return jnp.finfo(compute_dtype(dtype)).dtype


def abs2(x: jax.Array) -> jax.Array:
    """Returns |x|^2, real."""
    if jnp.iscomplexobj(x):
        return x.real * x.real + x.imag * x.imag
    return x * x


def _reduce_precision(x: jax.Array, dropped_bits: int) -> jax.Array:
    if jnp.iscomplexobj(x):
        return lax.complex(
            _reduce_precision(x.real, dropped_bits), _reduce_precision(x.imag, dropped_bits)
        )
    info = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, info.nexp, info.nmant - dropped_bits)


def save(x: jax.Array) -> jax.Array:
    """Marks `x` as a statistic that `jax.checkpoint` keeps for the backward pass."""
    if jnp.iscomplexobj(x):
        # jax.checkpoint cannot keep a complex array (it rounds what it keeps).
        return lax.complex(save(x.real), save(x.imag))
    return checkpoint_name(x, SAVED)


def pooled_sum(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Returns the sum over `axes`, which stay with size 1, with short sums only.

    XLA on CPU adds up several reduced axes in one sequence, whose rounding errors grow with its
    length; it splits a single long axis by itself. So each axis is summed on its own. Rounding
    away one bit between the sums keeps XLA from merging them into one again.
    """
    for position, axis in enumerate(sorted(axes, reverse=True)):
        if position:
            x = _reduce_precision(x, 1)
        x = jnp.sum(x, axis, keepdims=True)
    return x


def _shift(x: jax.Array, mask: jax.Array | None, axes: tuple[int, ...], names, groups):
    """Returns a value within about one standard deviation of the mean, and the masked count.

    Its bits must be the same wherever XLA computes it, also where it is fused into a consumer:
    a mean that one fusion rounds and another contracts into a fused multiply-add would no longer
    belong to its remainder. Reducing the precision works on the bits and cannot be contracted.
    """
    size = math.prod(x.shape[a] for a in axes)
    if mask is None:
        count = None
        # Dividing before adding keeps the sum of huge values finite.
        mean = pooled_sum(x * (1.0 / size), axes)
        if names:
            shards = lax.psum(1, names, axis_index_groups=groups)
            mean = lax.psum(mean / shards, names, axis_index_groups=groups)
    else:
        count = pooled_sum(jnp.broadcast_to(mask, x.shape).astype(x.real.dtype), axes)
        mean = pooled_sum(x / jnp.maximum(count, 1).astype(x.dtype), axes)
        if names:
            total, count = lax.psum(
                (mean * count.astype(x.dtype), count), names, axis_index_groups=groups
            )
            mean = total / jnp.maximum(count, 1).astype(x.dtype)
    shift = _reduce_precision(mean, 3)
    if mask is None and not names:
        # A constant input equals its first element: then x - shift is exactly 0.
        first = lax.slice_in_dim(x, 0, 1, axis=axes[0])
        for axis in axes[1:]:
            first = lax.slice_in_dim(first, 0, 1, axis=axis)
        shift = jnp.where(jnp.abs(first - shift) <= 1e-6 * jnp.abs(shift), first, shift)
    return shift, count


def centered_moments(
    x: jax.Array,
    mask: jax.Array | None,
    axes: tuple[int, ...],
    names: tuple[str, ...] = (),
    groups: AxisIndexGroups = None,
) -> Centered:
    """Returns the moments of `x`, a float32 or wider array whose masked slots are 0."""
    size = math.prod(x.shape[a] for a in axes)
    real = x.real.dtype
    if x.size == 0:
        kept = tuple(1 if a in axes else s for a, s in enumerate(x.shape))
        zero = jnp.zeros(kept, real)
        return Centered(zero.astype(x.dtype), zero.astype(x.dtype), zero, jnp.zeros((), real))
    shift, count = _shift(lax.stop_gradient(x), mask, axes, names, groups)
    shift = save(lax.stop_gradient(shift))
    centered = x - shift
    if mask is not None:
        centered = jnp.where(mask, centered, 0)
    first, second = pooled_sum(centered, axes), pooled_sum(abs2(centered), axes)
    if names:
        first, second = lax.psum((first, second), names, axis_index_groups=groups)
    if count is None:
        shards = lax.psum(1, names, axis_index_groups=groups) if names else 1
        count = jnp.asarray(size * shards, real)
    divisor = jnp.maximum(count, 1)
    offset = first / divisor.astype(x.dtype)
    var = jnp.maximum(second / divisor - abs2(offset), 0)
    return Centered(shift, save(offset), save(var), count)


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
    return _moments(x, mask, axes, names, freeze_groups(axis_index_groups))


def freeze_groups(groups: AxisIndexGroups) -> tuple[tuple[int, ...], ...] | None:
    """Returns `axis_index_groups` in a hashable form."""
    return None if groups is None else tuple(tuple(int(i) for i in group) for group in groups)


def save_only_statistics(*names, **params):
    """A `jax.checkpoint` policy: keep per-group statistics, compute all else again."""
    return jax.checkpoint_policies.save_only_these_names(SAVED)(*names, **params)


@functools.partial(jax.jit, static_argnums=(2, 3, 4), inline=True)
def _moments(x, mask, axes, names, groups) -> Moments:
    @functools.partial(jax.checkpoint, policy=save_only_statistics)
    def compute(x):
        wide = x.astype(compute_dtype(x.dtype))
        if mask is not None:
            wide = jnp.where(mask, wide, 0)
        return centered_moments(wide, mask, axes, names, groups).to_moments(axes)

    return compute(x)


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
