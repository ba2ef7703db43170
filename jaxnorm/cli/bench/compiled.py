"""`python -m jaxnorm bench --compile-for`: what the compiler of a TPU or GPU makes of the norms."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm.cli import outputs
from jaxnorm.cli.bench import nets
from jaxnorm.cli.bench.cases import list_cases
from jaxnorm.cli.bench.chips import TPUS, Compiled, Target, describe_compiler, make_target
from jaxnorm.cli.bench.measure import name_direction
from jaxnorm.cli.bench.timing import touch
from jaxnorm.cli.errors import UserError
from jaxnorm.cli.jobs import Job, Progress, Report, run_and_report
from jaxnorm.cli.machine import Machine, describe_machine
from jaxnorm.cli.peers.case import NORMS, Case
from jaxnorm.cli.peers.jax_libraries import load_flax, load_jaxnorm
from jaxnorm.cli.peers.jax_peer import JaxPeer, foreign_code
from jaxnorm.cli.tables import Grid, geometric_mean, megabytes, number, ratio

CSV, MODELS_CSV = "compiled.csv", "compiled-models.csv"
ROWS = ((64, 197, 768), (65536, 128), (16384, 4096), (1024, 768))
IMAGES = ((64, 28, 28, 256), (32, 112, 112, 64), (64, 56, 56, 256))
SHAPES = {"layer": ROWS, "rms": ROWS, "batch": IMAGES, "group": IMAGES, "instance": IMAGES}
MB = 1_000_000  # less temporary memory counts as this much
MASKED = ("layer", "batch")
MODEL_SHAPES = ((32, 256, 768), (32, 28, 28, 256))
# How the layers of a model are written, and how many there are.
LAYERS = {"written out": 2, "scan": 6}
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
        cases = nets.list_cases(norms, args.shapes or MODEL_SHAPES, dtypes)
        csv, labels, list_jobs = MODELS_CSV, MODEL_LABELS, list_models
    else:
        norms = args.norms or NORMS
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

    def report(pairs: list[Pair]) -> Report:
        machine = describe_machine([load_jaxnorm(), load_flax()])
        versions = f"{machine.versions}, {describe_compiler(target.chip)}"
        machine = machine._replace(device=describe_target(target), versions=versions)
        notes = [*make_means(pairs), explain(target), f"Compiled for {machine.text}."]
        rows = make_rows(pairs, labels, target, machine)
        return Report([make_grid(pairs, labels, target)], notes, rows)

    return run_and_report(list_jobs(cases, target), report, args, [csv], "program was compiled")


def list_norms(cases: Sequence[Case], target: Target) -> list[Job[Pair]]:
    """Returns a job for each case and direction; a norm's first shape also comes with a mask."""
    libraries = load_jaxnorm(), load_flax()

    @functools.cache
    def compile_copy(shape: tuple[int, ...], dtype: str, arrays: int) -> Compiled:
        x = target.array(shape, dtype, divided=True)
        return target.compile(lambda *arrays: [touch(a) for a in arrays], *[x] * arrays)

    def job(case: Case, masked: bool, backward: bool) -> Job[Pair]:
        norm = f"{case.norm}, mask" if masked else case.norm
        labels = (norm, case.shape_text, case.dtype, name_direction(backward))

        def run_job(_: Progress) -> Pair:
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
        count = f"{LAYERS[layers]}, {layers}"
        labels = (nets.name_of(case), case.shape_text, case.dtype, count)

        def compile_step(library: str) -> Compiled:
            if not sys.stderr.isatty():
                # A compiler that dies takes the process with it; the last line tells where.
                print(f"compiling {' '.join(labels)} of {library}", file=sys.stderr, flush=True)
            return target.compile(*make_step(case, layers, nets.PACKAGES[library], target))

        def run_job(_: Progress) -> Pair:
            return Pair(labels, *map(compile_step, nets.PACKAGES))

        return Job(" ".join(labels), run_job)

    return [job(case, layers) for case in cases for layers in LAYERS]


def make_step(case: Case, layers: str, package: ModuleType, target: Target) -> tuple[Any, ...]:
    """Returns a training step, and descriptions of its arguments.

    Args:
      case: the normalization, the shape of the input, and the dtype of the computation; the
        parameters are float32.
      layers: how they are written, of `LAYERS`.
      package: `jaxnorm.linen` or `flax.linen`.
      target: what it will be compiled for.
    """
    model = nets.make_model(case, package, LAYERS[layers], in_scan=layers == "scan")
    x = target.array(case.shape, case.dtype, divided=True)
    with foreign_code():
        variables = jax.eval_shape(
            lambda: model.init(jax.random.key(0), jnp.zeros(case.shape, case.dtype))
        )
    variables = jax.tree.map(lambda leaf: target.array(leaf.shape, leaf.dtype), variables)
    parameters = variables.pop("params")
    labels = target.array(case.shape[:1], jnp.int32, divided=True)
    return nets.make_update(model), parameters, variables, x, labels


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
            *(f"{name} {unit if models else '/ copy'}" for name in nets.PACKAGES),
            "flax.linen / jaxnorm",
            *(f"{name}: {column}" for column in columns for name in nets.PACKAGES),
        ),
        rows,
        labels=len(labels),
    )


def make_rows(
    pairs: Sequence[Pair],
    labels: tuple[str, ...],
    target: Target,
    machine: Machine,
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
        for library, each in zip(nets.PACKAGES, (pair.ours, pair.theirs), strict=True)
    ]
