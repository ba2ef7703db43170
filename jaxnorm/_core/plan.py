"""How passes over an array are laid out: the little that differs between backends."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import jax

from jaxnorm._core.xla import SUMS_COPY

# From how many rows on XLA on CPU makes one kernel of a normalization of rows.
MANY_ROWS = 4096


class Plan(NamedTuple):
    """Choices that change a program's speed and rounding, never its meaning.

    Attributes:
      algorithm: how statistics are found; see `jaxnorm._core.statistics`.
      barrier: what looks new to the compiler in each pass over the input. "arrays": all of it. XLA
        on CPU computes a value that two loops use only once, in memory: of bfloat16 input, all of
        it in float32; behind an optimization barrier each loop converts its own copy as it reads.
        "statistics": those alone. XLA on GPU would keep x - mean for several kernels.
      reduction: how a sum is divided. "axes": one axis after the other, for backends that do not
        add up in trees. "blocks": what examples have of their own in blocks first. XLA on GPU gives
        each sum along leading axes few threads, and then writes what is added in float32 first.
      one_device: no array lies on several devices, so that a slice moves no data.
      merges_axes: axes that play the same part become one, as a reshape moves no data. One long sum
        is faster than one over several axes, and XLA on CPU divides it by itself.
      row_kernel: XLA makes one kernel of what is computed of rows, which reads each once. On GPU of
        statistics that only y is made of, without a selection or comparison before x - mean. On CPU
        of many rows, also of derivatives, without any selection, clamp or rounding of bits: there
        the mean of a constant is exact by a division.
    """

    algorithm: Literal["shifted", "sampled_shift", "two_pass"] = "two_pass"
    barrier: Literal["arrays", "statistics"] | None = None
    reduction: Literal["axes", "blocks"] | None = "axes"
    one_device: bool = False
    merges_axes: bool = False
    row_kernel: Literal["rounded", "divided"] | None = None

    def of_pool(self, pool: Any, shape: tuple[int, ...], statistics_unused: bool) -> Plan:
        """Returns the plan for a pool; if `alone`, for statistics that only y is made of.

        XLA on GPU makes one kernel of rows and their use, which reads a row once, if nothing stands
        in between. Over several TPUs the condition of "shifted" is an all-reduce of a boolean, for
        which every chip waits: pools of single examples, which lie on one chip each, do without.
        """
        if self.algorithm == "sampled_shift" and statistics_unused and pool.is_row(shape):
            return self._replace(algorithm="two_pass", barrier=None, reduction=None)
        if self.algorithm == "shifted" and not self.one_device and 0 not in pool.axes:
            return self._replace(algorithm="sampled_shift")
        return self

    def is_one_kernel(
        self, pool: Any, shape: tuple[int, ...], statistics_unused: bool = False
    ) -> bool:
        """Whether all that is computed of the rows of an array of `shape` is one kernel."""
        if self.row_kernel is None or not pool.is_row(shape) or not isinstance(shape[-1], int):
            return False
        rows = math.prod(shape[:-1])
        many = isinstance(rows, int) and rows >= MANY_ROWS
        return statistics_unused if self.row_kernel == "rounded" else many

    def next_pass(self, arrays: tuple[Any, ...], statistics: Any = ()) -> tuple[Any, ...]:
        """Returns the arrays and the statistics (None stays None) for the next pass over them."""
        if self.barrier == "arrays":
            return jax.lax.optimization_barrier((arrays, statistics))
        if self.barrier == "statistics":
            return arrays, jax.lax.optimization_barrier(statistics)
        return arrays, statistics


# Where the backend is not known, and for derivatives of derivatives.
PORTABLE = Plan()
# Inside `plain()`.
PLAIN = Plan(reduction=None)
# Beside a collective a pass over the input is cheap.
MAPPED = Plan("shifted")


def plan_for(platform: str | None, one_device: bool) -> Plan:
    """Returns the plan for programs of a platform, on one device or on several."""
    match platform:
        case "tpu":
            return Plan("shifted", reduction=None, one_device=one_device)
        case "gpu":
            return Plan("sampled_shift", "statistics", "blocks", one_device, row_kernel="rounded")
        case "cpu" if one_device and SUMS_COPY:
            return Plan("shifted", "arrays", one_device=True)
        case "cpu" if one_device:
            return Plan("two_pass", "arrays", "axes", True, merges_axes=True, row_kernel="divided")
        case "cpu":
            return Plan(barrier="arrays")
    return PORTABLE
