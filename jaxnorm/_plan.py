"""How a computation is laid out for the backend that it is lowered to."""

from __future__ import annotations

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
      fuse_rows: take sums over rows and use them in one pass, which XLA on CPU can do since 0.11,
        in loops that are slower than memory but not slower than two passes over it.
      fuse_cotangents: the same in the backward pass, where two arrays are read.
      short_axes: sum over axes so short that XLA on CPU has one loop for each sum. Starting the
        loops of a small input takes longer than running them.
      split: add up in short sums; see `jaxnorm._pool.sum_axes`.
    """

    separate: bool = False
    one_device: bool = False
    fuse_rows: bool = True
    fuse_cotangents: bool = True
    short_axes: bool = False
    split: bool = True

    def next_pass(self, *arrays: Any) -> tuple[Any, ...]:
        """Returns the arrays (None stays None) for the next pass over them."""
        if not self.separate:
            return arrays
        given = iter(jax.lax.optimization_barrier([a for a in arrays if a is not None]))
        return tuple(None if a is None else next(given) for a in arrays)


# Where the backend is not known, or the types of arrays name a mesh.
PORTABLE = Plan()
# GPU and TPU add up in trees, and fuse better without barriers.
ACCELERATOR = Plan(split=False)
# XLA on CPU sums in loops of its own since then, over several axes at once.
RECENT_XLA = jax.__version_info__ >= (0, 11)
# Below this many elements XLA on CPU has no faster loops for sums than the plain ones.
CPU_SMALL = 1 << 12
# Below this many bytes of input, starting another loop costs more than a pass over memory: where
# the elements of a row are pooled, and where they are not, which XLA fuses less of.
CPU_LARGE = 1 << 18
CPU_LARGE_COLUMNS = 1 << 16
# From this many bytes on, a second pass over the input takes longer than a more complex loop:
# measured at 3 to 74 MB on two cores, where it is about what their cache holds.
CPU_HUGE = 1 << 25
CPU_HUGE_BACKWARD = 6 << 20


def cpu_plan(array: Any, summed: Sequence[bool], one_device: bool) -> Plan:
    """Returns the plan for an array (or its type) of given shape and dtype on CPU.

    `summed` says of each axis whether sums are taken over it.
    """
    if not all(isinstance(s, int) for s in array.shape):
        # A symbolic size: likely a batch, likely large.
        return Plan(separate=True, fuse_rows=RECENT_XLA, fuse_cotangents=RECENT_XLA)
    size = array.size * array.dtype.itemsize
    return Plan(
        separate=size >= (CPU_LARGE if summed[-1] else CPU_LARGE_COLUMNS),
        one_device=one_device,
        fuse_rows=RECENT_XLA and size >= CPU_HUGE,
        fuse_cotangents=RECENT_XLA and size >= CPU_HUGE_BACKWARD,
        short_axes=one_device and array.size < CPU_SMALL,
    )
