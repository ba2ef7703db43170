"""Tables of measurements: on the terminal and as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.table import Table

ABSENT = "–"  # noqa: RUF001, a dash as typeset


class Grid(NamedTuple):
    """A table of texts.

    Attributes:
      title: says what the numbers are.
      header: names of the columns.
      rows: one text per column.
      labels: how many of the first columns say what is measured.
      strong: row and column of the texts to print in bold.
    """

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    labels: int
    strong: frozenset[tuple[int, int]] = frozenset()


def number(value: float | None, digits: int = 3) -> str:
    """Returns a number with significant digits, and never with an exponent; a dash for None."""
    if value is None:
        return ABSENT
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def megabytes(value: int | None) -> str:
    """Returns a number of bytes in MB."""
    return number(None if value is None else value / 1e6)


def ratio(value: float | None) -> str:
    """Returns a ratio with two decimals."""
    return ABSENT if value is None else f"{value:.2f}"


def geometric_mean(values: Iterable[float]) -> float | None:
    """Returns the geometric mean; None of nothing."""
    numbers = list(values)
    return statistics.geometric_mean(numbers) if numbers else None


def show(grids: Sequence[Grid], notes: Sequence[str], as_markdown: bool = False) -> None:
    """Prints tables, and lines of text below them."""
    from rich.console import Console

    if as_markdown:
        print("\n\n".join([*map(to_markdown, grids), *notes]))
        return
    console = Console(markup=False, highlight=False)
    for grid in grids:
        table = make_table(grid, console.width)
        if not console.is_terminal:
            # A file or a pipe has no width that the table would have to fit into.
            unlimited = console.options.update(max_width=1000)
            console.width = max(console.width, console.measure(table, options=unlimited).maximum)
        console.print(table)
    for note in notes:
        console.print(note, soft_wrap=True)


def to_markdown(grid: Grid) -> str:
    """Returns the table in Markdown."""
    rules = [":--"] * grid.labels + ["--:"] * (len(grid.header) - grid.labels)
    lines = (grid.header, rules, *grid.rows)
    return f"{grid.title}:\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def make_table(grid: Grid, width: int) -> Table:
    """Returns the table for a terminal; a label that repeats the row above is left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(grid.title), title_justify="left")
    # Where there is no room for all, names are broken into lines before texts are.
    columns = zip(*(grid.rows or [grid.header]), strict=True)
    widest = [max(map(len, column)) for column in columns]
    fit = sum(widest) + 3 * len(widest) + 1 <= width
    for i, name in enumerate(grid.header):
        justify = "left" if i < grid.labels else "right"
        table.add_column(name, justify=justify, min_width=widest[i] if fit else None)
    above: tuple[str, ...] = ()
    for i, row in enumerate(grid.rows):
        if above and row[0] != above[0]:
            table.add_section()
        texts = [
            Text("" if j < grid.labels and row[: j + 1] == above[: j + 1] else text)
            for j, text in enumerate(row)
        ]
        for j, text in enumerate(texts):
            if (i, j) in grid.strong:
                text.stylize("bold")
        table.add_row(*texts)
        above = row
    return table
