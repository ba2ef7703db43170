"""Arrays seen with fewer axes: neighbours that play the same part become one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def find_runs(
    shapes: Sequence[tuple[int, ...]], kinds: Sequence[Any]
) -> tuple[tuple[int, ...], ...]:
    """Returns the axes of arrays of one rank, in order, those together that can be one axis.

    They can where they are of the same kind (such as pooled) and each array varies along all of
    them or along none. Sizes that are not known while tracing stay as they are.
    """
    runs: list[tuple[int, ...]] = []
    for axis, kind in enumerate(kinds):
        if runs:
            last = runs[-1][-1]
            pairs = [(shape[last], shape[axis]) for shape in shapes]
            known = all(isinstance(size, int) for pair in pairs for size in pair)
            if known and kinds[last] == kind and all((a == 1) == (b == 1) for a, b in pairs):
                runs[-1] = (*runs[-1], axis)
                continue
        runs.append((axis,))
    return tuple(runs)


def merge(x: Any, runs: Sequence[Sequence[int]]) -> Any:
    """Returns `x` (None stays None) with one axis for each run."""
    if x is None or len(runs) == x.ndim:
        return x
    return x.reshape([math.prod(x.shape[axis] for axis in run) for run in runs])
