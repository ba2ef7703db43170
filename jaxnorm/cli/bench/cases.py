"""The cases that `bench` measures: normalizations, shapes and dtypes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jaxnorm
from jaxnorm.cli.errors import UserError
from jaxnorm.cli.peers.case import Case, Data

# Behind a dash data of another kind. Rows of pixels, and one row that lies 5 deviations off; batch
# norm in its first step, with running mean 0 and variance 1, else in steady state.
NORMS = (
    *("layer", "layer-pixels", "layer-odd", "rms"),
    *("batch", "batch-first", "group", "instance"),
)
# The catalogue: what normalizes, of all that is public; and all of it.
_OTHERS = {
    *("Moments", "Whitening", "init_running", "moments", "merge_moments", "mix_moments", "plain"),
    *("update_moments", "update_whitening", "unstandardize", "statistics_penalty"),
}
CATALOGUE, ALL = tuple(name for name in jaxnorm.__all__ if name not in _OTHERS), "all"
# Of the catalogue, what pools over segments or windows, whose number or size can grow.
SEGMENTS = ("segment_batch_norm", "graph_norm", "pair_norm")
WINDOWS = ("divisive_norm", "local_response_norm")
# Tokens (rows, features) and images (N, H, W, C), in float32: 8 kB; 1.5 to 3 MB; more than
# 16 MB, so that the halves of bfloat16 are still large; and what fills a GPU or TPU.
TOKENS = {
    "small": (16, 128),
    "medium": (1024, 768),
    "large": (12608, 768),
    "huge": (16384, 4096),
}
IMAGES = {
    "small": (4, 4, 4, 32),
    "medium": (8, 28, 28, 64),
    "large": (32, 56, 56, 64),
    "huge": (64, 56, 56, 256),
}
SIZES = tuple(TOKENS)
LARGE_BYTES = 8e6  # inputs of this size and more count for the means
# What --compile-for compiles for, and how many of them.
CHIPS, MOST_DEVICES = ("v5e", "v5p", "v6e", "h100"), 8
FEWEST_AXES = {"layer": 2, "rms": 2, "batch": 2, "group": 2, "instance": 3}


def parse_shape(text: str) -> tuple[int, ...]:
    """Reads a shape such as 32x56x56x64, features or channels last."""
    try:
        shape = tuple(int(size) for size in text.split("x"))
    except ValueError:
        shape = ()
    if len(shape) < 2 or min(shape) < 1:
        raise argparse.ArgumentTypeError(
            f"expected two or more positive sizes, such as 128x64, got {text!r}"
        )
    return shape


def name_size(shape: tuple[int, ...]) -> str | None:
    """Returns the name of the size that has the shape."""
    return next((size for size in SIZES if shape in (TOKENS[size], IMAGES[size])), None)


def list_cases(
    norms: Sequence[str],
    sizes: Sequence[str],
    shapes: Sequence[tuple[int, ...]] | None,
    dtypes: Sequence[str],
) -> list[Case]:
    """Returns every combination; `shapes` takes the place of `sizes`.

    Raises:
      UserError: a shape has too few axes for a norm.
    """
    cases = []
    for norm in norms:
        kind = norm.partition("-")[0]
        named = TOKENS if kind in ("layer", "rms") else IMAGES
        for shape in shapes or [named[size] for size in sizes]:
            cases += [Case(norm, shape, dtype) for dtype in dtypes]
            if len(shape) < FEWEST_AXES[kind]:
                raise UserError(
                    f"{norm} norm needs a shape of {FEWEST_AXES[kind]} or more sizes, batch "
                    f"first and channels last, got {cases[-1].shape_text}; see --norms"
                )
    return cases


def make_data(case: Case) -> Data:
    """Returns the arrays of a case, with means as the channels of a trained network have them.

    Standard normal numbers would flatter whoever takes sums of squares and mends the rest.
    """
    rows = case.norm.partition("-")[2] if case.kind == "layer" else ""
    return Data(case, spread=1, steady=case.norm == "batch", rows=rows)
