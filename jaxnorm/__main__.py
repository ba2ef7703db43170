"""Runs the command line: `python -m jaxnorm <command>`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import jaxnorm
from jaxnorm.cli import axes
from jaxnorm.cli.arguments import Parser
from jaxnorm.cli.bench import command as bench
from jaxnorm.cli.compare import command as compare
from jaxnorm.cli.errors import UserError
from jaxnorm.cli.exact import command as exact

# Each has add_parser(subparsers), which sets `run`: a function of the parsed arguments that
# returns the exit status.
COMMANDS = (compare, bench, exact, axes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit status: 2 for a mistake of the user's."""
    parser = Parser(prog="python -m jaxnorm", description=jaxnorm.__doc__)
    parser.add_argument("--version", action="version", version=f"jaxnorm {jaxnorm.__version__}")
    subparsers = parser.add_subparsers(metavar="command", dest="command", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    try:
        parsed = parser.parse_args(arguments)
        return parsed.run(parsed)
    except UserError as error:
        print(f"jaxnorm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxnorm: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
