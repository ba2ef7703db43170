"""`python -m jaxnorm bench`: each normalization alone, beside its peers and a copy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jax

from jaxnorm.cli import outputs
from jaxnorm.cli.bench.cases import LARGE_BYTES, NORMS, list_cases
from jaxnorm.cli.bench.measure import (
    Cell,
    describe_failures,
    list_jobs,
    list_libraries,
    make_rows,
)
from jaxnorm.cli.jobs import Report, run_and_report
from jaxnorm.cli.machine import describe_machine
from jaxnorm.cli.peers import installed
from jaxnorm.cli.tables import Grid, geometric_mean, megabytes, number, ratio

CSV, PICTURE = "bench.csv", "bench.png"
REFERENCE = "flax.linen"
TIMES_TITLE = (
    "Times: jaxnorm in ms and as a multiple of a copy of the same bytes; of the others, how many "
    "times as long as jaxnorm they take"
)


def run(args: argparse.Namespace) -> int:
    """Measures the cases, prints the tables, writes the files; 0, or 130 if interrupted."""
    on_cpu = jax.default_backend() == "cpu"
    sizes = ("small", "medium", "large") if on_cpu else ("small", "medium", "large", "huge")
    if args.quick:
        sizes = ("small", "large")
    cases = list_cases(
        args.norms or NORMS,
        args.sizes or sizes,
        args.shapes,
        args.dtypes or ("float32", "bfloat16"),
    )
    rounds = args.rounds or (5 if args.quick else 21)
    peers = (REFERENCE,) if args.quick and not args.peers else args.peers
    libraries, missing = installed.load(peers)
    outputs.prepare_folder(args.out, CSV, PICTURE)
    machine = describe_machine(libraries)
    title = f"{machine.text}; median of {rounds}; {args.pages} pages"

    def report(cells: list[Cell]) -> Report:
        from jaxnorm.cli.bench.picture import draw_cells

        notes = [*worst_cells(cells), *compare_compiling(cells), *describe_failures(cells)]
        notes += [f"Not compared: {reason}." for reason in missing]
        notes.append(f"Measured on {title}.")
        grids = [make_means(cells), make_times(cells), make_costs(cells)]
        rows = make_rows(cells, machine, rounds, args.pages)
        return Report(grids, notes, rows, draw_cells(cells, title))

    jobs = list_jobs(cases, libraries, rounds)
    return run_and_report(jobs, report, args, (CSV, PICTURE), "case was measured")


def make_means(cells: Sequence[Cell]) -> Grid:
    """Returns the geometric means over the large inputs, per dtype and direction."""
    libraries = list_libraries(cells)
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if cell.case.input_bytes >= LARGE_BYTES:
            groups.setdefault((cell.case.dtype, cell.direction), []).append(cell)

    def mean(group: Sequence[Cell], library: str) -> str:
        speedups = (cell.speedup(library) for cell in group)
        return ratio(geometric_mean(s for s in speedups if s is not None))

    rows = [
        (
            *key,
            str(len(group)),
            ratio(geometric_mean(cell.seconds / cell.copy_seconds for cell in group)),
            *(mean(group, library) for library in libraries),
        )
        for key, group in groups.items()
    ]
    return Grid(
        f"Geometric means over inputs of {LARGE_BYTES / 1e6:g} MB and more: jaxnorm as a multiple "
        "of a copy; of the others, how many times as long as jaxnorm they take",
        ("dtype", "direction", "cases", "jaxnorm / copy", *libraries),
        rows,
        labels=2,
    )


def make_times(cells: Sequence[Cell]) -> Grid:
    """Returns the times of every cell."""
    libraries = list_libraries(cells)
    rows = [
        (
            *cell.labels,
            number(1e3 * cell.seconds),
            ratio(cell.seconds / cell.copy_seconds),
            *(ratio(cell.speedup(library)) for library in libraries),
        )
        for cell in cells
    ]
    header = ("norm", "shape", "dtype", "direction", "jaxnorm ms", "jaxnorm / copy", *libraries)
    return Grid(TIMES_TITLE, header, rows, labels=4)


def make_costs(cells: Sequence[Cell]) -> Grid:
    """Returns compile times and memory of every cell, of jaxnorm and flax.linen."""
    libraries = ["jaxnorm", *(name for name in list_libraries(cells) if name == REFERENCE)]
    rows = []
    for cell in cells:
        texts = {"compile": [], "temp": [], "kept": []}
        for measurement in map(cell.of, libraries):
            compile_seconds = temp = kept = None
            if measurement is not None:
                compile_seconds, temp = measurement.compile_seconds, measurement.temp_bytes
                if measurement.kept_bytes is not None:
                    kept = measurement.kept_bytes / cell.case.input_bytes
            texts["compile"].append(ratio(compile_seconds))
            texts["temp"].append(megabytes(temp))
            texts["kept"].append(ratio(kept))
        rows.append((*cell.labels, *texts["compile"], *texts["temp"], *texts["kept"]))
    names = (f"{name}: {what}" for what in ("compile s", "temp MB", "kept") for name in libraries)
    return Grid(
        "Costs: compile time, temporary memory of the compiled program, and what is kept for the "
        "backward pass as a multiple of the input",
        ("norm", "shape", "dtype", "direction", *names),
        rows,
        labels=4,
    )


def worst_cells(cells: Sequence[Cell]) -> list[str]:
    """Returns a line for each library: the cell that looks worst for jaxnorm."""
    lines = []
    for library in list_libraries(cells):
        speedups = [(s, cell) for cell in cells if (s := cell.speedup(library)) is not None]
        slower, much_slower = (sum(s < limit for s, _ in speedups) for limit in (1, 0.9))
        worst, cell = min(speedups, key=lambda pair: pair[0])
        lines.append(
            f"Against {library}: {len(speedups)} cells, {slower} below 1, {much_slower} below 0.9; "
            f"the lowest is {ratio(worst)}: {' '.join(cell.labels)}."
        )
    return lines


def compare_compiling(cells: Sequence[Cell]) -> list[str]:
    """Returns a line on the compile times, if flax.linen's are there to compare with."""
    ratios = []
    for cell in cells:
        ours, theirs = cell.measurements[0], cell.of(REFERENCE)
        if theirs and theirs.compile_seconds and ours.compile_seconds:
            ratios.append((ours.compile_seconds / theirs.compile_seconds, cell))
    if not ratios:
        return []
    longest, cell = max(ratios, key=lambda pair: pair[0])
    return [
        f"Compile time over that of {REFERENCE}: {ratio(geometric_mean(r for r, _ in ratios))} in "
        f"the mean, at most {ratio(longest)}: {' '.join(cell.labels)}."
    ]
