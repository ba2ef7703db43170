"""Moments of disjoint sets of elements merged into those of all."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxnorm._core import axes as _axes
from jaxnorm._core import collectives
from jaxnorm._core.axes import Axes
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.mesh import broadcast_spec, without_explicit_axes
from jaxnorm._core.moments import Moments
from jaxnorm._core.pool import abs2
from jaxnorm._core.restored import as_moments


def merge_moments(
    *moments: Moments,
    axis: Axes | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: AxisIndexGroups = None,
) -> Moments:
    """Merges the moments of disjoint sets of elements into those of their union.

    count = n_a + n_b, mean = mean_a + (mean_b - mean_a) n_b / count, and
    var = (n_a var_a + n_b var_b + |mean_b - mean_a|^2 n_a n_b / count) / count,
    exact in any order and however often; moments of count 0 change nothing. This is the law of
    total variance: the variance within the sets plus the variance of their means.

    Counts have the dtype of the variance. A float32 count stops growing where what is added rounds
    to nothing: for single observations at 2^24 (16.8 million), for sets of 64 at 2^30. From there
    on the moments hardly move. To go on, merge sets with each other first (`axis`), or keep them in
    float64.

    Args:
      *moments: one or more `Moments` whose shapes broadcast.
      axis: axes of the moments' own arrays to merge along as well, as for microbatches stacked
        there; they are removed. A count of lower rank has the first axes.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) to merge over as well, in two
        collectives.
      axis_index_groups: groups of indices of `axis_name` that merge together.

    Returns:
      The `Moments` of all elements together.

    Raises:
      ValueError: no moments are given, or `axis` is out of range.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> a = jaxnorm.moments(jnp.array([1., 2.]), axis=0)
      >>> b = jaxnorm.moments(jnp.array([3., 4., 5.]), axis=0)
      >>> m = jaxnorm.merge_moments(a, b)
      >>> float(m.mean), float(m.var), float(m.count)
      (3.0, 2.0, 5.0)

    Reference: Chan, Golub & LeVeque 1979, Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances.
    """
    if not moments:
        raise ValueError("merge_moments needs at least one Moments, got none.")
    given = tuple(Moments(*map(jnp.asarray, as_moments(m, "each argument"))) for m in moments)
    out: Any = Moments._make(broadcast_spec(*arrays) for arrays in zip(*given, strict=True))
    axes = ()
    if axis is not None:
        axes = _axes.canonical_axes(axis, np.broadcast_shapes(*(m.mean.shape for m in given)))
        kept: Any = PartitionSpec(*(names for a, names in enumerate(out.mean) if a not in axes))
        out = Moments(kept, kept, kept)
    names, groups = _axes.check_axis_name(axis_name), collectives.freeze_groups(axis_index_groups)

    def merge(*moments):
        merged = functools.reduce(_merge_two, moments)
        if axes:
            merged = _merge_by(merged, lambda *sums: [jnp.sum(s, axes) for s in sums], axes)
        if names:
            merged = _merge_by(merged, lambda *sums: collectives.psum(sums, names, groups))
        return merged

    return without_explicit_axes(merge, out)(*given)


def _merge_two(a: Moments, b: Moments) -> Moments:
    # From the larger side, so that rounding is of the change alone: weights n_a / n and n_b / n,
    # each rounded, do not add up to 1, and over many small batches the variance would drift.
    is_larger = b.count > a.count
    pairs = list(zip(a, b, strict=True))
    mean, var, many = (jnp.where(is_larger, v, u) for u, v in pairs)
    new_mean, new_var, few = (jnp.where(is_larger, u, v) for u, v in pairs)
    count = many + few
    # An empty side takes the other's values: its own may be anything, even NaN.
    new_mean, new_var = (jnp.where(few > 0, v, u) for u, v in ((mean, new_mean), (var, new_var)))
    safe = jnp.where(count > 0, count, 1)
    weight = few / safe
    delta = new_mean - mean
    # An infinite variance stays as it is.
    change = jnp.where(var < jnp.inf, new_var - var, 0) + abs2(delta) * (many / safe)
    mean = jnp.where(count > 0, mean + delta * weight.astype(delta.dtype), 0)
    return Moments(mean, jnp.where(count > 0, var + weight * change, 0), count)


def _merge_by(m: Moments, total, expanded: tuple[int, ...] = ()) -> Moments:
    """Merges the parts of `m` that `total` adds up; it removes the axes `expanded`."""
    mean, var, count = m
    if expanded:
        # A scalar count becomes one of rank 1 when moments are stacked or mapped over.
        count = jnp.expand_dims(count, tuple(range(count.ndim, mean.ndim)))
        count = jnp.broadcast_to(count, mean.shape)
    mean, var = (jnp.where(count > 0, value, 0) for value in (mean, var))
    weighted, all_counts = total(mean * count.astype(mean.dtype), count)
    divisor = jnp.maximum(all_counts, 1)
    center = weighted / divisor.astype(mean.dtype)
    # The mean of the remainder is added, so that a rounded mean does not widen the variance.
    delta = mean - jnp.expand_dims(center, expanded)
    rest, squares = total(delta * count.astype(mean.dtype), (var + abs2(delta)) * count)
    rest = rest / divisor.astype(mean.dtype)
    return Moments(center + rest, jnp.maximum(squares / divisor - abs2(rest), 0), all_counts)
