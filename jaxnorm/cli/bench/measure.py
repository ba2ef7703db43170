"""Measures a case: time, compile time and memory of each library, beside a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxnorm.cli.bench_timing import copy_program, fastest, interleave
from jaxnorm.cli.peers import Case, Data, Peer


class Measurement(NamedTuple):
    """What was measured of one library.

    Attributes:
      library: its name.
      seconds: the median time of a call.
      compile_seconds: of tracing and compiling; None if nothing is compiled.
      temp_bytes: of the compiled program, besides arguments and results; None if not known.
      kept_bytes: from the forward for the backward pass; None for the forward pass alone.
    """

    library: str
    seconds: float
    compile_seconds: float | None
    temp_bytes: int | None
    kept_bytes: int | None


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
        return "forward+backward" if self.backward else "forward"

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


def measure(
    case: Case,
    data: Data,
    backward: bool,
    peers: Sequence[Peer],
    rounds: int,
    report: Callable[[], None] = lambda: None,
) -> Cell:
    """Measures a case in one direction.

    Args:
      case: what to measure.
      data: its arrays.
      backward: whether to compute the cotangents too.
      peers: jaxnorm first.
      rounds: samples of each library.
      report: called after each round.
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
            first_line, *_ = f"{type(error).__name__}: {error}".splitlines()
            failures.append((peer.name, first_line))
    copy_seconds, *seconds = interleave([copy, *programs.values()], rounds, report)
    measurements = tuple(
        Measurement(name, time, program.compile_seconds, program.temp_bytes, kept[name])
        for (name, program), time in zip(programs.items(), seconds, strict=True)
    )
    return Cell(case, backward, copy_seconds, measurements, tuple(failures))
