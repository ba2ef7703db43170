"""Draws the cube that shows which elements of an array are pooled."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxnorm.plot._division import Division

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
