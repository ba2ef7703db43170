"""Tables of measurements: on the terminal and as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import RenderableType
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
    if not console.is_terminal:
        # A file or a pipe has no width that a table would have to fit into.
        console.width = 1000
    for grid in grids:
        console.print(make_table(grid, console.width))
    for note in notes:
        console.print(note, soft_wrap=True)


def to_markdown(grid: Grid) -> str:
    """Returns the table in Markdown."""
    rules = [":--"] * grid.labels + ["--:"] * (len(grid.header) - grid.labels)
    lines = (grid.header, rules, *grid.rows)
    return f"{grid.title}:\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def make_table(grid: Grid, width: int) -> RenderableType:
    """Returns the table for a terminal; a label that repeats the row above is left out.

    Where there is no room, names of columns are broken into lines; then the table is divided into
    several, each with the labels; then labels are broken. A number never is.
    """
    from rich.console import Group

    columns = zip(*(grid.rows or [grid.header]), strict=True)
    widths = [max(map(len, column)) for column in columns]
    labels, numbers = widths[: grid.labels], widths[grid.labels :]
    room = width - _FRAME - max(numbers, default=0) - _BETWEEN
    while labels and sum(labels) + _BETWEEN * len(labels) > room and max(labels) > 1:
        labels[labels.index(max(labels))] -= 1
    widths = labels + numbers
    first = list(range(grid.labels))
    parts = [list(first)]
    for column in range(grid.labels, len(widths)):
        if len(parts[-1]) > len(first) and _width([*parts[-1], column], widths) > width:
            parts.append(list(first))
        parts[-1].append(column)
    tables = [_make_part(grid, part, widths, width, not i) for i, part in enumerate(parts)]
    return tables[0] if len(tables) == 1 else Group(*tables)


_FRAME, _BETWEEN = 1, 3  # characters of lines and blanks: of a table, and of each column


def _width(columns: Sequence[int], widths: Sequence[int]) -> int:
    """Returns the width of a table of those columns."""
    return _FRAME + sum(widths[column] + _BETWEEN for column in columns)


def _make_part(
    grid: Grid, columns: Sequence[int], widths: Sequence[int], width: int, titled: bool
) -> Table:
    """Returns a table of some of the columns, each at least of its width."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(grid.title) if titled else None, title_justify="left")
    wide = list(widths)
    # What room is left goes to names of columns: first so that words are whole, then to all.
    for wanted in (lambda name: max(map(len, name.split()), default=0), len):
        for column in columns:
            left = width - _width(columns, wide)
            wide[column] += max(0, min(left, wanted(grid.header[column]) - wide[column]))
    for column in columns:
        justify = "left" if column < grid.labels else "right"
        name = grid.header[column]
        table.add_column(name, justify=justify, width=wide[column], overflow="fold")
    above: tuple[str, ...] = ()
    for i, row in enumerate(grid.rows):
        if above and row[0] != above[0]:
            table.add_section()
        texts = [
            Text(
                "" if j < grid.labels and row[: j + 1] == above[: j + 1] else row[j],
                "bold" if (i, j) in grid.strong else "",
            )
            for j in columns
        ]
        table.add_row(*texts)
        above = row
    return table
