"""`python -m jaxnorm bench --models`: training steps with jaxnorm's and flax.linen's modules."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxnorm.cli import outputs
from jaxnorm.cli.bench import nets
from jaxnorm.cli.bench.measure import Cell, Measurement, make_rows
from jaxnorm.cli.bench.timing import interleave
from jaxnorm.cli.jobs import Job, Progress, Report, run_and_report
from jaxnorm.cli.machine import describe_machine
from jaxnorm.cli.peers import installed
from jaxnorm.cli.peers.case import Case
from jaxnorm.cli.peers.jax_peer import compile_program, foreign_code
from jaxnorm.cli.tables import Grid, megabytes, number, ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CSV, PICTURE = "models.csv", "models.png"
SHAPES = ((16, 64, 192), (32, 16, 16, 128))
BLOCKS = 4
# Of what a cell says, what there is of a model.
COLUMNS = (
    "shape dtype library milliseconds times_jaxnorm temp_bytes compile_seconds cpu_seconds".split()
)


def run(args: argparse.Namespace) -> int:
    """Measures the steps, prints the table, writes the files; 0, or 130 if interrupted."""
    rounds = args.rounds or (5 if args.quick else 15)
    norms, dtypes = args.norms or ("batch", "layer"), args.dtypes or ("float32", "bfloat16")
    cases = nets.list_cases(norms, args.shapes or SHAPES, dtypes)
    outputs.prepare_folder(args.out, CSV, PICTURE)
    libraries, _ = installed.load(("flax.linen",))
    machine = describe_machine(libraries)
    title = f"{machine.text}; median of {rounds}; {args.pages} pages"

    def report(cells: list[Cell]) -> Report:
        rows = [
            {
                "model": nets.name_of(cell.case),
                **{name: row[name] for name in COLUMNS},
                "rounds": rounds,
                "pages": args.pages,
                **machine._asdict(),
            }
            for cell in cells
            for row in make_rows([cell], machine, rounds, args.pages)
        ]
        return Report([make_grid(cells)], [f"Measured on {title}."], rows, draw(cells, title))

    jobs = [_job(case, rounds) for case in cases]
    return run_and_report(jobs, report, args, (CSV, PICTURE), "model was measured")


def _job(case: Case, rounds: int) -> Job[Cell]:
    def run_job(tell: Progress) -> Cell:
        programs = [
            compile_program(*make_step(case, package)) for package in nets.PACKAGES.values()
        ]
        seconds = interleave(programs, rounds, tell)
        measurements = tuple(
            Measurement(
                name,
                time,
                program.compile_seconds,
                program.temp_bytes,
                cpu_seconds=program.compile_cpu_seconds,
            )
            for name, program, time in zip(nets.PACKAGES, programs, seconds, strict=True)
        )
        return Cell(case, True, math.nan, measurements)

    return Job(f"{nets.name_of(case)}, {case.dtype}", run_job)


def make_step(case: Case, package: Any) -> tuple[Any, ...]:
    """Returns a training step with the modules of a package, and its arguments."""
    model = nets.make_model(case, package, BLOCKS)
    x = jax.random.normal(jax.random.key(1), case.shape, jnp.dtype(case.dtype))
    labels = jnp.arange(len(x), dtype=jnp.int32) % nets.CLASSES
    with foreign_code():
        running = dict(jax.jit(model.init)(jax.random.key(0), x))
    parameters = running.pop("params")
    return nets.make_update(model), parameters, running, x, labels


def make_grid(cells: Sequence[Cell]) -> Grid:
    """Returns the table: a row for each model and dtype."""
    rows = []
    for cell in cells:
        ours, theirs = cell.measurements
        rows.append(
            (
                nets.name_of(cell.case),
                cell.case.dtype,
                *(number(1e3 * m.seconds) for m in cell.measurements),
                ratio(theirs.seconds / ours.seconds),
                *(megabytes(m.temp_bytes) for m in cell.measurements),
                *(ratio(m.compile_seconds) for m in cell.measurements),
                *(ratio(m.cpu_seconds) for m in cell.measurements),
            )
        )
    costs = ("temp MB", "compile s", "CPU s to first step")
    names = [f"{name}: {what}" for what in costs for name in nets.PACKAGES]
    times = [f"{name}: ms" for name in nets.PACKAGES]
    return Grid(
        "One training step with the modules of jaxnorm and of flax.linen",
        ("model", "dtype", *times, "flax.linen / jaxnorm", *names),
        rows,
        labels=2,
    )


def draw(cells: Sequence[Cell], title: str) -> Figure:
    """Draws bars of the time and the temporary memory, as shares of flax.linen's."""
    from matplotlib.figure import Figure

    from jaxnorm.cli.bench.picture import STYLES, set_title

    figure = Figure(figsize=(9, 0.5 * len(cells) + 1.8), layout="constrained")
    set_title(figure, "One training step with jaxnorm, as a share of flax.linen's (dashed)", title)
    panels = figure.subplots(1, 2, sharey=True)
    labels = [f"{nets.name_of(cell.case)}, {cell.case.dtype}" for cell in cells]
    pairs = [cell.measurements for cell in cells]
    shares = {
        "time": [ours.seconds / theirs.seconds for ours, theirs in pairs],
        "temporary memory": [(a.temp_bytes or 0) / (b.temp_bytes or 1) for a, b in pairs],
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
