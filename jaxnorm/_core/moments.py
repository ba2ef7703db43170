"""Mean, variance and count of the pooled elements: computed, merged, and averaged over time."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxnorm._core.mesh import spec_of, splits_evenly, without_explicit_axes
from jaxnorm._core.pool import Pool, compute_dtype
from jaxnorm._core.residuals import recomputed, save
from jaxnorm._core.split_moments import SplitMoments
from jaxnorm._core.statistics import compute_statistics


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


def to_moments(stats: SplitMoments, count: jax.Array, axes: Sequence[int]) -> Moments:
    """Returns public moments, without the reduced axes."""
    squeeze = functools.partial(jnp.squeeze, axis=tuple(axes))
    parts = [part for part in (stats.shift, stats.offset) if part is not None]
    mean = sum(parts[1:], parts[0]) if parts else jnp.zeros_like(stats.var)
    return Moments(squeeze(mean), squeeze(stats.var), squeeze(count) if count.ndim else count)


@functools.partial(jax.jit, static_argnums=2, inline=True)
def pooled_moments(x, mask, pool: Pool) -> Moments:
    if x.size == 0:
        return empty_moments(x, pool)

    @recomputed
    def compute(x, mask):
        stats, count = compute_statistics(x, mask, pool, None)
        return to_moments(SplitMoments(*map(save, stats)), count, pool.axes)

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
