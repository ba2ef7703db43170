"""Every public normalization, once. `tests/test_contract_*.py` runs the whole contract over it.

A technique joins by one entry in `tests/norms_*.py`. A point of the contract that cannot apply to
it stands in `exempt` with the reason. A further size that takes another path of the core is one
more key of `PATHS` and one more shape per entry.
"""

import pytest

from tests.norms_batch import BATCH
from tests.norms_feature import FEATURE
from tests.norms_response import RESPONSE
from tests.norms_weight import WEIGHT
from tests.norms_whitening import WHITENING

NORMS = [*BATCH, *FEATURE, *RESPONSE, *WEIGHT, *WHITENING]

# The shapes of an entry. "plain" is used throughout; values, gradients, masks and memory are also
# tested at the others.
PATHS = ("plain", "large")

# Public, and no normalizations: what they are instead.
OTHERS = {
    "Moments": "the statistics themselves",
    "moments": "computes statistics",
    "merge_moments": "combines statistics",
    "mix_moments": "combines statistics",
    "plain": "how all are computed",
    "unstandardize": "undoes a normalization",
    "init_running": "the statistics themselves",
    "update_moments": "combines statistics",
    "Whitening": "the statistics themselves",
    "update_whitening": "combines statistics",
    "statistics_penalty": "a number that a loss adds",
}


# The same functions over other axes: not for what takes long and does not depend on the axes.
VARIANTS = {
    "batch_norm_conv",
    "layer_norm_inner",
    "rms_norm_offset",
    "filter_response_norm",
    "group_norm_channels_first",
    "whiten_alone",
}


def norms(point, variants=True):
    """Parametrizes a test by `norm`, over all that `point` of the contract applies to."""
    chosen = [n for n in NORMS if point not in n.exempt and (variants or n.name not in VARIANTS)]
    return pytest.mark.parametrize("norm", chosen, ids=[norm.name for norm in chosen])


def paths(point, names=PATHS, dtypes=None):
    """Parametrizes a test by `norm` and `shape`, over every path of the core.

    `dtypes` gives a `dtype` for each path, for what need not be tested in every combination.
    """
    chosen = [(n, p) for n in NORMS if point not in n.exempt for p in dtypes or names]
    arguments = [(n, n.shapes[p], *([] if dtypes is None else [dtypes[p]])) for n, p in chosen]
    return pytest.mark.parametrize(
        ("norm", "shape") if dtypes is None else ("norm", "shape", "dtype"),
        arguments,
        ids=[f"{norm.name}-{name}" for norm, name in chosen],
    )
