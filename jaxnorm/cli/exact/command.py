"""`python -m jaxnorm exact`: how exact the normalizations are, and what they keep, beside peers."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxnorm.cli import arguments, bench_machine, bench_tables, outputs, peers
from jaxnorm.cli.bench_jobs import Job, Report, run_jobs
from jaxnorm.cli.bench_machine import Machine
from jaxnorm.cli.bench_tables import Grid
from jaxnorm.cli.errors import require
from jaxnorm.cli.peers import EPSILON, Case, Data, Peer

CSV = "exact.csv"
RATIOS = (1.0, 1e2, 1e4, 1e6)
MEMORY_DTYPES = ("float32", "bfloat16")
SHAPES = {"layer": (512, 768), "rms": (512, 768)}
IMAGES = (16, 16, 16, 64)
DESCRIPTION = """\
Runs each normalization on float32 inputs whose mean is 1 to 1,000,000 times their standard
deviation, and compares with the same formula in float64 on the same input; and counts the bytes
that are kept from the forward for the backward pass. Writes exact.csv."""


class Row(NamedTuple):
    """What was found of one normalization of one library.

    Attributes:
      errors: the largest |output - reference| for each of `RATIOS`; NaN if the output has one.
      kept: bytes kept for the backward pass over the input's bytes, for each of `MEMORY_DTYPES`.
      failure: why it could not be run, if it could not.
    """

    norm: str
    library: str
    errors: tuple[float, ...] = ()
    kept: tuple[float, ...] = ()
    failure: str = ""


def add_parser(subparsers) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        "exact",
        help="compare exactness and memory with other libraries",
        description=DESCRIPTION,
    )
    parser.add_argument(
        "--norms",
        type=arguments.comma_list(arguments.one_of(*peers.NORMS)),
        default=peers.NORMS,
        metavar="A,B",
        help=f"of {', '.join(peers.NORMS)} (default: all)",
    )
    parser.add_argument(
        "--peers",
        type=arguments.comma_list(arguments.one_of(*peers.PEERS)),
        metavar="A,B",
        help=f"of {', '.join(peers.PEERS)} (default: all that are installed)",
    )
    parser.add_argument(
        "--seed", type=arguments.whole_number, default=0, help="of the inputs (default: 0)"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="print the table as Markdown, for a README"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("exact"), metavar="FOLDER", help="output folder"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs all libraries, prints the table, writes the file; 0, or 130 if interrupted."""
    require("rich")
    libraries, missing = peers.load(args.peers)
    outputs.prepare_folder(args.out, CSV)
    machine = bench_machine.describe(libraries)
    measured, interrupted = run_jobs(list_jobs(args.norms, libraries, args.seed))
    rows = [row for rows in measured for row in rows]
    if not rows:
        print("Interrupted before the first normalization was run; nothing was written.")
        return 130
    notes = [f"{r.library} cannot run {r.norm} norm here: {r.failure}" for r in rows if r.failure]
    notes += [f"Not compared: {reason}." for reason in missing]
    notes.append(f"Measured on {machine.text}.")
    bench_tables.show([make_grid(rows)], notes, args.markdown)
    bench_tables.write_files(args.out, CSV, make_rows(rows, machine, args.seed))
    bench_tables.tell_written(args.out, interrupted, CSV)
    return 130 if interrupted else 0


def list_jobs(
    norms: Sequence[str], libraries: Sequence[Peer], seed: int = 0
) -> list[Job[list[Row]]]:
    """Returns a job for each normalization, whose result is a list of `Row`, one per library."""
    return [_job(norm, libraries, seed) for norm in norms]


def _job(norm: str, libraries: Sequence[Peer], seed: int) -> Job[list[Row]]:
    used = [library for library in libraries if norm in library.norms]

    def run_job(report: Report) -> list[Row]:
        rows = []
        # The libraries share the inputs and the reference.
        make_data = functools.cache(functools.partial(Data, seed=seed))
        refer = functools.cache(lambda mean: reference(norm, make_data(case, mean=mean)))
        case = Case(norm, SHAPES.get(norm, IMAGES), "float32")
        for library in used:
            try:
                rows.append(_measure(library, case, make_data, refer))
            except Exception as error:
                # Other libraries fail on some versions and devices; jaxnorm must not.
                if library is libraries[0]:
                    raise
                first_line, *_ = f"{type(error).__name__}: {error}".splitlines()
                rows.append(Row(norm, library.name, failure=first_line))
            report()
        return rows

    return Job(f"{norm} norm", run_job, len(used))


def _measure(library: Peer, case: Case, make_data, refer) -> Row:
    errors = [
        float(np.max(np.abs(library.evaluate(case, make_data(case, mean=mean))[0] - refer(mean))))
        for mean in RATIOS
    ]
    kept = []
    for dtype in MEMORY_DTYPES:
        typed = case._replace(dtype=dtype)
        kept.append(library.kept_bytes(typed, make_data(typed)) / typed.input_bytes)
    return Row(case.norm, library.name, tuple(errors), tuple(kept))


def reference(norm: str, data: Data) -> np.ndarray:
    """Returns the result in float64, from the formula."""
    x = data.x.astype(np.float64)
    gamma, beta = (*(p.astype(np.float64) for p in data.parameters), 0.0)[:2]
    if norm == "rms":
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPSILON) * gamma + beta
    shape = x.shape
    axes: tuple[int, ...] = (-1,)
    if norm == "batch":
        axes = tuple(range(x.ndim - 1))
    elif norm == "instance":
        axes = tuple(range(1, x.ndim - 1))
    elif norm == "group":
        groups = Case(norm, shape, "float32").num_groups
        x = x.reshape(*shape[:-1], groups, shape[-1] // groups)
        axes = (*range(1, len(shape) - 1), len(shape))
    centered = x - np.mean(x, axis=axes, keepdims=True)
    var = np.mean(centered * centered, axis=axes, keepdims=True)
    return (centered / np.sqrt(var + EPSILON)).reshape(shape) * gamma + beta


def make_grid(rows: Sequence[Row]) -> Grid:
    """Returns the table: a row for each normalization of each library."""
    empty = (bench_tables.ABSENT,) * (len(RATIOS) + len(MEMORY_DTYPES))
    return Grid(
        "Largest error against float64, of float32 inputs with the given mean / standard "
        "deviation, and bytes kept for the backward pass over the input's bytes",
        (
            "norm",
            "library",
            *(f"error at {mean:g}" for mean in RATIOS),
            *(f"kept, {dtype}" for dtype in MEMORY_DTYPES),
        ),
        [
            (
                row.norm,
                row.library,
                *(
                    empty
                    if row.failure
                    else (
                        *(f"{error:.0e}" for error in row.errors),
                        *(f"{kept:.2f}" for kept in row.kept),
                    )
                ),
            )
            for row in rows
        ],
        labels=2,
    )


def make_rows(rows: Sequence[Row], machine: Machine, seed: int) -> list[dict[str, Any]]:
    """Returns a row for each normalization of each library, for the CSV file."""
    return [
        {
            "norm": row.norm,
            "library": row.library,
            **dict(zip((f"error_at_{mean:g}" for mean in RATIOS), row.errors, strict=False)),
            **dict(zip((f"kept_{dtype}" for dtype in MEMORY_DTYPES), row.kept, strict=False)),
            "failure": row.failure,
            "seed": seed,
            **machine._asdict(),
        }
        for row in rows
    ]
