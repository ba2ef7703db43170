"""`python -m jaxnorm bench --growth`: whether the time per byte stays flat as inputs grow."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxnorm.cli import outputs
from jaxnorm.cli.bench.measure import (
    Cell,
    describe_failures,
    list_jobs,
    list_libraries,
    make_rows,
)
from jaxnorm.cli.errors import UserError
from jaxnorm.cli.jobs import Report, run_and_report
from jaxnorm.cli.machine import describe_machine
from jaxnorm.cli.peers import installed
from jaxnorm.cli.peers.case import Case
from jaxnorm.cli.tables import Grid, number, ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CSV, PICTURE = "growth.csv", "growth.png"
MEGABYTES = (8, 32, 128, 512, 1024)
QUICK_MEGABYTES = (8, 32, 128)
# What follows the first axis, which grows.
TOKEN, IMAGE = (768,), (56, 56, 64)
# Memory as a multiple of the input: x and dy on the host and on the device, results, and what is
# computed on the way, of which flax.linen has up to 12 in bfloat16.
COPIES, COPIES_WITH_PEERS = 9, 20


def run(args: argparse.Namespace) -> int:
    """Measures all sizes, prints the table, writes the files; 0, or 130 if interrupted."""
    sizes = sorted(args.megabytes or (QUICK_MEGABYTES if args.quick else MEGABYTES))
    check_memory(sizes[-1], COPIES_WITH_PEERS if args.peers else COPIES)
    rounds = args.rounds or (5 if args.quick else 11)
    cases = list_cases(
        args.norms or ("layer", "batch"), args.dtypes or ("float32", "bfloat16"), sizes
    )
    libraries, missing = installed.load(args.peers or ())
    outputs.prepare_folder(args.out, CSV, PICTURE)
    machine = describe_machine(libraries)
    title = f"{machine.text}; median of {rounds}; {args.pages} pages"

    def report(cells: list[Cell]) -> Report:
        notes = [*describe_growth(cells), *describe_failures(cells)]
        notes += [f"Not compared: {reason}." for reason in missing]
        notes.append(f"Measured on {title}.")
        rows = make_rows(cells, machine, rounds, args.pages)
        return Report([make_grid(cells)], notes, rows, draw(cells, title))

    jobs = list_jobs(cases, libraries, rounds)
    return run_and_report(jobs, report, args, (CSV, PICTURE), "size was measured")


def check_memory(largest: int, copies: int) -> None:
    """Checks that the largest input, in megabytes, can be measured at all.

    Args:
      largest: its size.
      copies: how many times that is needed.

    Raises:
      UserError: the machine has too little memory; it would end without a word.
    """
    if jax.default_backend() != "cpu" or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = copies * largest * 2**20
    if needed > total:
        raise UserError(
            f"--megabytes {largest} needs about {needed / 1e9:.0f} GB of memory, this machine has "
            f"{total / 1e9:.0f} GB; give smaller sizes"
        )


def list_cases(norms: Sequence[str], dtypes: Sequence[str], sizes: Sequence[int]) -> list[Case]:
    """Returns cases whose inputs have about the given sizes in megabytes, 2^20 bytes."""
    cases = []
    for size in sizes:
        for norm in norms:
            rest = TOKEN if norm in ("layer", "rms") else IMAGE
            for dtype in dtypes:
                first = size * 2**20 / (math.prod(rest) * jnp.dtype(dtype).itemsize)
                cases.append(Case(norm, (max(2, round(first)), *rest), dtype))
    return cases


Curve = tuple[str, str, str]


def _curves(cells: Sequence[Cell]) -> dict[Curve, list[Cell]]:
    """Returns the cells of each norm, dtype and direction, in the order of their sizes."""
    curves: dict[Curve, list[Cell]] = {}
    for cell in cells:
        curves.setdefault((cell.case.norm, cell.case.dtype, cell.direction), []).append(cell)
    return curves


def _per_byte(seconds: float, cell: Cell) -> float:
    """Returns nanoseconds per byte of input."""
    return 1e9 * seconds / cell.case.input_bytes


def describe_growth(cells: Sequence[Cell]) -> list[str]:
    """Returns a line for each curve: how far the times per byte lie apart."""
    lines = []
    for name, curve in _curves(cells).items():

        def spread(seconds: list[float], curve=curve) -> str:
            values = [_per_byte(s, c) for s, c in zip(seconds, curve, strict=True)]
            return ratio(max(values) / min(values))

        lines.append(
            f"{' '.join(name)}: the longest time per byte is {spread([c.seconds for c in curve])} "
            f"times the shortest; of the copy {spread([c.copy_seconds for c in curve])}."
        )
    return lines


def make_grid(cells: Sequence[Cell]) -> Grid:
    """Returns the table of times per byte."""
    libraries = ["jaxnorm", *list_libraries(cells)]
    rows = []
    for name, curve in _curves(cells).items():
        for cell in curve:
            found = [cell.of(library) for library in libraries]
            rows.append(
                (
                    *name,
                    number(cell.case.input_bytes / 2**20),
                    number(_per_byte(cell.copy_seconds, cell)),
                    *(number(_per_byte(m.seconds, cell) if m else None) for m in found),
                )
            )
    return Grid(
        "Nanoseconds per byte of input",
        ("norm", "dtype", "direction", "size in MB", "copy", *libraries),
        rows,
        labels=3,
    )


def draw(cells: Sequence[Cell], title: str) -> Figure:
    """Draws the time per byte against the size, a panel per norm and direction."""
    from matplotlib.figure import Figure

    from jaxnorm.cli.bench.picture import COPY_STYLE, STYLES, set_title

    curves = _curves(cells)
    names = list(dict.fromkeys((norm, direction) for norm, _, direction in curves))
    dtypes = list(dict.fromkeys(dtype for _, dtype, _ in curves))
    size = (3.6 * len(names) + 0.6, 2.8 * len(dtypes) + 1.2)
    figure = Figure(figsize=size, layout="constrained")
    set_title(figure, "Time per byte of input", title)
    panels = figure.subplots(len(dtypes), len(names), sharex=True, sharey="row", squeeze=False)
    for i, dtype in enumerate(dtypes):
        for j, (norm, direction) in enumerate(names):
            axes, curve = panels[i, j], curves.get((norm, dtype, direction), [])
            sizes = [c.case.input_bytes / 2**20 for c in curve]
            for library in ("jaxnorm", *list_libraries(cells)):
                found = [c.of(library) for c in curve]
                heights = [m and _per_byte(m.seconds, c) for m, c in zip(found, curve, strict=True)]
                color = STYLES[library][0]
                axes.plot(sizes, heights, color=color, marker="o", markersize=4, label=library)
            heights = [_per_byte(c.copy_seconds, c) for c in curve]
            axes.plot(sizes, heights, label="copy", **COPY_STYLE)
            axes.set_title(f"{norm}, {dtype}, {direction}", fontsize=9)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.grid(color="#e5e5e5", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            if i == len(dtypes) - 1:
                axes.set_xlabel("input in MB")
        panels[i, 0].set_ylabel("ns per byte")
        panels[i, 0].set_ylim(bottom=0)  # of the whole row
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))
    return figure
