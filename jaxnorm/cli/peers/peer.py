"""What a library has to offer to be measured, and what is made of it: programs."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxnorm.cli.peers.case import Case, Data


class Program(NamedTuple):
    """A computation with its arguments, ready to be run again and again.

    Attributes:
      call: starts it and returns its results; may be given the last call's results.
      wait: waits for results.
      queues: whether calls may follow each other without waiting, if each is given the last
        one's results; else they could run at the same time, or fill the memory.
      compile_seconds: what tracing and compiling took, where there was any.
      compile_cpu_seconds: the same of all cores together.
      temp_bytes: memory that the compiled program needs besides arguments and results.
    """

    call: Callable[..., Any]
    wait: Callable[[Any], Any]
    queues: bool = False
    compile_seconds: float | None = None
    compile_cpu_seconds: float | None = None
    temp_bytes: int | None = None


class Peer(Protocol):
    """A library's normalizations."""

    name: str
    version: str
    norms: Sequence[str]

    def programs(self, case: Case, data: Data, backward: bool) -> list[Program]:
        """Returns the ways to compute a case, of which the fastest counts.

        The result is y, with `backward` also the cotangents of x and of all parameters.
        """
        ...

    def kept_bytes(self, case: Case, data: Data) -> int:
        """Returns the bytes kept from the forward for the backward pass, each array once."""
        ...

    def evaluate(self, case: Case, data: Data) -> tuple[np.ndarray, ...]:
        """Returns y and the cotangents of x and the parameters, channels last, in float64."""
        ...


class Unavailable(Exception):
    """A peer that cannot be used here; the text says why."""


def import_peer(name: str, distribution: str) -> Any:
    """Imports a library that need not be installed, nor fit the installed JAX.

    Raises:
      Unavailable: it cannot be imported.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name == name:
                raise Unavailable(f"it is not installed (pip install {distribution})") from error
            raise Unavailable(f"its import failed ({error})") from error
        except Exception as error:
            raise Unavailable(f"its import failed ({error})") from error


def first_line(error: Exception) -> str:
    """Returns the error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
