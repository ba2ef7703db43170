"""`python -m jaxnorm bench`: how fast and how lean the normalizations are, beside their peers."""

from __future__ import annotations

import argparse

from jaxnorm.cli import arguments
from jaxnorm.cli.bench import timing
from jaxnorm.cli.bench.cases import (
    ALL,
    CATALOGUE,
    CHIPS,
    MOST_DEVICES,
    NORMS,
    SEGMENTS,
    SIZES,
    WINDOWS,
    parse_shape,
)
from jaxnorm.cli.errors import UserError, require
from jaxnorm.cli.peers.case import DTYPES
from jaxnorm.cli.peers.case import NORMS as KINDS
from jaxnorm.cli.peers.installed import PEERS

DESCRIPTION = """\
Times the normalizations, forward and forward+backward (the result and the cotangents of input,
gamma and beta), in one process and in turn with the same normalizations of other libraries, each
compiled or as it is fastest, and with a copy that reads and writes the same bytes. Also gives
compile times, the compiled programs' temporary memory, and what is kept for the backward pass.
With --norms all every function that normalizes is measured, with --growth --norms all how the cost
of some grows with segments and windows.
Writes bench.csv and bench.png. Ctrl-C ends it early and keeps what was measured."""
# What has no effect beside these options.
UNUSED = {
    "compile-for": ("growth", "sizes", "peers", "megabytes", "pages", "rounds", "quick"),
    "models": ("sizes", "peers", "megabytes"),
    "growth": ("sizes", "shapes"),
}


def add_parser(subparsers) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        "bench",
        help="time the normalizations beside other libraries and a copy",
        description=DESCRIPTION,
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--models",
        action="store_true",
        help="instead, training steps of bottleneck blocks (batch, group and instance norm) and "
        "of transformer blocks (layer and RMS norm), with jaxnorm's and flax.linen's modules",
    )
    kind.add_argument(
        "--growth",
        action="store_true",
        help="instead, the time per byte as the input grows from 8 MB to 1 GB",
    )
    parser.add_argument(
        "--compile-for",
        type=arguments.one_of(*CHIPS),
        metavar="CHIP",
        help=f"instead, what the compiler of {', '.join(CHIPS)} makes of the normalizations or, "
        "with --models, of training steps, beside flax.linen; without the device: estimated "
        "cycles of a TPU, for a GPU bytes read and written, and temporary memory",
    )
    parser.add_argument(
        "--devices",
        type=arguments.positive_int,
        metavar="N",
        help=f"chips of --compile-for, the batch divided over them, up to {MOST_DEVICES} "
        "(default: 1)",
    )
    parser.add_argument(
        "--explicit",
        action="store_true",
        help="with --devices: the types of arrays say how they are divided",
    )

    # Defaults depend on the kind, so that an option that was given can be told from one that
    # was not.
    def add_list(name: str, read: arguments.Read, text: str, metavar: str = "A") -> None:
        arguments.add_list(parser, name, read, text, metavar=metavar)

    add_list(
        "--norms",
        arguments.one_of(*NORMS, ALL, also=CATALOGUE, called="function of the catalogue"),
        f"of {', '.join(NORMS)}; batch norm in steady state and in its first step (default: "
        f"these; with --models and --growth, batch,layer). Or {ALL}: the catalogue, which is every "
        "function of jaxnorm that normalizes, forward and backward, in natural shapes, beside "
        "libraries or formulas by hand; or some of it, such as "
        f"graph_norm,divisive_norm; with --growth {', '.join((*SEGMENTS, *WINDOWS))} as segments "
        "and windows grow",
    )
    add_list(
        "--sizes",
        arguments.one_of(*SIZES),
        "inputs of 8 kB (small), 2 MB (medium), more than 8 MB (large) and more than 100 MB "
        "(huge) (default: all; on CPU all but huge)",
    )
    add_list(
        "--shapes",
        parse_shape,
        "shapes instead of sizes, batch first and channels last: 4096x1024,8x28x28x64",
        metavar="AxB",
    )
    add_list(
        "--dtypes",
        arguments.one_of(*DTYPES),
        f"of {', '.join(DTYPES)} (default: float32,bfloat16)",
    )
    add_list(
        "--peers",
        arguments.one_of(*PEERS),
        f"of {', '.join(PEERS)} (default: all that are installed; with --quick flax.linen, with "
        "--growth none)",
    )
    add_list(
        "--megabytes",
        arguments.positive_int,
        "sizes of --growth (default: 8,32,128,512,1024)",
    )
    parser.add_argument(
        "--pages",
        type=arguments.one_of("stock", "reused"),
        metavar="stock|reused",
        help="stock: memory as the allocator has it, on Linux in fresh pages, which cost time, for "
        "arrays of more than 32 MB and for others as it happens; reused: in used pages for all, so "
        "that programs alone are compared; on CPU, with glibc (default: stock; with --growth and "
        "with the catalogue reused)",
    )
    parser.add_argument(
        "--rounds",
        type=arguments.positive_int,
        metavar="N",
        help="how often all take their turn; medians are shown (default: 21; with --quick 5)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small and large inputs, flax.linen alone, few rounds: under a minute on two cores",
    )
    arguments.add_report(parser, "bench")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark; 0, or 130 if it was interrupted."""
    require("matplotlib", "rich")
    check(args)
    if args.compile_for:
        from jaxnorm.cli.bench import compiled as kind
    elif args.models:
        from jaxnorm.cli.bench import models as kind
    elif is_catalogue(args):
        from jaxnorm.cli.bench.catalogue import command as kind
    elif args.growth:
        from jaxnorm.cli.bench import growth as kind
    else:
        from jaxnorm.cli.bench import norms as kind
    if args.pages is None:
        args.pages = "reused" if args.growth or is_catalogue(args) else "stock"
    if args.pages == "reused":
        timing.reuse_pages()
    return kind.run(args)


def is_catalogue(args: argparse.Namespace) -> bool:
    """Returns whether norms are named by functions of the catalogue."""
    return any(norm not in NORMS for norm in args.norms or ())


def check(args: argparse.Namespace) -> None:
    """Checks that options do not contradict each other.

    Raises:
      UserError: they do.
    """
    # The first that was given: models can be compiled for a chip too.
    kinds = [kind for kind in UNUSED if getattr(args, kind.replace("-", "_"))][:1]
    unused = {name: f"with --{kind}" for kind in kinds for name in UNUSED[kind]}
    if not args.growth:
        unused.setdefault("megabytes", "without --growth")
    if not args.compile_for:
        unused |= {name: "without --compile-for" for name in ("devices", "explicit")}
    elif not args.devices:
        unused["explicit"] = "without --devices"
    for name, where in unused.items():
        if getattr(args, name) not in (None, False):
            raise UserError(f"--{name} has no effect {where}; leave it out")
    if is_catalogue(args):
        check_catalogue(args)
    for norm in args.norms or ():
        if "-" in norm and (args.models or args.compile_for):
            where, kind = (
                "--compile-for" if args.compile_for else "--models",
                norm.partition("-")[0],
            )
            raise UserError(f"--norms: {norm} is a matter of data; with {where} it is {kind}")
    if args.devices and args.devices > MOST_DEVICES:
        raise UserError(f"--devices: expected at most {MOST_DEVICES}, got {args.devices}")


def check_catalogue(args: argparse.Namespace) -> None:
    """Checks that options suit functions of the catalogue.

    Raises:
      UserError: they do not.
    """
    norms = args.norms
    first = next(norm for norm in norms if norm not in NORMS)
    what = f"--norms {first}"
    for kind in ("models", "compile-for"):
        if getattr(args, kind.replace("-", "_")):
            raise UserError(f"{what} has no effect with --{kind}; give {', '.join(KINDS)}")
    for name in ("sizes", "shapes", "megabytes"):
        if getattr(args, name):
            raise UserError(f"--{name} has no effect with {what}; leave it out")
    if ALL in norms and len(norms) > 1:
        raise UserError(f"--norms: {ALL} is the whole catalogue; leave the others out")
    others = [norm for norm in norms if norm in NORMS]
    if others:
        raise UserError(
            f"--norms: {first} is measured in shapes of its own, {others[0]} in --sizes; give them "
            f"in two runs, or {others[0]} as a function: {others[0].partition('-')[0]}_norm"
        )
    growing = (*SEGMENTS, *WINDOWS)
    if args.growth and first != ALL:
        still = [norm for norm in norms if norm not in growing]
        if still:
            raise UserError(
                f"--norms: {still[0]} has neither segments nor windows; with --growth expected "
                f"{', '.join((*growing, ALL))}"
            )
