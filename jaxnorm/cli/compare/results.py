"""What `compare` measured: rows, their summary over seeds, the table and the CSV file."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.table import Table


class Setting(NamedTuple):
    """One row of the comparison."""

    norm: str
    batch_size: int
    learning_rate: float
    seed: int


class Point(NamedTuple):
    """One evaluation: the training loss is the mean since the evaluation before."""

    step: int
    test_accuracy: float
    train_loss: float


class Result(NamedTuple):
    """What was measured of one setting."""

    setting: Setting
    curve: tuple[Point, ...]
    target: float
    ms_per_step: float

    @property
    def test_accuracy(self) -> float:
        """The accuracy after the last step."""
        return self.curve[-1].test_accuracy

    @property
    def steps_to_target(self) -> int | None:
        """The first evaluated step at which the target was reached."""
        return next((p.step for p in self.curve if p.test_accuracy >= self.target), None)


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """Writes one row per result; `steps_to_target` is empty where it was not reached."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            (
                "normalization",
                "batch_size",
                "learning_rate",
                "seed",
                "steps",
                "test_accuracy",
                "train_loss",
                "target_accuracy",
                "steps_to_target",
                "ms_per_step",
            )
        )
        for result in results:
            last = result.curve[-1]
            writer.writerow(
                (
                    *result.setting,
                    last.step,
                    f"{last.test_accuracy:.4f}",
                    f"{last.train_loss:.4g}",
                    result.target,
                    result.steps_to_target,
                    f"{result.ms_per_step:.4f}",
                )
            )


class Summary(NamedTuple):
    """The results of one normalization, batch size and learning rate, over the seeds."""

    norm: str
    batch_size: int
    learning_rate: float
    results: tuple[Result, ...]

    @property
    def mean_accuracy(self) -> float:
        """The mean of the final accuracies."""
        return statistics.fmean(r.test_accuracy for r in self.results)

    @property
    def accuracy_text(self) -> str:
        """The mean accuracy and, of several seeds, the standard deviation."""
        if len(self.results) == 1:
            return f"{self.mean_accuracy:.3f}"
        deviation = statistics.stdev(r.test_accuracy for r in self.results)
        return f"{self.mean_accuracy:.3f} ± {deviation:.3f}"

    @property
    def steps_text(self) -> str:
        """The median of the steps to the target, and how many seeds reached it if not all."""
        steps = [r.steps_to_target for r in self.results if r.steps_to_target is not None]
        if not steps:
            return "never"
        text = f"{statistics.median(steps):.0f}"
        if len(steps) < len(self.results):
            text += f" ({len(steps)} of {len(self.results)})"
        return text

    @property
    def ms_per_step(self) -> float:
        """The median of the milliseconds per step."""
        return statistics.median(r.ms_per_step for r in self.results)


def summarize(results: Sequence[Result]) -> list[Summary]:
    """Gathers the results of the same setting over seeds, in the order they came in."""
    groups: dict[tuple[str, int, float], list[Result]] = {}
    for result in results:
        groups.setdefault(result.setting[:3], []).append(result)
    return [Summary(*key, tuple(group)) for key, group in groups.items()]


def make_table(results: Sequence[Result], title: str) -> Table:
    """Returns the table: a section per batch size, the best accuracy of each in bold."""
    from rich.table import Table
    from rich.text import Text

    summaries = summarize(results)
    target = results[0].target
    table = Table(title=Text(title))
    table.add_column("batch size", justify="right")
    table.add_column("learning rate", justify="right")
    table.add_column("normalization", no_wrap=True)
    table.add_column("test accuracy", justify="right", no_wrap=True)
    table.add_column(f"steps to {target:g}", justify="right", no_wrap=True)
    table.add_column("ms per step", justify="right")
    for batch_size in dict.fromkeys(s.batch_size for s in summaries):
        of_batch = [s for s in summaries if s.batch_size == batch_size]
        best = max(s.mean_accuracy for s in of_batch)
        for rate in dict.fromkeys(s.learning_rate for s in of_batch):
            rows = [s for s in of_batch if s.learning_rate == rate]
            for i, row in enumerate(rows):
                style = "bold" if row.mean_accuracy == best else ""
                table.add_row(
                    f"{batch_size}" if i == 0 else "",
                    f"{rate:g}" if i == 0 else "",
                    row.norm,
                    Text(row.accuracy_text, style),
                    row.steps_text,
                    f"{row.ms_per_step:.2f}",
                    end_section=i == len(rows) - 1,
                )
    return table
