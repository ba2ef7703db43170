"""Arguments of the command line: how they are read, and a parser whose errors are one line."""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxnorm.cli.errors import UserError

Read = Callable[[str], Any]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `UserError`: one line instead of usage and error."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore
        """Reads what it knows; of options that it does not know it says which were meant.

        Before anything is missed, as the option that was meant may be. A parser of commands leaves
        what stands behind one to the command's.
        """
        options = [name for name in self._option_string_actions if name.startswith("--")]
        names = [each.partition("=")[0] for each in args or () if each.startswith("--")]
        unknown = [each for each in names if not any(o.startswith(each) for o in options)]
        if unknown and self._subparsers is None:
            meant = "".join(nearest(each, options) for each in unknown)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Reports a wrong command line."""
        raise UserError(f"{message} (see {self.prog} --help)")


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a question after the known name that is most like an unknown one, if one is."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _reader(convert: Read, fits: Callable[[Any], bool], expected: str) -> Read:
    """Returns a function that reads an argument, and says what was expected if it does not fit."""

    def read(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return read


integer = _reader(int, lambda value: True, "a whole number")
positive_int = _reader(int, lambda value: 1 <= value < 2**32, "a positive whole number")
# The range of seeds.
whole_number = _reader(int, lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295")
positive_float = _reader(float, lambda value: 0 < value < math.inf, "a positive number")
share = _reader(float, lambda value: 0 < value <= 1, "a number above 0 and up to 1")


def one_of(*names: str, also: Sequence[str] = (), called: str = "") -> Read:
    """Returns a reader of one of the given names.

    Args:
      *names: errors list them.
      also: other names, too many to list.
      called: what errors call one of these.
    """
    known = (*names, *also)
    expected = ", ".join(names) + (f" or a {called}" if also else "")

    def read(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(
                f"unknown {text!r}, expected {expected}{nearest(text, known)}"
            )
        return text

    return read


def add_list(
    parser: argparse.ArgumentParser,
    name: str,
    read: Read,
    text: str,
    *,
    metavar: str = "A",
    repeats: bool = False,
    **options: Any,
) -> None:
    """Adds an option of several values, written with commas, spaces or both between them.

    Args:
      parser: of the command.
      name: of the option.
      read: reads one value.
      text: what the help says.
      metavar: what the help calls a value.
      repeats: whether a value may be given twice.
      **options: of `add_argument`; a default that is text is read as if it were typed.
    """

    class Join(argparse.Action):
        def __call__(self, parser, namespace, values, option_string=None):
            joined = tuple(value for part in values or () for value in part)
            twice = [value for value in joined if joined.count(value) > 1]
            if twice and not repeats:
                raise argparse.ArgumentError(self, f"{twice[0]!r} is given twice")
            setattr(namespace, self.dest, joined)

    def read_part(part: str) -> tuple[Any, ...]:
        # "a, b" is two parts for the shell, the first with a comma at its end.
        return tuple(read(value.strip()) for value in part.strip(",").split(","))

    kind: Any = read_part
    parser.add_argument(
        name, nargs="+", action=Join, type=kind, metavar=metavar, help=text, **options
    )


def add_report(parser: argparse.ArgumentParser, folder: str) -> None:
    """Adds the options of every command that prints tables: how, and where its files go."""
    parser.add_argument(
        "--markdown", action="store_true", help="print the tables as Markdown, for a README"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(folder),
        metavar="FOLDER",
        help=f"output folder (default: {folder})",
    )
