"""`python -m jaxnorm exact`: how exact the normalizations are, and what they keep, beside peers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from jaxnorm.cli import arguments, outputs
from jaxnorm.cli.errors import require
from jaxnorm.cli.exact.measure import MEMORY_DTYPES, RATIOS, Row, list_jobs
from jaxnorm.cli.jobs import Report, run_and_report
from jaxnorm.cli.machine import Machine, describe_machine
from jaxnorm.cli.peers import installed
from jaxnorm.cli.peers.case import NORMS
from jaxnorm.cli.tables import ABSENT, Grid

CSV = "exact.csv"
DESCRIPTION = """\
Runs each normalization on float32 inputs whose mean is 1 to 1,000,000 times their standard
deviation, and compares with the same formula in float64 on the same input; and counts the bytes
that are kept from the forward for the backward pass. Writes exact.csv."""


def add_parser(subparsers) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        "exact",
        help="compare exactness and memory with other libraries",
        description=DESCRIPTION,
    )
    norms = f"of {', '.join(NORMS)} (default: all)"
    arguments.add_list(parser, "--norms", arguments.one_of(*NORMS), norms, default=NORMS)
    peers = f"of {', '.join(installed.PEERS)} (default: all that are installed)"
    arguments.add_list(parser, "--peers", arguments.one_of(*installed.PEERS), peers)
    parser.add_argument(
        "--seed", type=arguments.whole_number, default=0, help="of the inputs (default: 0)"
    )
    arguments.add_report(parser, "exact")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs all libraries, prints the table, writes the file; 0, or 130 if interrupted."""
    require("rich")
    outputs.prepare_folder(args.out, CSV)
    libraries, missing = installed.load(args.peers)
    machine = describe_machine(libraries)

    def report(measured: list[list[Row]]) -> Report:
        rows = [row for rows in measured for row in rows]
        failed = [row for row in rows if row.failure]
        notes = [f"{r.library} cannot run {r.norm} norm here: {r.failure}" for r in failed]
        notes += [f"Not compared: {reason}." for reason in missing]
        notes.append(f"Measured on {machine.text}.")
        return Report([make_grid(rows)], notes, make_rows(rows, machine, args.seed))

    jobs = list_jobs(args.norms, libraries, args.seed)
    return run_and_report(jobs, report, args, [CSV], "normalization was run")


def make_grid(rows: Sequence[Row]) -> Grid:
    """Returns the table: a row for each normalization of each library."""
    empty = (ABSENT,) * (len(RATIOS) + len(MEMORY_DTYPES))

    def cells(row: Row) -> tuple[str, ...]:
        return (*(f"{e:.0e}" for e in row.errors), *(f"{kept:.2f}" for kept in row.kept))

    errors, kept = (f"error at {r:g}" for r in RATIOS), (f"kept, {d}" for d in MEMORY_DTYPES)
    return Grid(
        "Largest error against float64, of float32 inputs with the given mean / standard "
        "deviation, and bytes kept for the backward pass over the input's bytes",
        ("norm", "library", *errors, *kept),
        [(row.norm, row.library, *(cells(row) or empty)) for row in rows],
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
