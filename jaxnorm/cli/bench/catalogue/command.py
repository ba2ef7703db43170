"""`python -m jaxnorm bench --norms all`, or functions by name: the catalogue, and its growth."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jaxnorm.cli import outputs
from jaxnorm.cli.bench.cases import ALL
from jaxnorm.cli.bench.catalogue import growth
from jaxnorm.cli.bench.catalogue.functions import list_entries
from jaxnorm.cli.bench.catalogue.measured import list_jobs
from jaxnorm.cli.bench.catalogue.picture import draw_bars
from jaxnorm.cli.bench.measure import Cell, make_rows
from jaxnorm.cli.jobs import Report, run_and_report
from jaxnorm.cli.machine import describe_machine
from jaxnorm.cli.peers import installed
from jaxnorm.cli.tables import Grid, number, ratio

CSV, PICTURE = "catalogue.csv", "catalogue.png"
TITLE = (
    "Forward and backward: time in copies (one read and one write of the input), temporary memory "
    "in inputs, compile time"
)
REFERENCE = "flax.linen"
DEAREST = 5  # of functions, in the note


def run(args: argparse.Namespace) -> int:
    """Measures the functions, prints the table, writes the files; 0, or 130 if interrupted."""
    rounds = args.rounds or (3 if args.quick else 11)
    peers = (REFERENCE,) if args.quick and not args.peers else args.peers
    libraries, missing = installed.load(peers)
    entries = growth.list_entries() if args.growth else list_entries()
    if args.norms != (ALL,):
        entries = [entry for entry in entries if entry.name in args.norms]
    files = (growth.CSV, growth.PICTURE) if args.growth else (CSV, PICTURE)
    outputs.prepare_folder(args.out, *files)
    machine = describe_machine(libraries)
    title = f"{machine.text}; median of {rounds}; {args.pages} pages"

    def report(cells: list[Cell]) -> Report:
        notes = growth.describe(cells) if args.growth else [describe_dearest(cells)]
        notes += describe_failures(cells)
        notes += [f"Not compared: {reason}." for reason in missing]
        notes.append(f"Measured on {title}.")
        draw = growth.draw if args.growth else draw_bars
        rows = make_rows(cells, machine, rounds, args.pages)
        return Report([make_grid(cells)], notes, rows, draw(cells, title))

    jobs = list_jobs(entries, args.dtypes or ("float32",), libraries[1:], rounds)
    return run_and_report(jobs, report, args, files, "function was measured")


def make_grid(cells: Sequence[Cell]) -> Grid:
    """Returns the table: a row for each function and peer."""
    rows = []
    for cell in cells:
        for one in cell.measurements:
            rows.append(
                (
                    cell.case.norm,
                    cell.case.shape_text,
                    cell.case.dtype,
                    one.library,
                    number(one.seconds / cell.copy_seconds),
                    _inputs(one.temp_bytes, cell),
                    _inputs(one.kept_bytes, cell),
                    ratio(one.compile_seconds),
                    ratio(one.seconds / cell.seconds),
                )
            )
    header = ("function", "shape", "dtype", "library", "copies", "temp / input", "kept / input")
    return Grid(TITLE, (*header, "compile s", "times jaxnorm"), rows, labels=4)


def _inputs(count: int | None, cell: Cell) -> str:
    return ratio(None if count is None else count / cell.case.input_bytes)


def describe_dearest(cells: Sequence[Cell]) -> str:
    """Returns a line on the functions that take the most copies."""
    cells = sorted(cells, key=lambda cell: -cell.seconds / cell.copy_seconds)[:DEAREST]
    texts = (f"{cell.case.norm} ({number(cell.seconds / cell.copy_seconds)})" for cell in cells)
    return f"The dearest, in copies: {', '.join(texts)}."


def describe_failures(cells: Sequence[Cell]) -> list[str]:
    """Returns a line for each library and function that could not be run."""
    return [
        f"{name} cannot run {cell.case.norm} here: {error}"
        for cell in cells
        for name, error in cell.failures
    ]
