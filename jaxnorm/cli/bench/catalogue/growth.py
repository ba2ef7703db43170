"""`python -m jaxnorm bench --growth --norms all`: what more segments, or wider windows, cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxnorm.cli.bench.cases import SEGMENTS, WINDOWS
from jaxnorm.cli.bench.catalogue.entry import Entry
from jaxnorm.cli.bench.catalogue.functions import make_segments, make_window
from jaxnorm.cli.bench.measure import Cell, list_libraries
from jaxnorm.cli.tables import ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CSV, PICTURE = "growth.csv", "growth.png"
NUMBERS, SIZES = (2, 60, 1000, 10_000), (3, 7, 15, 31, 63)


def list_entries() -> list[Entry]:
    """Returns the functions of segments and of windows, each at several numbers."""
    return [
        *(make_segments(name, number) for name in SEGMENTS for number in NUMBERS),
        *(make_window(name, size) for name in WINDOWS for size in SIZES),
    ]


def find_curves(cells: Sequence[Cell]) -> dict[tuple[str, str], list[Cell]]:
    """Returns the cells of each function and dtype, in the order of what grows."""
    curves: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        name = cell.case.norm.partition(", ")[0]
        curves.setdefault((name, cell.case.dtype), []).append(cell)
    return curves


def describe(cells: Sequence[Cell]) -> list[str]:
    """Returns a line for each function: how far its times lie apart."""
    lines = []
    for (name, dtype), curve in find_curves(cells).items():
        copies = [cell.seconds / cell.copy_seconds for cell in curve]
        lines.append(
            f"{name} {dtype}: from {_what(curve[0])} to {_what(curve[-1])} the most copies are "
            f"{ratio(max(copies) / min(copies))} times the fewest."
        )
    return lines


def _what(cell: Cell) -> str:
    return cell.case.norm.partition(", ")[2]


def _number(cell: Cell) -> int:
    return next(int(word) for word in _what(cell).split() if word.isdigit())


def draw(cells: Sequence[Cell], title: str) -> Figure:
    """Draws copies against the number of segments or the size of windows, a panel per function."""
    from matplotlib.figure import Figure

    from jaxnorm.cli.bench.picture import STYLES, set_title

    curves = find_curves(cells)
    figure = Figure(figsize=(max(3.2 * len(curves), 8), 4), layout="constrained")
    set_title(figure, "Forward and backward, in copies of the input", title)
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    libraries = ("jaxnorm", *list_libraries(cells))
    for axes, ((name, dtype), curve) in zip(panels, curves.items(), strict=True):
        for library in libraries:
            found = [
                (_number(c), m.seconds / c.copy_seconds) for c in curve if (m := c.of(library))
            ]
            axes.plot(
                *zip(*found, strict=True) if found else ((), ()),
                color=STYLES[library][0],
                marker="o",
                markersize=4,
                label=library,
            )
        axes.set_title(f"{name}, {dtype}", fontsize=9)
        axes.set_xscale("log")
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel("segments" if name in SEGMENTS else "window")
        axes.grid(color="#e5e5e5", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("copies")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure
