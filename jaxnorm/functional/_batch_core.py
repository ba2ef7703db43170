"""The decisions of batch norm, composed: what is pooled, and which statistics normalize."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxnorm._core import axes as _axes
from jaxnorm._core import collectives, residuals
from jaxnorm._core import moments as _moments
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.formula import Options, apply_affine, inverse_root, normalized
from jaxnorm._core.mesh import count_shards, is_manual, placed, spec_of, without_explicit_axes
from jaxnorm._core.moments import Moments
from jaxnorm._core.normalize import normalize, statistics_of
from jaxnorm._core.pool import Pool, compute_dtype, pool_of, zero_masked
from jaxnorm._core.split_moments import SplitMoments
from jaxnorm._core.standardize import expand_moment, standardize_full
from jaxnorm._core.sums import split_axis
from jaxnorm.functional._corrections import Correction
from jaxnorm.functional._restored import as_moments
from jaxnorm.functional._segments import (
    SegmentPool,
    affine_of_segments,
    find_statistics,
    make_pool,
    number_by_rows,
)
from jaxnorm.functional.merge import merge_moments


class Inputs(NamedTuple):
    """The arrays of a batch norm, at the rank of `x`, or None."""

    x: jax.Array
    gamma: jax.Array | None
    beta: jax.Array | None
    mask: jax.Array | None
    running: Moments | None  # the pooled axes have size 1; segments take the place of examples


class Batch(NamedTuple):
    """Where the examples lie, and how they are divided, if they are."""

    axis: int = 0
    virtual: int = 1
    segments: tuple[jax.Array, int] | None = None  # the segment of each example; how many


def check_inputs(
    x: ArrayLike,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    mask: ArrayLike | None,
    axis: Axes,
    feature_axes: Axes | None,
) -> tuple[Inputs, tuple[int, ...]]:
    """Returns the arrays at the rank of `x`, without running moments, and the axes pooled."""
    x = _axes.check_input(x)
    axes = _axes.canonical_axes(axis, x.shape)
    kept = _axes.other_axes(axes, x.ndim)
    gamma = _axes.expand_parameter(gamma, x, feature_axes, kept, "gamma")
    beta = _axes.expand_parameter(beta, x, feature_axes, kept, "beta")
    mask = _axes.expand_mask(mask, x)
    return Inputs(x, gamma, beta, mask, None), axes


def make_options(
    x: jax.Array,
    axes: tuple[int, ...],
    epsilon: float,
    axis_name: str | Sequence[str] | None,
    axis_index_groups: AxisIndexGroups,
    dtype: DTypeLike | None,
) -> Options:
    """Returns the checked options of a batch norm."""
    pool = pool_of(axes, axis_name, axis_index_groups)
    return Options(pool, _axes.check_epsilon(epsilon), _axes.result_dtype(x, dtype))


def check_batch_axis(batch_axis: int, shape: tuple[int, ...], axes: Sequence[int]) -> int:
    """Returns the axis of the examples, which must be pooled."""
    (axis,) = _axes.canonical_axes(batch_axis, shape, "batch_axis")
    if axis not in axes:
        raise ValueError(
            f"batch_axis={batch_axis!r} must be one of the axes pooled, which are {tuple(axes)} "
            f"for the input of shape {shape}."
        )
    return axis


def expand_running(running: Moments, inputs: Inputs, axes, batch: Batch) -> Inputs:
    """Returns `inputs` with the `running` moments; one row for each segment, if there are any."""
    running = as_moments(running, "running")
    shape, spec = inputs.x.shape, spec_of(inputs.x)
    if batch.segments is not None:
        # To the moments, the segments are what the examples are to the input: an axis that stays.
        shape = (*shape[: batch.axis], batch.segments[1], *shape[batch.axis + 1 :])
        spec = (*spec[: batch.axis], None, *spec[batch.axis + 1 :])
        position = _position(axes, batch.axis)
        mean, var = (jnp.moveaxis(jnp.asarray(v), 0, position) for v in running[:2])
        running = Moments(mean, var, running[2])
        axes = tuple(a for a in axes if a != batch.axis)
    mean, var = (
        placed(expand_moment(value, shape, axes, name), spec)
        for value, name in ((running[0], "running.mean"), (running[1], "running.var"))
    )
    return inputs._replace(running=Moments(mean, var, jnp.asarray(running[2])))


def normalize_by_running(inputs: Inputs, batch: Batch, options: Options) -> jax.Array:
    """Normalizes by the running statistics, with segments by those of each example's own."""
    x, gamma, beta, mask, running = inputs
    assert running is not None
    common = options.epsilon, 0.0, options.dtype
    if batch.segments is None:
        return standardize_full(x, running.mean, running.var, gamma, beta, mask, *common)

    def compute(inputs, ids):
        x, gamma, beta, mask, running = inputs
        pool = make_pool(options.pool, ids, number, batch.axis)
        mean, var = (pool.broadcast_to_input(value, x.shape) for value in running[:2])
        mask = _both(mask, pool.holds(x.ndim))
        return standardize_full(x, mean, var, gamma, beta, mask, *common)

    ids, number = batch.segments
    return without_explicit_axes(compute, spec_of(x))(inputs, ids)


def batch_moments(inputs: Inputs, batch: Batch, options: Options) -> Moments:
    """Returns the moments that `normalize_by_batch` returns, without normalizing."""
    if batch.segments is None:
        return normalize(inputs.x, None, None, inputs.mask, options, _near(inputs))[1]

    def compute(x, mask, ids):
        pool = make_pool(options.pool, ids, number, batch.axis)
        stats, count = find_statistics(x, _both(mask, pool.holds(x.ndim)), pool)
        return _segment_moments(stats, count, pool)

    ids, number = batch.segments
    out = _segment_specs(inputs.x, options.pool, batch.axis)
    moments = without_explicit_axes(compute, out)(inputs.x, inputs.mask, ids)
    return _segments_first(moments, options, batch)


def normalize_by_batch(
    inputs: Inputs, batch: Batch, correction: Correction | None, options: Options
) -> tuple[jax.Array, Moments]:
    """Normalizes by the batch's statistics, which `correction` brings closer to the running ones.

    Returns the result and the batch's moments: those of all virtual batches together; with
    segments one row for each.
    """
    if batch.virtual > 1:
        return _normalize_virtual(inputs, batch, correction, options)
    if batch.segments is None and correction is None:
        x, gamma, beta, mask, _ = inputs
        return normalize(x, gamma, beta, mask, options, _near(inputs))
    if batch.segments is None:
        return _normalize_corrected(inputs, correction, options)
    ids, number = batch.segments
    y, moments = _normalize_segments(inputs, ids, correction, number, batch.axis, options)
    return y, _segments_first(moments, options, batch)


def _near(inputs: Inputs) -> jax.Array | None:
    """Returns the running mean, which is near the batch's but in the first steps."""
    return None if inputs.running is None else inputs.running.mean


@functools.partial(jax.jit, static_argnums=2, inline=True)
def _normalize_corrected(inputs: Inputs, correction: Correction, options: Options):
    @residuals.recomputed
    def compute(inputs, correction):
        inputs = _widened(inputs)
        stats, count = statistics_of(inputs.x, inputs.mask, options, _near(inputs))
        y = _apply(correction, stats, inputs, options)
        moments = _moments.to_moments(stats, count, options.pool.axes)
        # Of nothing the mean is 0, and not the running one that the sums are about.
        return y, moments._replace(mean=jnp.where(moments.count > 0, moments.mean, 0))

    x, mask = inputs.x, inputs.mask
    out = spec_of(x), _moments.moments_specs(x, mask, options.pool)
    return without_explicit_axes(compute, out)(inputs, correction)


@functools.partial(jax.jit, static_argnums=(3, 4, 5), inline=True)
def _normalize_segments(inputs, ids, correction, number, batch_axis, options: Options):
    @residuals.recomputed
    def compute(inputs, ids, correction):
        rows, size, found = ids, number, None
        if correction is None and not options.pool.names:
            rows, size, found = number_by_rows(ids, number)
        pool: Any = make_pool(options.pool, rows, size, batch_axis)
        inputs = inputs._replace(mask=_both(inputs.mask, pool.holds(inputs.x.ndim)))
        inputs = _widened(inputs)
        stats, count = find_statistics(inputs.x, inputs.mask, pool)
        y = _apply_to_segments(correction, stats, inputs, pool, options)
        moments = _segment_moments(stats, count, pool)
        if found is not None:
            at = _position(options.pool.axes, batch_axis)
            moments = Moments(*(jnp.take(v, found, at, mode="fill", fill_value=0) for v in moments))
        return y, moments

    out = spec_of(inputs.x), _segment_specs(inputs.x, options.pool, batch_axis)
    return without_explicit_axes(compute, out)(inputs, ids, correction)


def _widened(inputs: Inputs) -> Inputs:
    """Widens x once: the gradients of its two uses are added before they are rounded."""
    return inputs._replace(x=inputs.x.astype(compute_dtype(inputs.x.dtype)))


def _apply(
    correction: Correction | None, stats: SplitMoments, inputs: Inputs, options: Options
) -> jax.Array:
    """Returns y, by statistics that `correction` brings closer to the running ones."""
    x, gamma, beta, mask, running = inputs
    scale = bias = None
    if correction is not None and running is not None:
        stats, scale, bias = correction.apply(stats, running, options.epsilon)
    y = normalized(x, mask, stats, options)
    scale, bias = (options.pool.broadcast_to_input(value, x.shape) for value in (scale, bias))
    y = apply_affine(y, scale, bias, 0.0)
    return zero_masked(mask, apply_affine(y, gamma, beta, 0.0)).astype(options.dtype)


def _apply_to_segments(
    correction: Correction | None,
    stats: SplitMoments,
    inputs: Inputs,
    pool: SegmentPool,
    options: Options,
) -> jax.Array:
    """Returns y, as `_apply`, with statistics of segments."""
    x, gamma, beta, mask, running = inputs
    bias = None
    if correction is not None and running is not None:
        stats, factor, bias = correction.apply(stats, running, options.epsilon)
        scale = inverse_root(stats.var, options.epsilon)
        scale = scale if factor is None else scale * factor
    else:
        scale = inverse_root(stats.var, options.epsilon)
    y = affine_of_segments(x, mask, pool, stats, scale, bias, gamma, beta)
    return y.astype(options.dtype)


def _segment_moments(stats: SplitMoments, count: jax.Array, pool: SegmentPool) -> Moments:
    """Returns public moments, with a count for each mean."""
    count = jnp.broadcast_to(count, stats.var.shape)
    return _moments.to_moments(stats, count, pool.axes)


def _segments_first(moments: Moments, options: Options, batch: Batch) -> Moments:
    position = _position(options.pool.axes, batch.axis)
    return Moments(*(jnp.moveaxis(v, position, 0) for v in moments))


def _both(mask: jax.Array | None, other: jax.Array) -> jax.Array:
    return other if mask is None else mask & other


def _position(axes: Sequence[int], axis: int) -> int:
    """Returns where `axis` stands among the axes that stay when the others in `axes` go."""
    return sum(a not in axes for a in range(axis))


def _normalize_virtual(inputs, batch: Batch, correction, options: Options):
    """Divides the batch, over all devices of the named axes, into `batch.virtual` parts."""
    pool, virtual = options.pool, batch.virtual
    if pool.names and pool.index_groups is not None:
        raise ValueError("give num_virtual_batches or axis_index_groups, not both.")
    shards = collectives.size(pool.names)
    if virtual % shards == 0:
        local = options._replace(pool=pool._replace(names=()))
        y, moments = _normalize_parts(inputs, batch, virtual // shards, correction, local)
        return y, merge_moments(moments, axis_name=pool.names or None)
    if shards % virtual:
        raise ValueError(
            f"num_virtual_batches={virtual} must divide the {shards} devices of axis_name="
            f"{'/'.join(pool.names)!r} or be a multiple of them."
        )
    each = shards // virtual
    groups = tuple(tuple(range(start, start + each)) for start in range(0, shards, each))
    options = options._replace(pool=pool._replace(index_groups=groups))
    y, moments = normalize_by_batch(inputs, batch._replace(virtual=1), correction, options)
    # Every device of a group holds the group's moments: the merged count is that many too large.
    mean, var, count = merge_moments(moments, axis_name=pool.names)
    return y, Moments(mean, var, count / each)


def _normalize_parts(inputs: Inputs, batch: Batch, parts: int, correction, options: Options):
    """Normalizes each of `parts` equal parts of the batch by itself."""
    if parts == 1:
        return normalize_by_batch(inputs, batch._replace(virtual=1), correction, options)
    axis, shape = batch.axis, inputs.x.shape
    size = shape[axis]
    if size % parts:
        raise ValueError(
            f"num_virtual_batches={batch.virtual!r} does not divide the batch: axis {axis} of the "
            f"input of shape {shape} has {size} examples to divide into {parts} equal parts. Leave "
            "a smaller last batch out, or fill it up and mask what was added."
        )
    if not _divides_evenly(inputs.x, axis, parts):
        ids = jnp.arange(size) // (size // parts)
        segmented = Batch(axis, 1, (ids, parts))
        y, moments = normalize_by_batch(inputs, segmented, correction, options)
        return y, merge_moments(moments, axis=0)

    x, gamma, beta, mask = (split_axis(value, axis, parts) for value in inputs[:4])
    running = inputs.running
    if running is not None:
        mean, var = (split_axis(value, axis, parts) for value in running[:2])
        running = Moments(mean, var, running.count)
    axes = options.pool.renumber(lambda a: a + (a >= axis)).axes
    y, moments = normalize_by_batch(
        Inputs(x, gamma, beta, mask, running),
        Batch(axis + 1),
        correction,
        options._replace(pool=options.pool._replace(axes=axes)),
    )
    position = _position(options.pool.axes, axis)
    return y.reshape(shape), merge_moments(moments, axis=position)


def _divides_evenly(x: jax.Array, axis: int, parts: int) -> bool:
    """Whether `axis` can be reshaped into `parts` without moving `x` between devices.

    Where the type of `x` does not say how it is sharded, all devices are taken to share the axis.
    """
    shards = count_shards(x, axis)
    if shards is not None:
        return parts % shards == 0
    if is_manual(x):
        return True
    devices = jax.device_count()
    return parts % devices == 0 or devices % parts == 0


def _segment_specs(x: jax.Array, whole: Pool, batch_axis: int) -> Moments:
    """Returns how moments are divided over an explicit mesh: each device has all segments."""
    kept = (a for a in range(x.ndim) if a == batch_axis or a not in whole.axes)
    spec = spec_of(x)
    each: Any = PartitionSpec(*(None if a == batch_axis else spec[a] for a in kept))
    return Moments(each, each, each)
