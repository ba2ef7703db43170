"""What `compare` measured: rows, and their summary over seeds as a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxnorm.cli.compare.settings import Setting
from jaxnorm.cli.tables import Grid


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


def make_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Returns a row for each result, for the CSV file; what was not reached is empty."""
    return [
        {
            "normalization": result.setting.norm,
            "batch_size": result.setting.batch_size,
            "learning_rate": result.setting.learning_rate,
            "seed": result.setting.seed,
            "steps": result.curve[-1].step,
            "test_accuracy": f"{result.test_accuracy:.4f}",
            "train_loss": f"{result.curve[-1].train_loss:.4g}",
            "target_accuracy": result.target,
            "steps_to_target": result.steps_to_target,
            "ms_per_step": f"{result.ms_per_step:.4f}",
        }
        for result in results
    ]


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


def make_grid(results: Sequence[Result], title: str) -> Grid:
    """Returns the table: a section per batch size, the best accuracy of each in bold."""
    best: dict[int, float] = {}
    summaries = summarize(results)
    for s in summaries:
        best[s.batch_size] = max(s.mean_accuracy, best.get(s.batch_size, 0.0))
    rows = [
        (
            f"{s.batch_size}",
            f"{s.learning_rate:g}",
            s.norm,
            s.accuracy_text,
            s.steps_text,
            f"{s.ms_per_step:.2f}",
        )
        for s in summaries
    ]
    target = f"steps to {results[0].target:g}"
    header = (
        "batch size",
        "learning rate",
        "normalization",
        "test accuracy",
        target,
        "ms per step",
    )
    strong = {(i, 3) for i, s in enumerate(summaries) if s.mean_accuracy == best[s.batch_size]}
    return Grid(title, header, rows, labels=3, strong=frozenset(strong))
