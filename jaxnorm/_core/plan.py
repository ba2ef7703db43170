"""How a computation is laid out for the backend that it is lowered to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax


class Plan(NamedTuple):
    """The choices that change a program's speed and rounding, never its meaning.

    Attributes:
      separate: keep the passes over the input apart. XLA on CPU computes a value that two loops
        use only once, in memory: of bfloat16 input, all of it in float32. Behind an optimization
        barrier each pass converts its own copy as it reads.
      one_device: no array lies on several devices, so that a slice moves no data.
      fuse_rows: where rows are normalized without a mask, find their statistics and use them in one
        loop, as XLA can: their mean squares and, on CPU, what quick sums are not exact enough for.
        On GPU it is one kernel for mean and variance too, in which nothing is sampled.
      fuse_moments: find mean and variance so in any case; three sums make that loop slower than
        memory, but not than several passes over it.
      slices: add slices of a long axis before a sum over it; see `jaxnorm._core.pool.sum_axes`.
      slice_products: the same for sums of products of two arrays, as in the backward pass.
      short_axes: sum over axes so short that XLA on CPU has one loop for each sum. Starting the
        loops of a small input takes longer than running them.
      split: add up in short sums; see `jaxnorm._core.pool.sum_axes`.
      sample: on GPU, where no array lies on several devices: find a value near the mean from an
        eighth of the elements, in place of another pass over all of them.
    """

    separate: bool = False
    one_device: bool = False
    fuse_rows: bool = False
    fuse_moments: bool = False
    slices: bool = False
    slice_products: bool = False
    short_axes: bool = False
    split: bool = True
    sample: bool = False

    def next_pass(self, *arrays: Any) -> tuple[Any, ...]:
        """Returns the arrays (None stays None) for the next pass over them."""
        return _as_others(arrays) if self.separate else arrays

    def of_products(self) -> Plan:
        """Returns the plan for sums of products of two arrays."""
        return self._replace(slices=self.slice_products)

    def unshared(self, *statistics: Any) -> tuple[Any, ...]:
        """Returns the statistics (None stays None) for another use.

        XLA on GPU stores x - shift if two of its kernels use it. Of a shift that it takes for
        another, each computes its own as it reads x.
        """
        return _as_others(statistics) if self.sample else statistics


def _as_others(arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the same arrays (None stays None), which XLA takes for others."""
    given = iter(jax.lax.optimization_barrier([a for a in arrays if a is not None]))
    return tuple(None if a is None else next(given) for a in arrays)


# Where the backend is not known, or the types of arrays name a mesh.
PORTABLE = Plan()
# Where nothing is known but that sums are added up in trees, as on TPU.
PLAIN = Plan(split=False)
# XLA on GPU makes one kernel of statistics and their use for rows of up to so many elements, which
# then reads each row once.
GPU_ROW = 1 << 14
# XLA on CPU sums in loops of its own since then, over several axes at once.
RECENT_XLA = jax.__version_info__ >= (0, 11)
# Sums of one array are as fast as memory since then.
FAST_SUMS = jax.__version_info__ >= (0, 10, 2)
# Below this many elements XLA on CPU has no faster loops for sums than the plain ones.
CPU_SMALL = 1 << 12
# XLA on CPU cuts a sum over more elements of an axis into several loops.
CPU_ONE_LOOP = 32
# Below this many bytes of input, starting another loop costs more than a pass over memory: where
# the elements of a row are pooled, and where they are not, which XLA fuses less of.
CPU_LARGE = 1 << 18
CPU_LARGE_COLUMNS = 1 << 16
# From this many rows on, XLA on CPU computes row by row, sums and all, what can be one loop. Where
# that is faster than several passes was measured on two cores.
CPU_ROWS = 1 << 12
# Mean and variance: where rows are of up to so many elements, and from so many bytes on, in which
# passes over memory count; those of narrow types take longer to convert.
CPU_SHORT_ROW = 1 << 6
CPU_HUGE = 1 << 24
CPU_HUGE_NARROW = 1 << 25
# Rows of this many elements in all, and less than CPU_LARGE, are summed faster in slices.
CPU_SLICED_ROWS = 1 << 15


def gpu_plan(array: Any, pooled: Sequence[int], one_device: bool) -> Plan:
    """Returns the plan for an array (or its type) on GPU, like `cpu_plan`.

    GPUs add up in trees, and XLA fuses passes over memory for them better than barriers let it.
    """
    if not all(isinstance(s, int) for s in array.shape):
        return PLAIN
    rows = [a for a in pooled if array.shape[a] != 1]
    return Plan(
        split=False,
        sample=one_device,
        fuse_rows=rows == [array.ndim - 1] and array.shape[-1] <= GPU_ROW,
    )


def cpu_plan(array: Any, pooled: Sequence[int], one_device: bool) -> Plan:
    """Returns the plan for an array (or its type) of given shape and dtype on CPU.

    Elements along the axes `pooled` share their statistics.
    """
    if not all(isinstance(s, int) for s in array.shape):
        # A symbolic size: likely a batch, likely large.
        return Plan(separate=True)
    size = array.size * array.dtype.itemsize
    row = math.prod(array.shape[axis] for axis in pooled)
    inner = array.ndim - 1 in pooled
    huge = CPU_HUGE if array.dtype.itemsize >= 4 else CPU_HUGE_NARROW
    by_rows = RECENT_XLA and inner and array.size >= CPU_ROWS * row
    separate = size >= (CPU_LARGE if inner else CPU_LARGE_COLUMNS)
    small = array.size < CPU_SMALL
    # Sums of one array have loops of their own, which start slowly.
    has_loops = FAST_SUMS and (separate or not inner or array.size < CPU_SLICED_ROWS)
    return Plan(
        separate=separate,
        one_device=one_device,
        fuse_rows=by_rows,
        # On one device, as it takes a maximum, which would have to cross devices as well.
        fuse_moments=by_rows and one_device and (row <= CPU_SHORT_ROW or size >= huge),
        slices=one_device and not small and not has_loops,
        slice_products=one_device and not small,
        short_axes=one_device and small,
    )
