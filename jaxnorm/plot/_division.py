"""How a normalization divides an array into pools: the division, and the usual ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import Axes
from jaxnorm.functional import group
from jaxnorm.functional.virtual import check_virtual


class Division(NamedTuple):
    """How an array is divided into pools: into how many equal parts along each of its axes."""

    shape: tuple[int, ...]
    parts: tuple[int, ...]
    channel_axis: int

    @classmethod
    def make(
        cls,
        shape: Sequence[int],
        axis: Axes,
        *,
        num_groups: int | None = None,
        group_size: int | None = None,
        channel_axis: int = -1,
        num_virtual_batches: int = 1,
    ) -> Division:
        """Returns the division that a normalization over `axis` makes, or raises as it does."""
        shape = _check_shape(shape)
        (channel,) = _axes.canonical_axes(channel_axis, shape, "channel_axis")
        grouped = num_groups is not None or group_size is not None
        axes = _axes.canonical_axes(axis, shape, allow_empty=True)
        parts = [1 if a in axes else size for a, size in enumerate(shape)]
        if grouped:
            parts[channel] = group.count_groups(num_groups, group_size, shape, channel)
        virtual = check_virtual(num_virtual_batches)
        if virtual > 1:
            if 0 not in axes or shape[0] % virtual:
                raise ValueError(
                    f"num_virtual_batches={num_virtual_batches!r} needs axis 0 among the axes "
                    f"pooled, and must divide it; got shape {shape} and axis={axis!r}."
                )
            parts[0] = virtual
        return cls(shape, tuple(parts), channel)

    @property
    def pools(self) -> int:
        """The number of pools, each with one mean and one variance."""
        return math.prod(self.parts)

    @property
    def caption(self) -> str:
        """The number of means and how many elements each is computed from."""
        elements = math.prod(self.shape) // self.pools
        means = "1 mean" if self.pools == 1 else f"{self.pools:,} means"
        values = "1 value" if elements == 1 else f"{elements:,} values"
        return f"{means}, {'each ' if self.pools > 1 else ''}of {values}"

    @property
    def names(self) -> tuple[str, ...]:
        """The usual letters of the axes: N for examples, C for channels."""
        positions = len(self.shape) - 1 - (self.channel_axis > 0)
        letters = {0: "", 1: "L", 2: "HW", 3: "DHW"}.get(positions)
        spatial = list(letters or [f"S{i + 1}" for i in range(positions)])
        if self.channel_axis > 0:
            spatial.insert(0, "N")
        spatial.insert(self.channel_axis, "C")
        return tuple(spatial)


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(shape)
    if not sizes or not all(isinstance(s, int) and s > 0 for s in sizes):
        raise ValueError(f"shape must be one or more positive ints, got {shape!r}.")
    return sizes


def usual_choices(shape: Sequence[int], channel_axis: int) -> dict[str, dict[str, Any]]:
    """Returns the best-known normalizations of an array of this shape, by name.

    The groups are as many as divide the channels into groups of several, up to four. Of those
    that pool alike, as with and without positions where there are none, the first is returned.
    """
    shape = _check_shape(shape)
    (channel,) = _axes.canonical_axes(channel_axis, shape, "channel_axis")
    examples = () if channel == 0 else (0,)
    positions = tuple(a for a in range(len(shape)) if a not in (*examples, channel))
    groups = max(g for g in range(1, 5) if shape[channel] % g == 0 and g < max(shape[channel], 2))
    choices: dict[str, dict[str, Any]] = {
        "batch norm": {"axis": (*examples, *positions)},
        "batch norm of each position": {"axis": examples},
        "layer norm": {"axis": (*positions, channel)},
        "layer norm of each position": {"axis": (channel,)},
        "group norm": {"axis": positions, "num_groups": groups},
        "instance norm": {"axis": positions},
    }
    result = {}
    for name, choice in choices.items():
        division = Division.make(shape, **choice, channel_axis=channel)
        seen = [Division.make(shape, **c, channel_axis=channel) for c in result.values()]
        if division not in seen and division.pools < math.prod(shape):
            result[name] = choice
    return result
