"""How passes over an array are laid out: the little that differs between backends."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax


class Plan(NamedTuple):
    """Choices that change a program's speed and rounding, never its meaning.

    Attributes:
      way: how statistics are found; see `jaxnorm._core.statistics`.
      apart: what looks new to the compiler in each pass over the input. "arrays": all of it. XLA on
        CPU computes a value that two loops use only once, in memory: of bfloat16 input, all of it
        in float32; behind an optimization barrier each loop converts its own copy as it reads.
        "statistics": those alone. XLA on GPU would keep x - mean for several kernels.
      staged: how a sum is divided. "axes": one axis after the other, for backends that do not add
        up in trees. "blocks": what examples have of their own in blocks first. XLA on GPU gives
        each sum along leading axes few threads, and then writes what is added in float32 first.
      one_device: no array lies on several devices, so that a slice moves no data.
    """

    way: Literal["quick", "sampled", "two_passes"] = "two_passes"
    apart: Literal["arrays", "statistics"] | None = None
    staged: Literal["axes", "blocks"] | None = "axes"
    one_device: bool = False

    def of_rows(self) -> Plan:
        """Returns the plan for statistics of rows and their use.

        XLA on GPU makes one kernel of both, which reads a row once, if nothing stands in between.
        """
        if self.way != "sampled":
            return self
        return self._replace(way="two_passes", apart=None, staged=None)

    def next_pass(self, arrays: tuple[Any, ...], statistics: Any = ()) -> tuple[Any, ...]:
        """Returns the arrays and the statistics (None stays None) for the next pass over them."""
        if self.apart == "arrays":
            return jax.lax.optimization_barrier((arrays, statistics))
        if self.apart == "statistics":
            return arrays, jax.lax.optimization_barrier(statistics)
        return arrays, statistics


# Where the backend is not known, and for derivatives of derivatives.
PORTABLE = Plan()
# Inside `plain()`.
PLAIN = Plan(staged=None)
# Beside a collective a pass over the input is cheap.
MAPPED = Plan("quick")


def plan_for(platform: str | None, one_device: bool) -> Plan:
    """Returns the plan for programs of a platform, on one device or on several."""
    match platform:
        case "tpu":
            return Plan("quick", staged=None, one_device=one_device)
        case "gpu":
            return Plan("sampled", "statistics", "blocks", one_device)
        case "cpu":
            way = "quick" if one_device else "two_passes"
            return Plan(way, "arrays", one_device=one_device)
    return PORTABLE
