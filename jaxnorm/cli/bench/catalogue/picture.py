"""The picture of the catalogue: a group of bars for each function."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from jaxnorm.cli.bench.measure import Cell
from jaxnorm.cli.bench.picture import STYLES, set_title


def draw_bars(cells: Sequence[Cell], title: str) -> Figure:
    """Draws the copies of each function, of jaxnorm as bars and of its peers as marks."""
    figure = Figure(figsize=(9, 0.24 * len(cells) + 1.8), layout="constrained")
    set_title(figure, "Forward and backward, in copies of the input", title)
    axes = figure.subplots()
    copies = [cell.seconds / cell.copy_seconds for cell in cells]
    color, _ = STYLES["jaxnorm"]
    axes.barh(range(len(cells)), copies, 0.7, color=color, label="jaxnorm")
    for library, (color, _) in STYLES.items():
        found = [(m, c, i) for i, c in enumerate(cells) if (m := c.of(library))]
        if found and library != "jaxnorm":
            heights = [m.seconds / c.copy_seconds for m, c, _ in found]
            places = [i for *_, i in found]
            axes.scatter(
                heights, places, 28, color=color, edgecolor="black", label=library, zorder=3
            )
    names = [f"{c.case.norm}, {c.case.shape_text}, {c.case.dtype}" for c in cells]
    axes.set_yticks(range(len(cells)), names, fontsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper right")
    return figure
