"""Types of command line arguments, and a parser whose errors are one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, NoReturn

from jaxnorm.cli.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `UserError`: one line instead of usage and error."""

    def error(self, message: str) -> NoReturn:
        """Reports a wrong command line."""
        raise UserError(f"{message} (see {self.prog} --help)")


def positive_int(text: str) -> int:
    """Reads a whole number of at least 1."""
    return _whole_number(text, 1, "a positive whole number")


def whole_number(text: str) -> int:
    """Reads a whole number from 0 to 2^32 - 1, the range of seeds."""
    return _whole_number(text, 0, "a whole number from 0 to 4294967295")


def _whole_number(text: str, smallest: int, expected: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not smallest <= value < 2**32:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value


def positive_float(text: str) -> float:
    """Reads a finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def share(text: str) -> float:
    """Reads a number above 0 and up to 1."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and up to 1, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def one_of(*names: str) -> Callable[[str], str]:
    """Returns a reader of one of the given names."""

    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"unknown {text!r}, expected {', '.join(names)}")
        return text

    return read


def comma_list(read: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Returns a reader of values separated by commas, each read by `read` and given once."""

    def read_list(text: str) -> tuple[Any, ...]:
        values = tuple(read(part.strip()) for part in text.split(","))
        for value in values:
            if values.count(value) > 1:
                raise argparse.ArgumentTypeError(f"{value!r} is given twice")
        return values

    return read_list
