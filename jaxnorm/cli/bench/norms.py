"""`python -m jaxnorm bench`: each normalization alone, beside its peers and a copy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import jax

from jaxnorm.cli import bench_machine, bench_tables, outputs, peers
from jaxnorm.cli.bench_cases import LARGE_BYTES, NORMS, list_cases, make_data
from jaxnorm.cli.bench_jobs import Job, Report, run_jobs
from jaxnorm.cli.bench_machine import Machine
from jaxnorm.cli.bench_measure import Cell, measure
from jaxnorm.cli.bench_tables import Grid, geometric_mean, megabytes, number, ratio
from jaxnorm.cli.peers import Case, Data, Peer

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
    libraries, missing = peers.load((REFERENCE,) if args.quick and not args.peers else args.peers)
    outputs.prepare_folder(args.out, CSV, PICTURE)
    machine = bench_machine.describe(libraries)

    cells, interrupted = run_jobs(list_jobs(cases, libraries, rounds))
    if not cells:
        print("Interrupted before the first case was measured; nothing was written.")
        return 130
    title = f"{machine.text}; median of {rounds}; {args.pages} pages"
    notes = [*worst_cells(cells), *compare_compiling(cells), *describe_failures(cells)]
    notes += [f"Not compared: {reason}." for reason in missing]
    notes.append(f"Measured on {title}.")
    grids = [make_means(cells), make_times(cells), make_costs(cells)]
    bench_tables.show(grids, notes, args.markdown)
    from jaxnorm.cli.bench_picture import draw_cells

    rows = make_rows(cells, machine, rounds, args.pages)
    bench_tables.write_files(args.out, CSV, rows, PICTURE, draw_cells(cells, title))
    bench_tables.tell_written(args.out, interrupted, CSV, PICTURE)
    return 130 if interrupted else 0


def list_jobs(cases: Sequence[Case], libraries: Sequence[Peer], rounds: int) -> list[Job[Cell]]:
    """Returns a job for each case and direction; the two directions share their arrays."""
    held: dict[Case, Data] = {}

    def job(case: Case, backward: bool) -> Job[Cell]:
        def run_job(report: Report) -> Cell:
            if case not in held:
                held.clear()  # first, as the arrays of two cases need not fit into memory
                held[case] = make_data(case)
            return measure(case, held[case], backward, libraries, rounds, report)

        direction = "forward+backward" if backward else "forward"
        return Job(f"{case.norm} {case.shape_text} {case.dtype} {direction}", run_job, rounds)

    return [job(case, backward) for case in cases for backward in (False, True)]


def list_libraries(cells: Sequence[Cell]) -> list[str]:
    """Returns the names of the peers that were measured, in order."""
    names = dict.fromkeys(m.library for cell in cells for m in cell.measurements[1:])
    return list(names)


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
            *_labels(cell),
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
        rows.append((*_labels(cell), *texts["compile"], *texts["temp"], *texts["kept"]))
    names = (f"{name}: {what}" for what in ("compile s", "temp MB", "kept") for name in libraries)
    return Grid(
        "Costs: compile time, temporary memory of the compiled program, and what is kept for the "
        "backward pass as a multiple of the input",
        ("norm", "shape", "dtype", "direction", *names),
        rows,
        labels=4,
    )


def _labels(cell: Cell) -> tuple[str, str, str, str]:
    return cell.case.norm, cell.case.shape_text, cell.case.dtype, cell.direction


def worst_cells(cells: Sequence[Cell]) -> list[str]:
    """Returns a line for each library: the cell that looks worst for jaxnorm."""
    lines = []
    for library in list_libraries(cells):
        speedups = [(s, cell) for cell in cells if (s := cell.speedup(library)) is not None]
        slower, much_slower = (sum(s < limit for s, _ in speedups) for limit in (1, 0.9))
        worst, cell = min(speedups, key=lambda pair: pair[0])
        lines.append(
            f"Against {library}: {len(speedups)} cells, {slower} below 1, {much_slower} below 0.9; "
            f"the lowest is {ratio(worst)}: {' '.join(_labels(cell))}."
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
        f"the mean, at most {ratio(longest)}: {' '.join(_labels(cell))}."
    ]


def describe_failures(cells: Sequence[Cell]) -> list[str]:
    """Returns a line for each library and norm that could not be run."""
    failures = {(name, cell.case.norm): e for cell in cells for name, e in cell.failures}
    return [f"{name} cannot run {norm} norm here: {e}" for (name, norm), e in failures.items()]


def make_rows(
    cells: Sequence[Cell], machine: Machine, rounds: int, pages: str
) -> list[dict[str, Any]]:
    """Returns a row for each cell and library, for the CSV file."""
    return [
        {
            "norm": cell.case.norm,
            "shape": cell.case.shape_text,
            "dtype": cell.case.dtype,
            "direction": cell.direction,
            "library": m.library,
            "milliseconds": f"{1e3 * m.seconds:.6g}",
            "times_jaxnorm": f"{m.seconds / cell.seconds:.4g}",
            "times_copy": f"{m.seconds / cell.copy_seconds:.4g}",
            "copy_milliseconds": f"{1e3 * cell.copy_seconds:.6g}",
            "input_bytes": cell.case.input_bytes,
            "compile_seconds": None if m.compile_seconds is None else f"{m.compile_seconds:.4g}",
            "temp_bytes": m.temp_bytes,
            "kept_bytes": m.kept_bytes,
            "rounds": rounds,
            "pages": pages,
            **machine._asdict(),
        }
        for cell in cells
        for m in cell.measurements
    ]
