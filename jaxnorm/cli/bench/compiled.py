"""`python -m jaxnorm bench --compile-for`: what the compiler of a TPU or GPU makes of the norms."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxnorm.cli import bench_compiled_nets as nets
from jaxnorm.cli import bench_machine, bench_tables, outputs, peers
from jaxnorm.cli.bench_cases import list_cases
from jaxnorm.cli.bench_compiled_chips import (
    TPUS,
    Compiled,
    Target,
    describe_compiler,
    make_target,
)
from jaxnorm.cli.bench_jobs import Job, run_jobs
from jaxnorm.cli.bench_models import PACKAGES
from jaxnorm.cli.bench_tables import Grid, geometric_mean, megabytes, number, ratio
from jaxnorm.cli.bench_timing import touch
from jaxnorm.cli.errors import UserError
from jaxnorm.cli.peers import Case
from jaxnorm.cli.peers_jax import JaxPeer, load_flax, load_jaxnorm

CSV, MODELS_CSV = "compiled.csv", "compiled-models.csv"
ROWS = ((64, 197, 768), (65536, 128), (16384, 4096), (1024, 768))
IMAGES = ((64, 28, 28, 256), (32, 112, 112, 64), (64, 56, 56, 256))
SHAPES = {"layer": ROWS, "rms": ROWS, "batch": IMAGES, "group": IMAGES, "instance": IMAGES}
MB = 1_000_000  # less temporary memory counts as this much
MASKED = ("layer", "batch")
NORM_LABELS = ("norm", "shape", "dtype", "direction")
MODEL_LABELS = ("model", "shape", "dtype", "layers")


class Pair(NamedTuple):
    """A program with jaxnorm's and with flax.linen's normalization.

    Attributes:
      labels: say what it is; the last one says which programs belong together in a mean.
      ours, theirs: what became of it.
      copy: a program that reads and writes the same bytes; None for a model.
    """

    labels: tuple[str, ...]
    ours: Compiled
    theirs: Compiled
    copy: Compiled | None = None

    @property
    def gain(self) -> float:
        """How many times as much as with jaxnorm it costs with flax.linen."""
        return self.theirs.cost / self.ours.cost


def run(args: argparse.Namespace) -> int:
    """Compiles all, prints the table, writes the file; 0, or 130 if interrupted."""
    dtypes = args.dtypes or ("float32", "bfloat16")
    if args.models:
        norms = args.norms or ("batch", "group", "layer", "rms")
        cases = nets.list_cases(norms, args.shapes or nets.SHAPES, dtypes)
        csv, labels, list_jobs = MODELS_CSV, MODEL_LABELS, list_models
    else:
        norms = args.norms or peers.NORMS
        cases = [c for n in norms for c in list_cases([n], (), args.shapes or SHAPES[n], dtypes)]
        csv, labels, list_jobs = CSV, NORM_LABELS, list_norms
    devices = args.devices or 1
    for case in cases:
        if case.shape[0] % devices:
            raise UserError(
                f"the first axis of {case.shape_text} does not divide over --devices {devices}"
            )
    target = make_target(args.compile_for, devices, args.explicit)
    outputs.prepare_folder(args.out, csv)
    pairs, interrupted = run_jobs(list_jobs(cases, target))
    if not pairs:
        print("Interrupted before the first program was compiled; nothing was written.")
        return 130
    machine = bench_machine.describe([load_jaxnorm(), load_flax()])
    versions = f"{machine.versions}, {describe_compiler(target.chip)}"
    machine = machine._replace(device=describe_target(target), versions=versions)
    notes = [*make_means(pairs), explain(target), f"Compiled for {machine.text}."]
    bench_tables.show([make_grid(pairs, labels, target)], notes, args.markdown)
    rows = make_rows(pairs, labels, target, machine)
    bench_tables.write_files(args.out, csv, rows)
    bench_tables.tell_written(args.out, interrupted, csv)
    return 130 if interrupted else 0


def list_norms(cases: Sequence[Case], target: Target) -> list[Job[Pair]]:
    """Returns a job for each case and direction; a norm's first shape also comes with a mask."""
    libraries = load_jaxnorm(), load_flax()

    @functools.cache
    def compile_copy(shape: tuple[int, ...], dtype: str, arrays: int) -> Compiled:
        x = target.array(shape, dtype, divided=True)
        return target.compile(lambda *arrays: [touch(a) for a in arrays], *[x] * arrays)

    def job(case: Case, masked: bool, backward: bool) -> Job[Pair]:
        direction = "forward+backward" if backward else "forward"
        norm = f"{case.norm}, mask" if masked else case.norm
        labels = (norm, case.shape_text, case.dtype, direction)

        def run_job(_: Callable[[], None]) -> Pair:
            copy = compile_copy(case.shape, case.dtype, 2 if backward else 1)
            ours, theirs = (compile_norm(p, case, masked, backward, target) for p in libraries)
            return Pair(labels, ours, theirs, copy)

        return Job(" ".join(labels), run_job)

    jobs = []
    for case in cases:
        first = case.shape == next(c.shape for c in cases if c.norm == case.norm)
        for masked in (False, True) if first and case.norm in MASKED else (False,):
            jobs += [job(case, masked, backward) for backward in (False, True)]
    return jobs


def compile_norm(
    peer: JaxPeer, case: Case, masked: bool, backward: bool, target: Target
) -> Compiled:
    """Compiles a norm: of layer norm a mask has every element, of batch norm every position."""
    x = target.array(case.shape, case.dtype, divided=True)
    channel = target.array(case.shape[-1:], jnp.float32)
    keywords: dict[str, Any] = {}
    if case.norm == "batch":
        keywords["running"] = (channel, channel)
    if masked:
        shape = case.shape if case.norm == "layer" else (*case.shape[:-1], 1)
        keywords["mask"] = target.array(shape, jnp.bool_, divided=True)
    parameters = [channel] if case.norm == "rms" else [channel, channel]
    arguments = [x, x, *parameters] if backward else [x, *parameters]
    return target.compile(peer.function(case, backward), *arguments, **keywords)


def list_models(cases: Sequence[Case], target: Target) -> list[Job[Pair]]:
    """Returns a job for each case, and for each way of writing a model's layers."""

    def job(case: Case, layers: str) -> Job[Pair]:
        count = f"{nets.LAYERS[layers]}, {layers}"
        labels = (nets.name_of(case), case.shape_text, case.dtype, count)

        def compile_step(library: str) -> Compiled:
            if not sys.stderr.isatty():
                # A compiler that dies takes the process with it; the last line tells where.
                print(f"compiling {' '.join(labels)} of {library}", file=sys.stderr, flush=True)
            return target.compile(*nets.make_step(case, layers, PACKAGES[library], target))

        def run_job(_: Callable[[], None]) -> Pair:
            return Pair(labels, *map(compile_step, PACKAGES))

        return Job(" ".join(labels), run_job)

    return [job(case, layers) for case in cases for layers in nets.LAYERS]


def describe_target(target: Target) -> str:
    """Returns the chips in words."""
    count = target.mesh.size
    chips = target.chip if count == 1 else f"{count} {target.chip}, the batch divided"
    return f"{chips}, explicit axes" if target.is_explicit else chips


def explain(target: Target) -> str:
    """Returns what the figures are, and are not."""
    if target.chip in TPUS:
        what = "the estimates of XLA's compiler (estimated_cycles, summed)"
    else:
        what = "the bytes that the kernels read and write, counted from the shapes of arrays"
    return f"These are {what}, not measured times: nothing has run."


def make_means(pairs: Sequence[Pair]) -> list[str]:
    """Returns a line for the programs of each kind: means, and the one that looks worst."""
    lines = []
    for kind in dict.fromkeys(pair.labels[-1] for pair in pairs):
        group = [pair for pair in pairs if pair.labels[-1] == kind]
        worst = min(group, key=lambda pair: pair.gain)
        temp = [max(MB, p.ours.temp_bytes) / max(MB, p.theirs.temp_bytes) for p in group]
        lines.append(
            f"{kind}: flax.linen / jaxnorm {ratio(geometric_mean(p.gain for p in group))} in the "
            f"mean of {len(group)}, {sum(p.gain < 0.95 for p in group)} below 0.95, the lowest "
            f"{ratio(worst.gain)}: {' '.join(worst.labels)}; compiling, jaxnorm / flax.linen, "
            f"{ratio(geometric_mean(p.ours.seconds / p.theirs.seconds for p in group))} in the "
            f"mean; temporary memory {ratio(geometric_mean(temp))}, at most {ratio(max(temp))}."
        )
    return lines


def make_grid(pairs: Sequence[Pair], labels: tuple[str, ...], target: Target) -> Grid:
    """Returns the table: a row for each program."""
    what, unit = ("estimated cycles", "Mcycles") if target.chip in TPUS else ("bytes", "MB")
    models = pairs[0].copy is None
    divided = target.mesh.size > 1
    rows = []
    for pair in pairs:
        both = (pair.ours, pair.theirs)
        if pair.copy:
            costs = [ratio(each.cost / pair.copy.cost) for each in both]
        else:
            costs = [number(each.cost / 1e6, 4) for each in both]
        row = [*pair.labels, *costs, ratio(pair.gain), *(megabytes(e.temp_bytes) for e in both)]
        row += [number(each.seconds) for each in both if models]
        rows.append((*row, *(str(each.collectives) for each in both if divided)))
    columns = ["temp MB", *["compile s"] * models, *["collectives"] * divided]
    title = f"{describe_target(target)}: {what} "
    return Grid(
        title + ("of a training step" if models else "as multiples of a copy's"),
        (
            *labels,
            *(f"{name} {unit if models else '/ copy'}" for name in PACKAGES),
            "flax.linen / jaxnorm",
            *(f"{name}: {column}" for column in columns for name in PACKAGES),
        ),
        rows,
        labels=len(labels),
    )


def make_rows(
    pairs: Sequence[Pair],
    labels: tuple[str, ...],
    target: Target,
    machine: bench_machine.Machine,
) -> list[dict[str, Any]]:
    """Returns a row for each program and library, for the CSV file."""
    return [
        {
            **dict(zip(labels, pair.labels, strict=True)),
            "library": library,
            "unit": "estimated cycles" if target.chip in TPUS else "bytes",
            "cost": each.cost,
            "copy_cost": pair.copy and pair.copy.cost,
            "times_jaxnorm": f"{each.cost / pair.ours.cost:.4g}",
            "temp_bytes": each.temp_bytes,
            "collectives": each.collectives,
            "compile_seconds": f"{each.seconds:.4g}",
            **machine._asdict(),
        }
        for pair in pairs
        for library, each in zip(PACKAGES, (pair.ours, pair.theirs), strict=True)
    ]
