"""A pool for each segment of the examples, as for the domains or classes of a mixed batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.mesh import placed, spec_of
from jaxnorm._core.plan import PORTABLE, Plan
from jaxnorm._core.pool import Pool
from jaxnorm._core.sums import sum_axes


class SegmentPool(NamedTuple):
    """Examples of one segment are pooled; statistics have one row for each segment.

    Segments are told apart by a selection that is summed at once: unlike a gather or a scatter it
    splits over devices, forward and backward, without moving the input.
    """

    whole: Pool  # its axes contain `batch_axis`
    ids: jax.Array  # the segment of each example
    number: int
    batch_axis: int

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
        x = jnp.expand_dims(sum_axes(x, self.axes, plan), self.batch_axis + 1)
        return jnp.sum(jnp.where(self._member(x.ndim), x, 0), self.batch_axis)

    def count_kept(
        self, mask: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, plan: Plan = PORTABLE
    ) -> jax.Array:
        """Returns how many elements of each segment a mask keeps."""
        return self.sum(jnp.broadcast_to(mask, shape).astype(dtype), plan)

    def spread(self, statistic: Any, shape: tuple[int, ...]) -> Any:
        """Returns for each example the statistic of its segment."""
        del shape
        if statistic is None:
            return None
        rows = jnp.expand_dims(statistic, self.batch_axis)
        return jnp.sum(jnp.where(self._member(rows.ndim), rows, 0), self.batch_axis + 1)

    def _member(self, rank: int) -> jax.Array:
        """Returns whether an example (on the batch axis) is in a segment (on the next)."""
        member = self.ids[:, None] == jnp.arange(self.number)[None, :]
        pair = (self.batch_axis, self.batch_axis + 1)
        return jnp.expand_dims(member, _axes.other_axes(pair, rank))


class NodePool(SegmentPool):
    """Nodes of one graph are pooled; there may be as many graphs as nodes.

    A selection of every node for every graph would be far larger than the input.
    """

    def sum(self, x: jax.Array, plan: Plan = PORTABLE) -> jax.Array:
        """Returns the sum over each graph, which takes the place of the nodes."""
        del plan
        size = x.shape[0]
        # A scatter adds one node after the other: large graphs are summed in parts.
        parts = max(1, size // (128 * self.number)) if isinstance(size, int) else 1
        inside = (self.ids >= 0) & (self.ids < self.number)
        rows = self.ids + self.number * (jnp.arange(size, dtype=self.ids.dtype) % parts)
        rows = jnp.where(inside, rows, parts * self.number)
        totals = jax.ops.segment_sum(x, rows, parts * self.number)
        return jnp.sum(totals.reshape(parts, self.number, *x.shape[1:]), 0)

    def count_kept(
        self, mask: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, plan: Plan = PORTABLE
    ) -> jax.Array:
        """Returns how many elements of each graph a mask keeps, of size 1 where all are alike."""
        del shape
        return self.sum(mask.astype(dtype), plan)

    def spread(self, statistic: Any, shape: tuple[int, ...]) -> Any:
        """Returns for each node the statistic of its graph."""
        del shape
        if statistic is None:
            return None
        return jnp.take(statistic, self.ids, 0, mode="clip")


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
