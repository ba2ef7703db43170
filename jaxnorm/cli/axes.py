"""`python -m jaxnorm axes`: a picture of which elements share one mean and variance."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from jaxnorm.cli import arguments, outputs
from jaxnorm.cli.errors import UserError, require

DESCRIPTION = """\
Draws an array as a cube and colours the elements that share one mean and variance. Without --axis
it draws the usual normalizations of an array of this shape side by side. Write lists that begin
with a minus sign with an equals sign: --axis=-1,-2."""


def add_parser(subparsers) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        "axes", help="draw which elements share one mean and variance", description=DESCRIPTION
    )

    def add(name: str, read: Callable, metavar: str, text: str, **options) -> None:
        parser.add_argument(name, type=read, metavar=metavar, help=text, **options)

    add("--shape", _read_ints, "N,H,W,C", "sizes of the array, examples first", required=True)
    add("--axis", _read_ints, "A,B,...", "the axes pooled, counted from 0")
    add("--groups", arguments.positive_int, "G", "groups of channels (needs --axis)")
    add("--virtual-batches", arguments.positive_int, "V", "parts of the batch (needs --axis)")
    add("--channel-axis", int, "A", "the axis of the channels (default: -1)", default=-1)
    add("--names", _read_names, "N,H,W,C", "a name for each axis")
    add("--title", str, "TEXT", "heading of the picture (needs --axis)")
    out = "the picture, its format by its suffix (default: axes.png)"
    add("--out", Path, "FILE", out, default=Path("axes.png"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draws the picture; returns 0."""
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from jaxnorm import _plot_cubes, plot

    figure = Figure(layout="constrained")
    known = FigureCanvasAgg.get_supported_filetypes()
    if args.out.suffix[1:].lower() not in known:
        raise UserError(
            f"cannot write {args.out}: its suffix must be one of {', '.join(sorted(known))}"
        )
    outputs.prepare_folder(args.out.parent, args.out.name)
    try:
        choices = _choices(args)
        figure = plot.norms(
            args.shape,
            choices,
            channel_axis=args.channel_axis,
            axis_names=args.names,
            figure=figure,
        )
        pictures = len(figure.axes)
        columns = min(3, pictures)
        rows = -(-pictures // columns)
        size = _plot_cubes.figure_size(args.shape, args.channel_axis, rows, columns)
    except ValueError as error:
        raise UserError(str(error)) from error
    figure.set_size_inches(size)
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


def _read_ints(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers separated by commas, got {text!r}"
        ) from None


def _read_names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))
