"""`python -m jaxnorm compare`: one classifier, trained with each normalization."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxnorm.cli import arguments
from jaxnorm.cli.compare.norms import NORMS, NUM_GROUPS
from jaxnorm.cli.compare.results import Result, make_grid, make_rows
from jaxnorm.cli.compare.settings import FULL, SHORT, Setting, list_settings
from jaxnorm.cli.errors import UserError, require
from jaxnorm.cli.jobs import Job, Progress, run_jobs
from jaxnorm.cli.outputs import prepare_folder, write_csv
from jaxnorm.cli.tables import show

if TYPE_CHECKING:
    from jaxnorm.cli.compare.data import Dataset, Split

CSV, PICTURE = "compare.csv", "compare.png"
ALL = "all"
DESCRIPTION = """\
Trains the same small convolutional classifier with each normalization, by plain stochastic
gradient descent, and compares test accuracy, steps to a target accuracy and time per step.
Writes compare.csv and compare.png. Ctrl-C ends it early and keeps what was measured.

With --norms all it trains with every normalization that fits a convolutional network. Those of
sequences (cumulative norm looks back in time), graphs and raw inputs do not, nor do those that need
a gate or a condition. Where a norm pools positions, the hidden dense layer goes without."""


def add_parser(subparsers) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        "compare",
        help="train one classifier with each normalization and compare them",
        description=DESCRIPTION,
    )

    def add_list(name: str, read: arguments.Read, text: str) -> None:
        short, full = (_join(d[name[2:].replace("-", "_")]) for d in (SHORT, FULL))
        text = f"{text} (default: {short}; with --full {full})"
        arguments.add_list(parser, name, read, text)

    def add(name: str, read: arguments.Read, default: str, metavar: str, text: str) -> None:
        # argparse reads a default that is text like an argument, and shows it as one types it.
        parser.add_argument(
            name, type=read, default=default, metavar=metavar, help=f"{text} (default: {default})"
        )

    norms = f"normalizations: {ALL}, or some of {', '.join(NORMS)}"
    add_list("--norms", arguments.one_of(*NORMS, ALL), norms)
    add_list("--batch-sizes", arguments.positive_int, "batch sizes")
    add_list("--learning-rates", arguments.positive_float, "learning rates")
    seeds = "seeds of split, initialization and order (default: 0)"
    arguments.add_list(parser, "--seeds", arguments.whole_number, seeds, default="0")
    parser.add_argument(
        "--full",
        action="store_true",
        help="more normalizations, batch sizes and learning rates, but those that are given",
    )
    hidden = "units of the hidden dense layer, normalized too; 0: no such layer"
    add("--hidden", arguments.whole_number, "32", "UNITS", hidden)
    add("--epochs", arguments.positive_int, "5", "N", "passes over the training examples")
    add("--target", arguments.share, "0.95", "SHARE", "test accuracy that the steps are counted to")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE.npz",
        help="images x (N, H, W, C) and labels y (N,) (default: scikit-learn's digits)",
    )
    add("--out", Path, "compare", "FOLDER", "where compare.csv and compare.png are written")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the comparison; 0, or 130 if it was interrupted."""
    require("matplotlib", "rich", "sklearn")
    from jaxnorm.cli.compare.data import load_digits, load_file, split_dataset
    from jaxnorm.cli.compare.picture import draw

    start = time.perf_counter()
    left_out = fill_in(args)
    check_hidden(args)
    prepare_folder(args.out, CSV, PICTURE)
    data = load_file(args.data) if args.data else load_digits()
    splits = {seed: split_dataset(data, seed) for seed in args.seeds}
    examples = len(next(iter(splits.values())).x_train)
    if max(args.batch_sizes) > examples:
        raise UserError(
            f"too few examples: a batch of {max(args.batch_sizes)} needs as many training "
            f"examples, {data.name} leaves {examples} of {len(data.x)}"
        )
    trained, interrupted = run_jobs(list_jobs(args, data, splits))
    if not trained:
        print("Interrupted before the first row was measured; nothing was written.")
        return 130
    title = (
        f"{data.name}: {examples} training and {len(data.x) - examples} test examples, "
        f"{count(args.epochs, 'epoch')}, {count(len({r.setting.seed for r in trained}), 'seed')}"
    )
    # Once more: the interruption may have come while it was being written.
    write_csv(args.out / CSV, make_rows(trained))
    draw(trained, title).savefig(args.out / PICTURE, dpi=120)
    verb = "Interrupted: kept" if interrupted else "Measured"
    end = (
        f"{verb} {count(len(trained), 'row')} in {time.perf_counter() - start:.0f} s; "
        f"wrote {args.out / CSV} and {args.out / PICTURE}."
    )
    show([make_grid(trained, title)], [*left_out, end])
    return 130 if interrupted else 0


def fill_in(args: argparse.Namespace) -> list[str]:
    """Fills in what was not said, and returns a line on what a short run leaves out."""
    if ALL in (args.norms or ()):
        args.norms = tuple(NORMS)
    left = {name: values for name, values in FULL.items() if getattr(args, name) is None}
    for name in left:
        setattr(args, name, (FULL if args.full else SHORT)[name])
    if args.full or not left:
        return []
    given = {name: getattr(args, name) for name in FULL}
    rows = [len(args.seeds) * math.prod(map(len, g.values())) for g in (given, {**given, **left})]
    more = (f"{name.replace('_', ' ')} {_join(values)}" for name, values in left.items())
    return [f"This is the short run: {rows[0]} rows. --full has {rows[1]}: {', '.join(more)}."]


def _join(values: Sequence[object]) -> str:
    return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def check_hidden(args: argparse.Namespace) -> None:
    """Checks that every normalization can work on the hidden dense layer."""
    there = {name: NORMS[name] for name in args.norms if not NORMS[name].positions}
    for name, norm in there.items():
        if "num_groups" in norm.options and (args.hidden % NUM_GROUPS or args.hidden == NUM_GROUPS):
            raise UserError(
                f"--hidden must be a multiple of {NUM_GROUPS}, the groups of {name} norm, "
                f"{f'got {args.hidden}' if args.hidden % NUM_GROUPS else 'and larger than that'}"
            )
    for name, norm in there.items():
        if norm.layer.startswith("Batch") and args.hidden and 1 in args.batch_sizes:
            raise UserError(
                f"{name} norm cannot train with batch size 1: the hidden dense layer would "
                "normalize single values; leave out one of the two, or pass --hidden 0"
            )


def list_jobs(
    args: argparse.Namespace, data: Dataset, splits: dict[int, Split]
) -> list[Job[Result]]:
    """Returns a job for each row.

    Each job writes all rows anew, so that not even a killed process takes the others with it.
    """
    from jaxnorm.cli.compare.training import train

    done: list[Result] = []

    def job(setting: Setting) -> Job[Result]:
        def run_job(tell: Progress) -> Result:
            done.append(
                train(
                    setting,
                    splits[setting.seed],
                    data.num_classes,
                    hidden=args.hidden,
                    epochs=args.epochs,
                    target=args.target,
                    report=lambda share, accuracy: tell(share, f"{100 * accuracy:.1f} %"),
                )
            )
            write_csv(args.out / CSV, make_rows(done))
            return done[-1]

        return Job(setting.text, run_job)

    settings = list_settings(args.norms, args.batch_sizes, args.learning_rates, args.seeds)
    return [job(setting) for setting in settings]


def count(number: int, noun: str) -> str:
    """Returns the number with its noun, in the plural if need be."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
