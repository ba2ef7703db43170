"""The batches that a tool goes through."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def check_batches(tool: str, batches: Any) -> Iterable[Any]:
    """Returns `batches`, which must not be a single one, whose rows would be taken for batches.

    Args:
      tool: whose error this is.
      batches: what it was given.
    """
    if hasattr(batches, "shape") and hasattr(batches, "dtype"):
        got = f"one array of shape {tuple(batches.shape)}"
    elif isinstance(batches, Mapping):
        got = f"one mapping, of {sorted(map(str, batches))}"
    else:
        return batches
    raise TypeError(
        f"{tool} takes an iterable of batches, got {got}; give [x] if that is the only batch, or "
        "numpy.array_split(x, n) to go through it in n batches."
    )
