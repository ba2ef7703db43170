"""`python -m jaxnorm bench --models`: training steps with jaxnorm's and flax.linen's modules."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn

import jaxnorm.linen as jnn
from jaxnorm.cli import bench_machine, bench_tables, outputs, peers
from jaxnorm.cli.bench_jobs import Job, Report, run_jobs
from jaxnorm.cli.bench_machine import Machine
from jaxnorm.cli.bench_nets import make_step, name_of
from jaxnorm.cli.bench_tables import Grid, megabytes, number, ratio
from jaxnorm.cli.bench_timing import interleave
from jaxnorm.cli.peers_jax import compile_program

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CSV, PICTURE = "models.csv", "models.png"
PACKAGES = {"jaxnorm": jnn, "flax.linen": nn}


class StepResult(NamedTuple):
    """A training step of one model with one library's modules."""

    norm: str
    dtype: str
    library: str
    seconds: float
    compile_seconds: float
    temp_bytes: int | None


def run(args: argparse.Namespace) -> int:
    """Measures the steps, prints the table, writes the files; 0, or 130 if interrupted."""
    rounds = args.rounds or (5 if args.quick else 15)
    outputs.prepare_folder(args.out, CSV, PICTURE)
    libraries, _ = peers.load(("flax.linen",))
    machine = bench_machine.describe(libraries)
    jobs = [
        _job(norm, dtype, rounds)
        for norm in args.norms or ("batch", "layer")
        for dtype in args.dtypes or ("float32", "bfloat16")
    ]
    results, interrupted = run_jobs(jobs)
    if not results:
        print("Interrupted before the first model was measured; nothing was written.")
        return 130
    title = f"{machine.text}; median of {rounds}; {args.pages} pages"
    bench_tables.show([make_grid(results)], [f"Measured on {title}."], args.markdown)
    rows = make_rows(results, machine, rounds, args.pages)
    bench_tables.write_files(args.out, CSV, rows, PICTURE, draw(results, title))
    bench_tables.tell_written(args.out, interrupted, CSV, PICTURE)
    return 130 if interrupted else 0


def _job(norm: str, dtype: str, rounds: int) -> Job[list[StepResult]]:
    def run_job(report: Report) -> list[StepResult]:
        programs = [
            compile_program(*make_step(norm, dtype, package)) for package in PACKAGES.values()
        ]
        seconds = interleave(programs, rounds, report)
        return [
            StepResult(norm, dtype, name, time, program.compile_seconds or 0.0, program.temp_bytes)
            for name, program, time in zip(PACKAGES, programs, seconds, strict=True)
        ]

    return Job(f"{name_of(norm)}, {dtype}", run_job, rounds)


def make_grid(results: Sequence[Sequence[StepResult]]) -> Grid:
    """Returns the table: a row for each model and dtype."""
    rows = []
    for ours, theirs in results:
        rows.append(
            (
                name_of(ours.norm),
                ours.dtype,
                number(1e3 * ours.seconds),
                number(1e3 * theirs.seconds),
                ratio(theirs.seconds / ours.seconds),
                megabytes(ours.temp_bytes),
                megabytes(theirs.temp_bytes),
                ratio(ours.compile_seconds),
                ratio(theirs.compile_seconds),
            )
        )
    names = (f"{name}: {what}" for what in ("temp MB", "compile s") for name in PACKAGES)
    return Grid(
        "One training step with the modules of jaxnorm and of flax.linen",
        ("model", "dtype", *(f"{name}: ms" for name in PACKAGES), "flax.linen / jaxnorm", *names),
        rows,
        labels=2,
    )


def make_rows(
    results: Sequence[Sequence[StepResult]], machine: Machine, rounds: int, pages: str
) -> list[dict[str, Any]]:
    """Returns a row for each model, dtype and library, for the CSV file."""
    return [
        {
            "model": name_of(result.norm),
            "dtype": result.dtype,
            "library": result.library,
            "milliseconds": f"{1e3 * result.seconds:.6g}",
            "times_jaxnorm": f"{result.seconds / pair[0].seconds:.4g}",
            "temp_bytes": result.temp_bytes,
            "compile_seconds": f"{result.compile_seconds:.4g}",
            "rounds": rounds,
            "pages": pages,
            **machine._asdict(),
        }
        for pair in results
        for result in pair
    ]


def draw(results: Sequence[Sequence[StepResult]], title: str) -> Figure:
    """Draws bars of the time and the temporary memory, as shares of flax.linen's."""
    from matplotlib.figure import Figure

    from jaxnorm.cli.bench_picture import STYLES, set_title

    figure = Figure(figsize=(9, 0.5 * len(results) + 1.8), layout="constrained")
    set_title(figure, "One training step with jaxnorm, as a share of flax.linen's (dashed)", title)
    panels = figure.subplots(1, 2, sharey=True)
    labels = [f"{name_of(ours.norm)}, {ours.dtype}" for ours, _ in results]
    shares = {
        "time": [ours.seconds / theirs.seconds for ours, theirs in results],
        "temporary memory": [
            (ours.temp_bytes or 0) / (theirs.temp_bytes or 1) for ours, theirs in results
        ],
    }
    for axes, (what, values) in zip(panels, shares.items(), strict=True):
        bars = axes.barh(range(len(values)), values, 0.6, color=STYLES["jaxnorm"][0])
        texts = [ratio(value) for value in values]
        axes.bar_label(bars, texts, label_type="center", color="white", fontweight="bold")
        axes.axvline(1, color=STYLES["flax.linen"][0], linestyle=(0, (4, 2)))
        axes.set_xlim(0, max(1.3, *values) * 1.1)
        axes.set_title(what, fontsize=10)
        axes.set_yticks(range(len(labels)), labels, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    return figure
