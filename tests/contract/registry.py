"""Every public normalization, once. `tests/contract/test_*.py` runs the whole contract over it.

A technique joins by one entry in `tests/contract/norms_*.py`. A point of the contract that cannot
apply to it stands in `exempt` with the reason.
"""

import pytest

from tests.contract.norms_batch import BATCH
from tests.contract.norms_feature import FEATURE
from tests.contract.norms_response import RESPONSE
from tests.contract.norms_weight import WEIGHT
from tests.contract.norms_whitening import WHITENING

NORMS = [*BATCH, *FEATURE, *RESPONSE, *WEIGHT, *WHITENING]

# The shapes of an entry: every test says at which it runs.
PATHS = ("five", "plain", "many", "large")

# What the others are made of: between them they take every path of the core. What does not differ
# from one composition of the core to the next, and is long to compile, runs for these in full and
# for the others once.
CORE = {
    "batch_norm",
    "blended_batch_norm",
    "group_norm",
    "layer_norm_inner",
    "rms_norm",
    "weight_norm",
}

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


def applicable(point, core=None):
    """All that `point` of the contract applies to; of `CORE` alone, or without it, if given."""
    return [
        norm
        for norm in NORMS
        if point not in norm.exempt and (core is None or core == (norm.name in CORE))
    ]


def norms(point, core=None):
    """Parametrizes a test by `norm`, over all that `point` of the contract applies to."""
    chosen = applicable(point, core)
    return pytest.mark.parametrize("norm", chosen, ids=[norm.name for norm in chosen])


def paths(point, names, core=()):
    """Parametrizes a test by `norm` and `shape`, at further ones for `CORE`."""
    chosen = [
        (norm, name)
        for norm in applicable(point)
        for name in (*names, *(core if norm.name in CORE else ()))
    ]
    return pytest.mark.parametrize(
        ("norm", "shape"),
        [(norm, norm.shapes[name]) for norm, name in chosen],
        ids=[f"{norm.name}-{name}" for norm, name in chosen],
    )
