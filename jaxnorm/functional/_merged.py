"""Statistics of larger pools, merged from those of smaller ones without another pass over x."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._core import collectives
from jaxnorm._core.moments import Moments
from jaxnorm._core.residuals import save
from jaxnorm._core.split_moments import SplitMoments
from jaxnorm._core.statistics import bounded
from jaxnorm.functional.merge import merge_moments


def merge_along(
    stats: SplitMoments, count: jax.Array, axes: tuple[int, ...], names: tuple[str, ...] = ()
) -> tuple[SplitMoments, jax.Array]:
    """Returns the statistics of the union of pools along `axes` and mapped axes, and its count.

    The mean stays in two parts: a constant near the means, and their mean less that.
    """
    count = jnp.broadcast_to(count, stats.var.shape)
    held = (count > 0).astype(stats.var.dtype)
    shift = lax.stop_gradient(stats.shift)
    sums = [jnp.sum(v, axes, keepdims=True) for v in (jnp.where(count > 0, shift, 0), held)]
    if names:
        sums = list(collectives.psum(tuple(sums), names))
    # Any constant would do, if it is the same in every pass: rounded, and kept.
    center = save(bounded(sums[0] / jnp.maximum(sums[1], 1).astype(shift.dtype), 3))
    merged = merge_moments(
        Moments(rest_of(stats, center), stats.var, count), axis=axes, axis_name=names or None
    )
    offset, var, total = (jnp.expand_dims(part, axes) for part in merged)
    return SplitMoments(center, offset, var), total


def rest_of(stats: SplitMoments, center: jax.Array) -> jax.Array:
    """Returns the mean less `center`, exact where they are close."""
    rest = stats.shift - center
    return rest if stats.offset is None else rest + stats.offset
