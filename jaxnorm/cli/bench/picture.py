"""The picture of `bench`: bars of the time of each library, as multiples of a copy."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxnorm.cli.bench.cases import name_size
from jaxnorm.cli.bench.measure import Cell

# Colours of Okabe and Ito, which colour-blind readers tell apart; hatches tell the bars apart
# without any colour.
STYLES = {
    "jaxnorm": ("#D55E00", ""),
    "flax.linen": ("#0072B2", "//"),
    "haiku": ("#56B4E9", ".."),
    "equinox": ("#009E73", "\\\\"),
    "tokamax": ("#F0E442", "xx"),
    "torch": ("#CC79A7", "--"),
    "torch.compile": ("#999999", "++"),
    "by hand": ("#FFFFFF", "||"),
}
COPY_STYLE = {"color": "#000000", "linewidth": 1.0, "linestyle": (0, (4, 2))}


def draw_cells(cells: Sequence[Cell], title: str) -> Figure:
    """Draws a row of panels per size and a column per dtype and direction."""
    present = {m.library for cell in cells for m in cell.measurements}
    libraries = [name for name in STYLES if name in present]
    rows = list(dict.fromkeys(_row(cell) for cell in cells))
    columns = list(dict.fromkeys((cell.case.dtype, cell.direction) for cell in cells))
    bars = max(len(_of(cells, row, column)) for row in rows for column in columns)
    width = max(0.13 * bars * (len(libraries) + 1) + 0.6, 2.6)
    figure = Figure(
        figsize=(max(width * len(columns) + 0.8, 8), 2.5 * len(rows) + 1.4), layout="constrained"
    )
    set_title(figure, "Time as a multiple of a copy of the same bytes", title)
    panels = figure.subplots(len(rows), len(columns), sharey="row", squeeze=False)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            _draw_panel(panels[i, j], _of(cells, row, column), libraries)
            if i == 0:
                panels[i, j].set_title(" ".join(column), fontsize=10, fontweight="bold")
        in_row = [c for c in cells if _row(c) == row]
        _scale(panels[i, 0], [m.seconds / c.copy_seconds for c in in_row for m in c.measurements])
        shapes = "\n".join(dict.fromkeys(c.case.shape_text for c in in_row))
        name = "" if shapes == row else f"{row}\n"
        panels[i, 0].set_ylabel(f"{name}{shapes}", fontsize=9)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))
    return figure


def set_title(figure: Figure, heading: str, details: str) -> None:
    """Writes the heading, and below it what was measured where, broken into lines that fit."""
    lines = textwrap.wrap(details, int(13 * figure.get_size_inches()[0]))
    figure.suptitle("\n".join([heading, *lines]), fontsize=9)


def _row(cell: Cell) -> str:
    return name_size(cell.case.shape) or cell.case.shape_text


def _of(cells: Sequence[Cell], row: str, column: tuple[str, str]) -> list[Cell]:
    return [c for c in cells if _row(c) == row and (c.case.dtype, c.direction) == column]


def _scale(axes: Axes, heights: Sequence[float]) -> None:
    """Fits the common vertical axis of a row."""
    low, high = min(0.8, *heights) / 1.1, max(2.2, *heights) * 1.1
    ticks = [2.0**k for k in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
    axes.set_yscale("log", base=2)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(low, high)


def _draw_panel(axes: Axes, cells: Sequence[Cell], libraries: Sequence[str]) -> None:
    width = 0.8 / len(libraries)
    for k, library in enumerate(libraries):
        color, hatch = STYLES[library]
        places, heights = [], []
        for i, cell in enumerate(cells):
            if measurement := cell.of(library):
                places.append(i + (k - (len(libraries) - 1) / 2) * width)
                heights.append(measurement.seconds / cell.copy_seconds)
        axes.bar(
            places,
            heights,
            width,
            label=library,
            color=color,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.4,
        )
    axes.axhline(1, label="copy", **COPY_STYLE)
    axes.set_xticks(range(len(cells)), [cell.case.norm for cell in cells], fontsize=8)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
