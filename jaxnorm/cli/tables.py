"""Tables of measurements: on the terminal, as Markdown, and as a CSV file."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxnorm.cli.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

ABSENT = "–"  # noqa: RUF001, a dash as typeset


class Grid(NamedTuple):
    """A table of texts.

    Attributes:
      title: says what the numbers are.
      header: names of the columns.
      rows: one text per column.
      labels: how many of the first columns say what is measured.
    """

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    labels: int


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
    logarithms = [math.log(value) for value in values]
    return math.exp(math.fsum(logarithms) / len(logarithms)) if logarithms else None


def show(grids: Sequence[Grid], notes: Sequence[str], as_markdown: bool) -> None:
    """Prints tables, and lines of text below them."""
    from rich.console import Console

    if as_markdown:
        print("\n\n".join([*map(to_markdown, grids), *notes]))
        return
    console = Console()
    for grid in grids:
        _print_grid(console, grid)
    for note in notes:
        console.print(note, soft_wrap=True, highlight=False, markup=False)


def to_markdown(grid: Grid) -> str:
    """Returns the table in Markdown."""
    rules = [":--"] * grid.labels + ["--:"] * (len(grid.header) - grid.labels)
    lines = (grid.header, rules, *grid.rows)
    return f"{grid.title}:\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _print_grid(console: Console, grid: Grid) -> None:
    """Prints the table; a label that repeats the row above is left out."""
    from rich.table import Table

    table = Table(title=grid.title, title_justify="left")
    for i, name in enumerate(grid.header):
        table.add_column(name, justify="left" if i < grid.labels else "right")
    above: tuple[str, ...] = ()
    for row in grid.rows:
        if above and row[0] != above[0]:
            table.add_section()
        labels = [
            "" if row[: i + 1] == above[: i + 1] else text
            for i, text in enumerate(row[: grid.labels])
        ]
        table.add_row(*labels, *row[grid.labels :])
        above = row
    if not console.is_terminal:
        # A file or a pipe has no width that the table would have to fit into.
        unlimited = console.options.update(max_width=1000)
        console.width = max(console.width, console.measure(table, options=unlimited).maximum)
    console.print(table)


def write_files(
    folder: Path,
    csv_name: str,
    rows: Sequence[dict[str, Any]],
    picture_name: str | None = None,
    figure: Figure | None = None,
) -> None:
    """Writes rows of the same keys as a CSV file, and a picture.

    Raises:
      UserError: a file cannot be written.
    """
    try:
        with (folder / csv_name).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        if figure is not None and picture_name is not None:
            figure.savefig(folder / picture_name, dpi=120)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error


def tell_written(folder: Path, interrupted: bool, *names: str) -> None:
    """Tells the user, apart from the results, which files there are."""
    verb = "Interrupted, kept what was measured" if interrupted else "Done"
    paths = " and ".join(str(folder / name) for name in names)
    print(f"{verb}; wrote {paths}.", file=sys.stderr)
