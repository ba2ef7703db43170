"""Runs measurements one after the other under a progress display, and reports what they found."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from jaxnorm.cli.errors import UserError
from jaxnorm.cli.outputs import write_csv
from jaxnorm.cli.tables import Grid, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = TypeVar("Result")
Progress = Callable[..., None]  # of the share that is done and, if given, a text to show


class Job(NamedTuple, Generic[Result]):
    """One measurement.

    Attributes:
      label: says what it measures.
      run: measures, and tells its argument how far it is.
    """

    label: str
    run: Callable[[Progress], Result]


def run_jobs(jobs: Sequence[Job[Result]]) -> tuple[list[Result], bool]:
    """Returns the results, and whether the user interrupted before the last."""
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    results: list[Result] = []
    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=20),
        progress.TextColumn("{task.percentage:>3.0f} %"),
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as display:
        overall = display.add_task("", total=len(jobs))
        for done, job in enumerate(jobs):
            row = f"{done + 1} of {len(jobs)}: {job.label}"

            def tell(share: float, text: str = "", done=done, row=row) -> None:
                display.update(overall, completed=done + share, description=f"{row} {text}")

            tell(0)
            try:
                results.append(job.run(tell))
            except KeyboardInterrupt:
                return results, True
    return results, False


class Report(NamedTuple):
    """What a command has to say.

    Attributes:
      grids: the tables to print.
      notes: lines of text below them.
      rows: of the CSV file, all with the same keys.
      figure: the picture, if there is one.
    """

    grids: Sequence[Grid]
    notes: Sequence[str]
    rows: Sequence[dict[str, Any]]
    figure: Figure | None = None


def run_and_report(
    jobs: Sequence[Job[Result]],
    make_report: Callable[[list[Result]], Report],
    args: argparse.Namespace,
    files: Sequence[str],
    first: str,
) -> int:
    """Runs jobs and reports what they found, also if they were interrupted.

    Args:
      jobs: the measurements.
      make_report: of their results.
      args: of the command line: `markdown`, and the folder `out`.
      files: names of the CSV file and, if there is one, of the picture.
      first: what is said to be missing where nothing was found: "case was measured".

    Returns:
      The exit status: 0, or 130 if it was interrupted.

    Raises:
      UserError: a file cannot be written.
    """
    results, interrupted = run_jobs(jobs)
    if not results:
        print(f"Interrupted before the first {first}; nothing was written.")
        return 130
    report = make_report(results)
    show(report.grids, report.notes, args.markdown)
    try:
        write_csv(args.out / files[0], report.rows)
        if report.figure is not None:
            report.figure.savefig(args.out / files[1], dpi=120)
    except OSError as error:
        raise UserError(f"cannot write to {args.out}: {error.strerror}") from error
    verb = "Interrupted, kept what was measured" if interrupted else "Done"
    written = " and ".join(str(args.out / name) for name in files)
    print(f"{verb}; wrote {written}.", file=sys.stderr)
    return 130 if interrupted else 0
