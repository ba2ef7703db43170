"""Measures cases: time, compile time and memory of each library, beside a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxnorm.cli.bench.cases import make_data
from jaxnorm.cli.bench.timing import copy_program, fastest, interleave
from jaxnorm.cli.jobs import Job, Progress
from jaxnorm.cli.machine import Machine
from jaxnorm.cli.peers.case import Case, Data
from jaxnorm.cli.peers.peer import Peer, first_line


class Measurement(NamedTuple):
    """What was measured of one library.

    Attributes:
      library: its name.
      seconds: the median time of a call.
      compile_seconds: of tracing and compiling; None if nothing is compiled.
      temp_bytes: of the compiled program, besides arguments and results; None if not known.
      kept_bytes: from the forward for the backward pass; None for the forward pass alone.
      cpu_seconds: of tracing and compiling, of all cores together.
    """

    library: str
    seconds: float
    compile_seconds: float | None
    temp_bytes: int | None
    kept_bytes: int | None = None
    cpu_seconds: float | None = None


class Cell(NamedTuple):
    """One case in one direction, of all libraries.

    Attributes:
      copy_seconds: the time to read and write the same bytes, without a computation.
      measurements: of jaxnorm first.
      failures: the libraries that could not run it, and their errors.
    """

    case: Case
    backward: bool
    copy_seconds: float
    measurements: tuple[Measurement, ...]
    failures: tuple[tuple[str, str], ...] = ()

    @property
    def direction(self) -> str:
        """Forward, or forward and backward."""
        return name_direction(self.backward)

    @property
    def labels(self) -> tuple[str, str, str, str]:
        """What is measured, in words."""
        return self.case.norm, self.case.shape_text, self.case.dtype, self.direction

    @property
    def seconds(self) -> float:
        """The time of jaxnorm."""
        return self.measurements[0].seconds

    def of(self, library: str) -> Measurement | None:
        """Returns the measurement of a library, if there is one."""
        return next((m for m in self.measurements if m.library == library), None)

    def speedup(self, library: str) -> float | None:
        """Returns how many times as long as jaxnorm a library takes."""
        measurement = self.of(library)
        return None if measurement is None else measurement.seconds / self.seconds


def name_direction(backward: bool) -> str:
    """Returns the direction in words."""
    return "forward+backward" if backward else "forward"


def list_jobs(cases: Sequence[Case], libraries: Sequence[Peer], rounds: int) -> list[Job[Cell]]:
    """Returns a job for each case and direction; the two directions share their arrays."""
    held: dict[Case, Data] = {}

    def job(case: Case, backward: bool) -> Job[Cell]:
        def run_job(tell: Progress) -> Cell:
            if case not in held:
                held.clear()  # first, as the arrays of two cases need not fit into memory
                held[case] = make_data(case)
            return measure(case, held[case], backward, libraries, rounds, tell)

        return Job(
            f"{case.norm} {case.shape_text} {case.dtype} {name_direction(backward)}", run_job
        )

    return [job(case, backward) for case in cases for backward in (False, True)]


def measure(
    case: Case,
    data: Data,
    backward: bool,
    peers: Sequence[Peer],
    rounds: int,
    report: Callable[[float], None] = lambda share: None,
) -> Cell:
    """Measures a case in one direction.

    Args:
      case: what to measure.
      data: its arrays.
      backward: whether to compute the cotangents too.
      peers: jaxnorm first.
      rounds: samples of each library.
      report: called after each round with the share of them that is done.
    """
    copy = copy_program(case, data, backward)
    programs, kept, failures = {}, {}, []
    for peer in peers:
        if case.kind not in peer.norms:
            continue
        try:
            program = fastest(peer.programs(case, data, backward))
            program.wait(program.call())
            kept[peer.name] = peer.kept_bytes(case, data) if backward else None
            programs[peer.name] = program
        except Exception as error:
            # Other libraries fail on some versions, shapes and devices; jaxnorm must not.
            if peer is peers[0]:
                raise
            failures.append((peer.name, first_line(error)))
    copy_seconds, *seconds = interleave([copy, *programs.values()], rounds, report)
    measurements = tuple(
        Measurement(name, time, program.compile_seconds, program.temp_bytes, kept[name])
        for (name, program), time in zip(programs.items(), seconds, strict=True)
    )
    return Cell(case, backward, copy_seconds, measurements, tuple(failures))


def list_libraries(cells: Sequence[Cell]) -> list[str]:
    """Returns the names of the peers that were measured, in order."""
    names = dict.fromkeys(m.library for cell in cells for m in cell.measurements[1:])
    return list(names)


def describe_failures(cells: Sequence[Cell]) -> list[str]:
    """Returns a line for each library and norm that could not be run."""
    failures = {(name, cell.case.norm): e for cell in cells for name, e in cell.failures}
    return [f"{name} cannot run {norm} norm here: {e}" for (name, norm), e in failures.items()]


def make_rows(
    cells: Sequence[Cell], machine: Machine, rounds: int, pages: str
) -> list[dict[str, Any]]:
    """Returns a row for each cell and library, for the CSV file."""
    return [
        {
            **dict(zip(("norm", "shape", "dtype", "direction"), cell.labels, strict=True)),
            "library": m.library,
            "milliseconds": f"{1e3 * m.seconds:.6g}",
            "times_jaxnorm": f"{m.seconds / cell.seconds:.4g}",
            "times_copy": f"{m.seconds / cell.copy_seconds:.4g}",
            "copy_milliseconds": f"{1e3 * cell.copy_seconds:.6g}",
            "input_bytes": cell.case.input_bytes,
            "compile_seconds": None if m.compile_seconds is None else f"{m.compile_seconds:.4g}",
            "cpu_seconds": None if m.cpu_seconds is None else f"{m.cpu_seconds:.4g}",
            "temp_bytes": m.temp_bytes,
            "kept_bytes": m.kept_bytes,
            "rounds": rounds,
            "pages": pages,
            **machine._asdict(),
        }
        for cell in cells
        for m in cell.measurements
    ]
