"""The cube that shows which elements of an array are pooled: its division and its drawing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import Axes
from jaxnorm.functional import group
from jaxnorm.functional.virtual import check_virtual

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Plot

# Blue on grey: told apart by everyone, and by lightness alone when printed without colour.
POOLED, OTHER = "#0072B2", "#E4E4E4"
CELL_LINE, POOL_LINE = "#FFFFFF", "#303030"
# How much darker a face is than the one that faces the light.
TOP, LEFT, RIGHT = 1.0, 0.82, 0.92
SLOPE = 0.5  # of the receding edges; 1/sqrt(3) would be isometric
# Edges of more cells than the first number are cut to the second.
MOST_CELLS, CUT_CELLS = 40, 16
MARGIN = 1.2  # beside and below the cube, for the labels
WIDTH, HEADING = 3.6, 0.8  # of one cube's picture, and what is added for its titles; inches


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
            parts[channel] = group._count_groups(num_groups, group_size, shape, channel)
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


class Edge(NamedTuple):
    """An edge of the drawn cube: `size` cells, each `run` neighbouring ones in one pool."""

    label: str
    size: int
    run: int

    @property
    def length(self) -> float:
        """The drawn length, which grows slowly beyond a few cells."""
        return self.size if self.size <= 6 else 6 + 1.5 * math.log2(self.size / 6)

    def at(self, index: int) -> float:
        """The place of the cell's near side."""
        return self.length * index / self.size

    @property
    def borders(self) -> Iterator[int]:
        """The indices of the cells where a pool begins, the first left out."""
        return iter(range(self.run, self.size, self.run))


def make_edges(division: Division, names: Sequence[str]) -> tuple[Edge, Edge, Edge]:
    """Returns the edges for the examples, the channels, and all other axes stacked."""
    channel = division.channel_axis
    first = [0] if channel > 0 else []
    rest = [a for a in range(len(division.shape)) if a not in (*first, channel)]
    # The pooled axes innermost, so that each pool is one stretch of cells.
    rest.sort(key=lambda a: division.parts[a] == 1)
    n, c, s = (_make_edge(division, names, axes) for axes in (first, [channel], rest))
    return n, c, s


def _make_edge(division: Division, names: Sequence[str], axes: Sequence[int]) -> Edge:
    sizes = [division.shape[a] for a in axes]
    size = math.prod(sizes)
    run = size // math.prod(division.parts[a] for a in axes)
    if not axes:
        return Edge("", 1, 1)
    times = " \N{MULTIPLICATION SIGN} "
    label = times.join(names[a] for a in axes) + " = " + times.join(map(str, sizes))
    if size > MOST_CELLS:
        pools = min(size // run, max(2, CUT_CELLS // run))
        run = min(run, CUT_CELLS // pools)
        size = pools * run
        label += f" ({size} drawn)"
    return Edge(label, size, run)


def draw_cube(ax: Plot, division: Division, names: Sequence[str]) -> None:
    """Draws the cube, and the pool at its near corner in colour."""
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.colors import to_rgb

    edges = make_edges(division, names)
    cells, colors, borders = [], [], []
    # A face is two edges that it spans; on the third it lies at the near end.
    for across, down, light in ((0, 2, LEFT), (1, 2, RIGHT), (0, 1, TOP)):
        a, b = edges[across], edges[down]
        for i, j in itertools.product(range(a.size), range(b.size)):
            corners = ((i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1))
            cells.append([_project(edges, {across: p, down: q}) for p, q in corners])
            pooled = i < a.run and j < b.run
            colors.append([light * c for c in to_rgb(POOLED if pooled else OTHER)])
        for near, far, fixed in ((across, down, a), (down, across, b)):
            for index in (0, *fixed.borders, fixed.size):
                ends = (0, edges[far].size)
                borders.append([_project(edges, {near: index, far: end}) for end in ends])
    ax.add_collection(
        PolyCollection(cells, facecolors=colors, edgecolors=CELL_LINE, linewidths=0.4)
    )
    ax.add_collection(LineCollection(borders, colors=POOL_LINE, linewidths=1.1, capstyle="round"))
    _label_edges(ax, edges)
    x, y = zip(*itertools.chain.from_iterable(cells), strict=True)
    ax.set_xlim(min(x) - 1.2, max(x) + 1.2)
    ax.set_ylim(min(y) - 1.2, max(y) + 0.4)
    ax.set_aspect("equal")
    ax.set_axis_off()


def figure_size(
    shape: Sequence[int], channel_axis: int, rows: int = 1, columns: int = 1
) -> tuple[float, float]:
    """Returns the size in inches of a figure that holds so many cubes with their titles."""
    division = Division.make(shape, (), channel_axis=channel_axis)
    x, y = _limits(make_edges(division, division.names))
    height = WIDTH * (y[1] - y[0]) / (x[1] - x[0]) + HEADING
    return WIDTH * columns, height * rows


def _limits(edges: Sequence[Edge]) -> tuple[tuple[float, float], tuple[float, float]]:
    n, c, s = (edge.length for edge in edges)
    return (-n - MARGIN, c + MARGIN), (-s - MARGIN, SLOPE * (n + c) + 0.3)


def _project(edges: Sequence[Edge], place: dict[int, int]) -> tuple[float, float]:
    """Returns where a corner of cells stands: examples go back left, channels back right."""
    n, c, s = (edge.at(place.get(i, 0)) for i, edge in enumerate(edges))
    return c - n, SLOPE * (c + n) - s


def _label_edges(ax: Plot, edges: Sequence[Edge]) -> None:
    """Writes each edge's name and size along it, outside the cube."""
    angle = math.degrees(math.atan(SLOPE))
    n, c, s = (edge.size for edge in edges)
    style = {"fontsize": 10, "rotation_mode": "anchor", "ha": "center"}
    for index, (start, end), rotation, shift in (
        (0, ({2: s}, {0: n, 2: s}), -angle, (-0.3, -0.25)),
        (1, ({2: s}, {1: c, 2: s}), angle, (0.3, -0.25)),
        (2, ({0: n}, {0: n, 2: s}), 90, (-0.35, 0)),
    ):
        if not edges[index].label:
            continue
        (x0, y0), (x1, y1) = _project(edges, start), _project(edges, end)
        place = ((x0 + x1) / 2 + shift[0], (y0 + y1) / 2 + shift[1])
        va = "bottom" if rotation == 90 else "top"
        ax.text(*place, edges[index].label, rotation=rotation, va=va, **style)


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
