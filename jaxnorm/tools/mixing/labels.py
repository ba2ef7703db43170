"""Which example each element of an array depends on: labels.

A label is 0 (no example) or the number of the one example that an element depends on. Where an
operation would make an element depend on two, they are mixed: that is told, and the element counts
as one of no example from there on, so that what comes later is not blamed.

It is the structure of the operations that counts, not what numbers happen to be: a product with 0
depends on its factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Labels = np.ndarray
_NONE = np.iinfo(np.int32).max  # where the lowest of no labels is


class Joined:
    """Labels of several values: the lowest and the highest of each element."""

    def __init__(self, low: Labels, high: Labels):
        self.low, self.high = low, high

    @classmethod
    def of(cls, labels: Labels) -> Joined:
        return cls(np.where(labels > 0, labels, _NONE), labels)

    def over(self, axes: int | Sequence[int], *, keep: bool = False) -> Joined:
        """Returns the labels of what depends on all elements along axes."""
        axes = (axes,) if isinstance(axes, int) else tuple(axes)
        low = self.low.min(axes, keepdims=keep, initial=_NONE)
        return Joined(low, self.high.max(axes, keepdims=keep, initial=0))

    def map(self, function: Any) -> Joined:
        """Returns the labels of elements that are only elsewhere."""
        return Joined(function(self.low), function(self.high))

    def __or__(self, other: Joined) -> Joined:
        return Joined(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    def result(self) -> tuple[Labels, bool]:
        """Returns the labels, and whether some are mixed."""
        mixed = (self.high > 0) & (self.low < self.high)
        return np.where(mixed, 0, self.high), bool(mixed.any())


def everything(labels: list[Labels], shapes: list[tuple[int, ...]]) -> list[Joined]:
    """Returns the labels of what depends on all there is."""
    joined = join_all([np.ravel(label) for label in labels], 0)
    return [joined.map(lambda v, s=shape: np.broadcast_to(v, s)) for shape in shapes]


def join_all(labels: list[Labels], axes: Any) -> Joined:
    """Returns the labels of what depends on all elements of several arrays along axes."""
    first, *rest = (Joined.of(label).over(axes) for label in labels)
    for other in rest:
        first = first | other
    return first


def no_labels(like: Any) -> Labels:
    """Returns the labels of an array that depends on no example."""
    return np.broadcast_to(np.int32(0), np.shape(like))
