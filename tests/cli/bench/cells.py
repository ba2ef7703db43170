"""What the tests of the benchmark share."""

import csv

import matplotlib.image
import numpy as np

from jaxnorm.__main__ import main
from jaxnorm.cli.bench.measure import Cell, Measurement
from jaxnorm.cli.peers.case import Case

LAYER = Case("layer", (4, 8), "float32")


def run(capsys, *arguments):
    """Runs the command line: exit status, lines printed, lines of errors."""
    status = main(["bench", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out.splitlines(), printed.err.splitlines()


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_is_a_picture(path):
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[0] > 200 and pixels.shape[1] > 600
    assert np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0).shape[0] > 20


def make_cell(case, backward=False, copy=1.0, ours=2.0, theirs=3.0, library="flax.linen"):
    kept = case.input_bytes if backward else None
    return Cell(
        case,
        backward,
        copy,
        (
            Measurement("jaxnorm", ours, 0.5, 1000, kept),
            Measurement(library, theirs, 0.25, 3000, kept and 4 * kept),
        ),
    )
