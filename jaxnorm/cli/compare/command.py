"""`python -m jaxnorm compare`: one classifier, trained with each normalization."""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING

from jaxnorm.cli import arguments, compare_results, outputs
from jaxnorm.cli.errors import UserError, require

if TYPE_CHECKING:
    from jaxnorm.cli.compare_data import Dataset, Split
    from jaxnorm.cli.compare_results import Result, Setting

NORMS = ("none", "batch", "layer", "rms", "group", "instance")
NUM_GROUPS = 4  # of group norm
CSV, PICTURE = "compare.csv", "compare.png"
DESCRIPTION = """\
Trains the same small convolutional classifier with each normalization, by plain stochastic
gradient descent, and compares test accuracy, steps to a target accuracy and time per step.
Writes compare.csv and compare.png. Ctrl-C ends it early and keeps what was measured."""


def add_parser(subparsers) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        "compare",
        help="train one classifier with each normalization and compare them",
        description=DESCRIPTION,
    )

    def add(name: str, read, default: str, metavar: str, text: str) -> None:
        # argparse reads a default that is text like an argument, and shows it as one types it.
        parser.add_argument(
            name, type=read, default=default, metavar=metavar, help=f"{text} (default: {default})"
        )

    def add_list(name: str, read, default: str, text: str) -> None:
        add(name, arguments.comma_list(read), default, "A,B,...", text)

    add_list("--norms", arguments.one_of(*NORMS), ",".join(NORMS), "normalizations")
    add_list("--batch-sizes", arguments.positive_int, "2,8,32", "batch sizes")
    add_list("--learning-rates", arguments.positive_float, "0.03,0.1,0.3,1", "learning rates")
    add_list("--seeds", arguments.whole_number, "0", "seeds of split, initialization and order")
    add(
        "--hidden",
        arguments.whole_number,
        "32",
        "UNITS",
        "units of the hidden dense layer, normalized too; 0: no such layer",
    )
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
    from rich.console import Console

    from jaxnorm.cli import compare_data, compare_picture

    start = time.perf_counter()
    check_hidden(args)
    outputs.prepare_folder(args.out, CSV, PICTURE)
    data = compare_data.load_file(args.data) if args.data else compare_data.load_digits()
    splits = {seed: compare_data.split_dataset(data, seed) for seed in args.seeds}
    examples = len(next(iter(splits.values())).x_train)
    if max(args.batch_sizes) > examples:
        raise UserError(
            f"too few examples: a batch of {max(args.batch_sizes)} needs as many training "
            f"examples, {data.name} leaves {examples} of {len(data.x)}"
        )
    results: list[Result] = []
    interrupted = False
    try:
        train_all(args, data, splits, results)
    except KeyboardInterrupt:
        interrupted = True
    console = Console(markup=False, highlight=False, soft_wrap=True)
    if not results:
        console.print("Interrupted before the first row was measured; nothing was written.")
        return 130
    title = (
        f"{data.name}: {examples} training and {len(data.x) - examples} test examples, "
        f"{count(args.epochs, 'epoch')}, {count(len({r.setting.seed for r in results}), 'seed')}"
    )
    console.print(compare_results.make_table(results, title))
    # Once more: the interruption may have come while it was being written.
    compare_results.write_csv(args.out / CSV, results)
    compare_picture.draw(results, title).savefig(args.out / PICTURE, dpi=120)
    verb = "Interrupted: kept" if interrupted else "Measured"
    console.print(
        f"{verb} {count(len(results), 'row')} in {time.perf_counter() - start:.0f} s; "
        f"wrote {args.out / CSV} and {args.out / PICTURE}."
    )
    return 130 if interrupted else 0


def check_hidden(args: argparse.Namespace) -> None:
    """Checks that every normalization can work on the hidden dense layer."""
    if "group" in args.norms and args.hidden % NUM_GROUPS:
        raise UserError(
            f"--hidden must be a multiple of {NUM_GROUPS}, the groups of group norm, "
            f"got {args.hidden}"
        )
    if "batch" in args.norms and args.hidden and 1 in args.batch_sizes:
        raise UserError(
            "batch norm cannot train with batch size 1: the hidden dense layer would normalize "
            "single values; leave out one of the two, or pass --hidden 0"
        )


def train_all(
    args: argparse.Namespace,
    data: Dataset,
    splits: dict[int, Split],
    results: list[Result],
) -> None:
    """Trains every setting under a progress display, appending each result as it is ready."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from jaxnorm.cli.compare_training import train

    settings = list_settings(args)
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        overall = progress.add_task("", total=len(settings))
        for done, setting in enumerate(settings):
            row = (
                f"{done + 1}/{len(settings)} {setting.norm}, batch size {setting.batch_size}, "
                f"learning rate {setting.learning_rate:g}"
            )
            progress.update(overall, completed=done, description=f"{row}: starting")

            def report(share: float, accuracy: float, done=done, row=row) -> None:
                progress.update(
                    overall, completed=done + share, description=f"{row}: {100 * accuracy:.1f} %"
                )

            result = train(
                setting,
                splits[setting.seed],
                data.num_classes,
                hidden=args.hidden,
                epochs=args.epochs,
                target=args.target,
                report=report,
            )
            results.append(result)
            # Anew after each row, so that not even a killed process takes the others with it.
            compare_results.write_csv(args.out / CSV, results)


def list_settings(args: argparse.Namespace) -> list[Setting]:
    """Returns the rows in the order of training.

    The normalizations alternate fastest, so that an interrupted run still compares them all.
    """
    return [
        compare_results.Setting(norm, batch_size, rate, seed)
        for seed, batch_size, rate, norm in itertools.product(
            args.seeds, args.batch_sizes, args.learning_rates, args.norms
        )
    ]


def count(number: int, noun: str) -> str:
    """Returns the number with its noun, in the plural if need be."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
