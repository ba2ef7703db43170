"""`python -m jaxnorm axes`: a picture of which elements share one mean and variance."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from jaxnorm.cli import arguments, outputs
from jaxnorm.cli.errors import UserError, require

DESCRIPTION = """\
Draws an array as a cube and colours the elements that share one mean and variance. Without --axis
it draws the usual normalizations of an array of this shape side by side. Negative axes go with
spaces, or after an equals sign: --axis -1 -2 or --axis=-1,-2."""


def add_parser(subparsers) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        "axes", help="draw which elements share one mean and variance", description=DESCRIPTION
    )

    def add(name: str, read: Callable, metavar: str, text: str, **options) -> None:
        parser.add_argument(name, type=read, metavar=metavar, help=text, **options)

    def add_list(name: str, read: Callable, metavar: str, text: str, **options) -> None:
        arguments.add_list(parser, name, read, text, metavar=metavar, repeats=True, **options)

    integer, positive = arguments.integer, arguments.positive_int
    add_list("--shape", integer, "N", "sizes of the array, examples first", required=True)
    add_list("--axis", integer, "A", "the axes pooled, counted from 0")
    add("--groups", positive, "G", "groups of channels (needs --axis)")
    add("--virtual-batches", positive, "V", "parts of the batch (needs --axis)")
    add("--channel-axis", int, "A", "the axis of the channels (default: -1)", default=-1)
    add_list("--names", str, "N", "a name for each axis")
    add("--title", str, "TEXT", "heading of the picture (needs --axis)")
    out = "the picture, its format by its suffix (default: axes.png)"
    add("--out", Path, "FILE", out, default=Path("axes.png"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draws the picture; returns 0."""
    require("matplotlib")
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from jaxnorm import plot

    mpl.use("Agg")  # draws without a display
    known = FigureCanvasAgg.get_supported_filetypes()
    if args.out.suffix[1:].lower() not in known:
        raise UserError(
            f"cannot write {args.out}: its suffix must be one of {', '.join(sorted(known))}"
        )
    outputs.prepare_folder(args.out.parent, args.out.name)
    try:
        figure = plot.norms(
            args.shape, _choices(args), channel_axis=args.channel_axis, axis_names=args.names
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    try:
        figure.savefig(args.out, dpi=120)
    except OSError as error:
        raise UserError(f"cannot write to {args.out}: {error.strerror}") from error
    for ax in figure.axes:
        print(f"{ax.get_title()}: {ax.texts[-1].get_text()}")
    print(f"wrote {args.out}")
    return 0


def _choices(args: argparse.Namespace) -> dict[str, dict] | None:
    """Returns the one normalization asked for, or None for the usual ones."""
    if args.axis is None:
        for name in ("groups", "virtual_batches", "title"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} needs --axis")
        return None
    title = args.title or "axis=" + ",".join(map(str, args.axis))
    virtual = args.virtual_batches or 1
    options = {"num_groups": args.groups, "num_virtual_batches": virtual}
    return {title: {"axis": args.axis, **options}}
