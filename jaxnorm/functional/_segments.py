"""A pool for each segment of the examples, as for domains of a mixed batch or graphs of nodes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._core import axes as _axes
from jaxnorm._core import collectives, statistics
from jaxnorm._core.formula import apply_affine
from jaxnorm._core.mesh import is_manual, placed, spec_of
from jaxnorm._core.plain import is_plain
from jaxnorm._core.plan import PORTABLE, Plan
from jaxnorm._core.pool import Pool, compute_dtype, subtract, widen, zero_masked
from jaxnorm._core.residuals import save
from jaxnorm._core.split_moments import SplitMoments
from jaxnorm._core.sums import sum_axes

# How many numbers a scatter may add up one after the other; of 128 equal ones the error is as large
# as the contract's bound for a result of size 3.
LONGEST = 128


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("ids", "route"),
    meta_fields=("whole", "number", "batch_axis"),
)
@dataclasses.dataclass(frozen=True)
class SegmentPool:
    """Examples of one segment are pooled; statistics have one row for each segment.

    Sums are scattered and statistics gathered, so that the cost does not grow with the number of
    segments. Use `make_pool`.

    Attributes:
      whole: the pool of all; its axes contain `batch_axis`.
      ids: the segment of each example.
      number: how many segments there are.
      batch_axis: the axis of the examples.
      route: the row that each example is added to, and for each row beyond `number` the one that it
        is then added to; of shape (blocks, rows).
    """

    whole: Pool
    ids: jax.Array
    number: int
    batch_axis: int
    route: tuple[jax.Array, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return self.whole.names

    @property
    def index_groups(self) -> Any:
        return self.whole.index_groups

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes that statistics have at size 1."""
        return tuple(a for a in self.whole.axes if a != self.batch_axis)

    def size(self, shape: tuple[int, ...]) -> int:
        """Returns the largest number of elements that a segment can have on one device."""
        return self.whole.size(shape)

    def holds(self, rank: int) -> jax.Array:
        """Returns a mask, of the rank of the input, of the examples that are in a segment."""
        inside = (self.ids >= 0) & (self.ids < self.number)
        return jnp.expand_dims(inside, _axes.other_axes((self.batch_axis,), rank))

    def sum(self, x: jax.Array, plan: Plan = PORTABLE) -> jax.Array:
        """Returns the sum over each segment, which takes the place of the examples."""
        x = jnp.moveaxis(sum_axes(x, self.axes, plan), self.batch_axis, 0)
        blocks = self.route[0].shape[0]
        x = x.reshape(blocks, x.shape[0] // blocks, *x.shape[1:])
        x = _of_each_block(functools.partial(_add_up, number=self.number), x, *self.route)
        return jnp.moveaxis(jnp.sum(x, 0), 0, self.batch_axis)

    def count_kept(
        self, mask: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, plan: Plan = PORTABLE
    ) -> jax.Array:
        """Returns how many elements of each segment a mask keeps, of size 1 where all are alike."""
        times = math.prod(shape[a] for a in self.axes if mask.shape[a] != shape[a])
        pairs = zip(mask.shape, shape, strict=True)
        sizes = (s if a == self.batch_axis else m for a, (m, s) in enumerate(pairs))
        mask = jnp.broadcast_to(mask, tuple(sizes))
        return self.sum(mask.astype(dtype), plan) * jnp.asarray(times, dtype)

    def broadcast_to_input(self, statistic: Any, shape: tuple[int, ...]) -> Any:
        """Returns for each example the statistic of its segment."""
        del shape
        return None if statistic is None else _spread(statistic, self)


def make_pool(whole: Pool, ids: jax.Array, number: int, batch_axis: int) -> SegmentPool:
    """Returns the pool of each of `number` segments, within the elements that `whole` pools."""
    return SegmentPool(whole, ids, number, batch_axis, _find_route(ids, number))


def number_by_rows(ids: jax.Array, number: int) -> tuple[jax.Array, int, jax.Array | None]:
    """Returns other ids and their number, at most that of examples, and the new id of each segment.

    Of more segments than examples most are empty, and their statistics would be larger than the
    input: here a segment is numbered by its first example. The new id of an empty one is beyond.
    Without gain ids and number are the same, and None.
    """
    size = ids.shape[0]
    if not isinstance(size, int) or number <= size or is_manual(ids):
        return ids, number, None
    outside = (ids < 0) | (ids >= number)
    rows = jnp.arange(size, dtype=jnp.int32)
    first = jnp.full(number, size, jnp.int32)
    first = save(first.at[jnp.where(outside, number, ids)].min(rows, mode="drop"))
    return save(jnp.where(outside, size, _gather(first, ids))), size, first


@jax.custom_jvp
def _spread(statistic: jax.Array, pool: SegmentPool) -> jax.Array:
    x = _gather(jnp.moveaxis(statistic, pool.batch_axis, 0), pool.ids)
    return jnp.moveaxis(x, 0, pool.batch_axis)


@_spread.defjvp
def _spread_jvp(primals, tangents):
    """Takes the way of the sums, so that the transpose is as exact as they are."""
    (statistic, pool), (tangent, _) = primals, tangents
    x = jnp.moveaxis(tangent, pool.batch_axis, 0)
    x = jnp.broadcast_to(x, (pool.route[0].shape[0], *x.shape))
    x = _of_each_block(_read, x, *pool.route)
    x = x.reshape(pool.ids.shape + x.shape[2:])
    return _spread(statistic, pool), jnp.moveaxis(x, 0, pool.batch_axis)


def _of_each_block(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    if len(arrays[0]) == 1:
        return function(*(a[0] for a in arrays))[None]
    return jax.vmap(function)(*arrays)


def _add_up(x: jax.Array, rows: jax.Array, segments: jax.Array, number: int) -> jax.Array:
    sums = jax.ops.segment_sum(x, rows, number + len(segments))
    return sums[:number].at[segments].add(sums[number:], mode="drop")


def _read(x: jax.Array, rows: jax.Array, segments: jax.Array) -> jax.Array:
    return _gather(jnp.concatenate([x, _gather(x, segments)]), rows)


def _gather(x: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.take(x, rows, 0, mode="clip")


def _find_route(ids: jax.Array, number: int) -> tuple[jax.Array, ...]:
    """Returns how `SegmentPool` gets from examples to segments.

    A scatter adds one row after the other, whose rounding errors grow with their number. So large
    segments are first summed in parts, which get a row of their own each.
    """
    inside = (ids >= 0) & (ids < number)
    ids = jnp.where(inside, ids, number)  # outside: dropped
    size = ids.shape[0]
    if is_plain() or not isinstance(size, int) or size <= LONGEST:
        return ids[None], jnp.zeros((1, 0), ids.dtype)
    # Where arrays may be divided over devices, each sums its examples before any are sent.
    blocks = 1 if is_manual(ids) else jax.device_count()
    if size % blocks or size <= LONGEST * number:
        blocks = 1
    # Of constants the compiler would find the route itself, which takes it a second.
    ids = lax.optimization_barrier(ids).reshape(blocks, size // blocks)
    longest = max(LONGEST, math.isqrt(size // blocks))
    divide = functools.partial(_divide, number=number, longest=longest)
    return tuple(jax.vmap(divide)(ids) if blocks > 1 else (v[None] for v in divide(ids[0])))


def _divide(ids: jax.Array, number: int, longest: int) -> tuple[jax.Array, jax.Array]:
    """Returns the row that each example is added to, and the segment of each row beyond `number`.

    A segment has one row for every `longest` examples, the first of which is its own; its examples
    are spread over them as by chance.
    """
    size = ids.shape[0]
    counts = jax.ops.segment_sum(jnp.ones_like(ids), ids, number)
    parts = save((counts + (longest - 1)) // longest)
    start = save(number - 1 + _sums_before(jnp.maximum(parts - 1, 0)))
    # Multiples of the golden ratio: no stride of the segments' places falls in step with them.
    chance = jnp.arange(size, dtype=jnp.uint32) * np.uint32(0x9E3779B9) >> 16
    part = chance * _gather(parts, ids).astype(jnp.uint32) >> 16
    further = part > 0
    rows = jnp.where(further, _gather(start, ids) + part.astype(start.dtype), ids)
    extra = size // longest
    rows = jnp.where(ids < number, rows, number + extra)
    segments = jnp.full(extra, number, ids.dtype)
    segments = segments.at[jnp.where(further, rows - number, extra)].set(ids, mode="drop")
    return rows, save(segments)


def _sums_before(counts: jax.Array, width: int = 128) -> jax.Array:
    """Returns for each count the sum of those before it.

    By products with triangles: a running sum is dozens of operations, and waits for each.
    """
    size = counts.shape[0]
    table = jnp.pad(counts, (0, -size % width)).reshape(-1, width).astype(jnp.float32)
    triangle = np.triu(np.ones((width, width), np.float32), 1)
    sums = jnp.matmul(table, triangle, precision="highest")
    if len(table) > 1:
        sums = sums + _sums_before(jnp.sum(table, 1))[:, None]
    return sums.reshape(-1)[:size].astype(counts.dtype)


def affine_of_segments(
    x: jax.Array,
    mask: jax.Array | None,
    pool: SegmentPool,
    stats: SplitMoments,
    scale: jax.Array,
    bias: jax.Array | None = None,
    gamma: jax.Array | None = None,
    beta: jax.Array | None = None,
) -> jax.Array:
    """Returns ((x - mean) * scale + bias) * gamma + beta, with a scale and bias for each segment.

    What gamma and beta do to all of a segment is done to its scale and bias: their gradients are
    sums of those of the segments, not another pass over all examples.
    """
    scale = scale.astype(compute_dtype(x.dtype))
    bias = jnp.zeros_like(scale) if bias is None else bias.astype(scale.dtype)
    mean, offset = stats.shift, stats.offset
    if offset is not None:
        # The cotangent of the offset is that of the bias times -scale: the values stay.
        offset = lax.stop_gradient(offset)
        bias = bias - (stats.offset - offset) * scale
    if gamma is None or not pool.whole.varies_within(gamma):
        scale, bias = (apply_affine(value, gamma, None, 0.0) for value in (scale, bias))
        gamma = None
        if beta is not None and not pool.whole.varies_within(beta):
            bias, beta = bias + beta.astype(bias.dtype), None
    rest = zero_masked(mask, subtract(x, mask, pool, mean, offset))
    y = rest * pool.broadcast_to_input(scale, x.shape) + pool.broadcast_to_input(bias, x.shape)
    return zero_masked(mask, apply_affine(y, gamma, beta, 0.0))


def find_statistics(x: jax.Array, mask: jax.Array | None, pool: SegmentPool):
    """Returns the statistics of each segment, marked to be kept, and the count."""
    function = _find if is_plain() else _found
    *stats, count = function(x, mask, pool)
    return SplitMoments(*map(save, stats)), count


def _find(x, mask, pool: SegmentPool):
    whole: Any = pool  # which does what a pool does
    stats, count = statistics.compute_statistics(x, mask, whole, None)
    return (*stats, count)


_found = jax.custom_jvp(_find)


@_found.defjvp
def _found_jvp(primals, tangents):
    """The tangents of offset and var are P(dx) and 2 P(Re((x - mean)* dx)), P the pool's mean."""
    x, mask, pool = primals
    *stats, count = _found(x, mask, pool)
    shift, offset, var = map(save, stats)
    dx = widen(tangents[0], mask)
    rest = zero_masked(mask, subtract(x, mask, pool, shift, offset))
    product = (rest.conj() * dx).real if jnp.iscomplexobj(rest) else rest * dx
    sums = (pool.sum(product), pool.sum(dx))
    if pool.names:
        sums = collectives.psum(sums, pool.names, pool.index_groups)
    dvar, doffset = (s / jnp.maximum(count, 1).astype(s.dtype) for s in sums)
    tangents = (jnp.zeros_like(shift), doffset, 2 * dvar, jnp.zeros_like(count))
    return (shift, offset, var, count), tangents


def check_segments(ids: Any, number: int, x: jax.Array, batch_axis: int, name: str) -> jax.Array:
    """Returns the segment of each example of `x` as an array, where they lie.

    JAX would gather the cotangents of `x` to make them as whole as the segments.
    """
    value, size = jnp.asarray(ids), x.shape[batch_axis]
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name} must hold integers, got dtype {value.dtype}.")
    if value.shape != (size,):
        raise ValueError(
            f"{name} must have shape ({size},), one entry for each example, got {value.shape}."
        )
    if number < 1:
        raise ValueError(f"the number of segments must be at least 1, got {number!r}.")
    return placed(value, (spec_of(x)[batch_axis],))
