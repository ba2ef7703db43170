"""Mean, variance and count of the pooled elements: computed, merged, and averaged over time."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.mesh import spec_of, splits_evenly, without_explicit_axes
from jaxnorm._core.pool import Pool, compute_dtype, pool_of
from jaxnorm._core.residuals import recomputed, save
from jaxnorm._core.statistics import Centered, find


class Moments(NamedTuple):
    """Mean, biased variance and number of the elements pooled.

    Functions that take it also take a mapping of its parts by name, as it comes back from a
    checkpoint that is read without a target.

    Attributes:
      mean: the mean; the axes reduced over are removed.
      var: the variance, divided by `count` (biased); same shape, real.
      count: how many elements were pooled; broadcasts against `mean`.
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


def to_moments(stats: Centered, count: jax.Array, axes: Sequence[int]) -> Moments:
    """Returns public moments, without the reduced axes."""
    squeeze = functools.partial(jnp.squeeze, axis=tuple(axes))
    parts = [part for part in (stats.shift, stats.offset) if part is not None]
    mean = sum(parts[1:], parts[0]) if parts else jnp.zeros_like(stats.var)
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
    mask = _axes.expand_mask(mask, x)
    pool = pool_of(axes, axis_name, axis_index_groups)
    return pooled_moments(x, mask, pool)


@functools.partial(jax.jit, static_argnums=2, inline=True)
def pooled_moments(x, mask, pool: Pool) -> Moments:
    if x.size == 0:
        return empty_moments(x, pool)

    @recomputed
    def compute(x, mask):
        stats, count = find(x, mask, pool, None)
        return to_moments(Centered(*map(save, stats)), count, pool.axes)

    return without_explicit_axes(compute, moments_specs(x, mask, pool))(x, mask)


def moments_specs(x: jax.Array, mask: jax.Array | None, pool: Any) -> Moments:
    """Returns how the moments of `x` are divided over an explicit mesh: as what is not pooled."""
    channel, parts = pool.groups or (None, 1)
    kept = [a for a in range(x.ndim) if a not in pool.axes]
    spec = spec_of(x)
    divided = [None if a == channel and not splits_evenly(x, a, parts) else spec[a] for a in kept]
    each: Any = PartitionSpec(*divided)
    whole: Any = PartitionSpec()
    return Moments(each, each, whole if mask is None else each)


def empty_moments(x: jax.Array, pool: Pool) -> Moments:
    """Returns the moments of no elements: zeros."""
    shape = tuple(s for a, s in enumerate(x.shape) if a not in pool.axes)
    zero = jnp.zeros(shape, compute_dtype(x.dtype))
    return Moments(zero, zero.real, jnp.zeros((), zero.real.dtype))
