"""The moments of a whole data set, merged from those of its batches in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxnorm._core.moments import Moments

# How many batches' moments stay on the device until they are fetched and merged.
_FETCHED_TOGETHER = 64


class Population:
    """Merges moments exactly, by count; float64 on the host, where a device may have none."""

    def __init__(self, read: Callable[[Any], dict[str, Moments]] | None = None) -> None:
        self._read = read
        self._merged: dict[str, Moments] = {}
        self._pending: list[Any] = []

    def add(self, moments: Any) -> None:
        """Adds the moments of a batch, by name; they may still be under way on a device.

        Or what `read` makes them of, on the host. A mean may be given as a pair of float32 arrays
        to add up in float64.
        """
        self._pending.append(moments)
        if len(self._pending) == _FETCHED_TOGETHER:
            self._merge()

    def result(self) -> dict[str, Moments]:
        """Returns the moments of all that was added, as NumPy arrays."""
        self._merge()
        return self._merged

    def _merge(self) -> None:
        for item in jax.device_get(self._pending):
            moments = item if self._read is None else self._read(item)
            for name, value in moments.items():
                parts = [self._merged[name], value] if name in self._merged else [value]
                self._merged[name] = _merge_wide(parts)
        self._pending = []


def _merge_wide(parts: Sequence[Moments]) -> Moments:
    """Returns the moments of the union of disjoint sets (Chan, Golub & LeVeque 1979)."""
    mean = np.stack([sum(_wide(m) for m in jax.tree.leaves(p.mean)) for p in parts])
    var = np.stack([np.asarray(p.var, np.float64) for p in parts])
    count = np.stack(
        [np.broadcast_to(np.asarray(p.count, np.float64), var[0].shape) for p in parts]
    )
    # A set without elements may hold anything, even NaN.
    mean, var = (np.where(count > 0, value, 0) for value in (mean, var))
    total = count.sum(0)
    weight = count / np.maximum(total, 1)
    center = (weight * mean).sum(0)
    spread = (weight * (var + np.abs(mean - center) ** 2)).sum(0)
    return Moments._make((center, spread, total))


def _wide(value: Any) -> np.ndarray:
    return np.asarray(value, np.result_type(value, np.float64))


def track(batches: Iterable[Any], description: str, progress: bool) -> Iterator[Any]:
    """Yields the batches, with a progress bar if it is wanted."""
    if not progress:
        yield from batches
        return
    try:
        from rich.console import Console
        from rich.progress import track as rich_track
    except ImportError:
        raise ImportError(
            "progress=True draws with rich, which is not installed: pip install rich, or leave "
            "progress out."
        ) from None
    total = len(batches) if isinstance(batches, Sequence) else None
    yield from rich_track(batches, description, total, console=Console(stderr=True))
