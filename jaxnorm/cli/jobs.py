"""Runs measurements one after the other, under a progress display."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

Result = TypeVar("Result")
Report = Callable[[], None]


class Job(NamedTuple, Generic[Result]):
    """One measurement.

    Attributes:
      label: says what it measures.
      run: measures; calls its argument after each round.
      rounds: how often it does.
    """

    label: str
    run: Callable[[Report], Result]
    rounds: int = 1


def run_jobs(jobs: Sequence[Job[Result]]) -> tuple[list[Result], bool]:
    """Returns the results, and whether the user interrupted before the last."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    results: list[Result] = []
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        Remaining(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        overall = progress.add_task("", total=len(jobs))
        try:
            for done, job in enumerate(jobs):
                progress.update(
                    overall, completed=done, description=f"{done + 1} of {len(jobs)}: {job.label}"
                )
                share = 1 / job.rounds
                results.append(job.run(lambda share=share: progress.advance(overall, share)))
        except KeyboardInterrupt:
            return results, True
    return results, False
