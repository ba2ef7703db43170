"""The normalizations that `compare` trains with: from a name to what stands in the network.

Modules are named and not imported, so that the command line knows the names without flax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Norm(NamedTuple):
    """A normalization of a convolutional network.

    Attributes:
      layer: the module of `jaxnorm.linen` after each convolution; none if empty.
      options: the fields that it does not leave as they are.
      axes: the axes that it pools, of inputs of a rank; if the module does not know them itself.
      weights: the wrapper, in `jaxnorm.linen`, of the convolutions themselves.
      activates: whether it takes the place of the ReLU as well.
      positions: whether it needs positions to pool, which the hidden dense layer does not have.
    """

    layer: str = ""
    options: Mapping[str, Any] = MappingProxyType({})
    axes: Callable[[int], tuple[int, ...]] | None = None
    weights: str = ""
    activates: bool = False
    positions: bool = False


def all_but_examples(rank: int) -> tuple[int, ...]:
    """Returns the axes of one example."""
    return tuple(range(1, rank))


# Of the running mean and variance. With flax.linen's 0.99 they would still lag behind in the
# first hundred steps, and the steps to the target would measure that instead of the training.
MOMENTUM = {"momentum": 0.9}
NUM_GROUPS = 4
GROUPS = {"num_groups": NUM_GROUPS}

CLASSICAL = {
    "none": Norm(),
    "batch": Norm("BatchNorm", MOMENTUM),
    "layer": Norm("LayerNorm", axes=all_but_examples),
    "rms": Norm("RMSNorm", axes=all_but_examples),
    "group": Norm("GroupNorm", GROUPS),
    "instance": Norm("InstanceNorm", positions=True),
}
# And what fits of the rest of the catalogue. What does not has the statistics of a sequence, of a
# graph, of raw inputs, or needs a gate or a condition.
NORMS = {
    **CLASSICAL,
    "renorm": Norm("BatchNorm", {"train_statistics": "renorm", **MOMENTUM}),
    "whitening": Norm(
        "DecorrelatedBatchNorm",
        {"method": "iterative", "num_iterations": 5, **GROUPS, **MOMENTUM},
        positions=True,
    ),
    "batch_channel": Norm("BatchChannelNorm", {**GROUPS, **MOMENTUM}),
    "batch_instance": Norm("BatchInstanceNorm", MOMENTUM, positions=True),
    "switchable": Norm("SwitchableNorm", MOMENTUM, positions=True),
    "frn": Norm("FilterResponseNorm", activates=True, positions=True),
    "grn": Norm("GlobalResponseNorm", positions=True),
    "lrn": Norm("LocalResponseNorm", {"size": 5}),
    "divisive": Norm("DivisiveNorm", {"window": 3}, positions=True),
    "pixel": Norm("RMSNorm", {"use_gamma": False, "epsilon": 1e-8}),
    "scale": Norm("ScaleNorm", axes=all_but_examples),
    "evonorm_b0": Norm("EvoNormB0", MOMENTUM, activates=True, positions=True),
    "evonorm_s0": Norm("EvoNormS0", GROUPS, activates=True),
    "poly": Norm("PolyNorm", activates=True),
    "dyt": Norm("DynamicTanh"),
    "derf": Norm("DynamicErf"),
    "weight": Norm(weights="WeightNorm"),
    "spectral": Norm(weights="SpectralNorm"),
    "ws_group": Norm("GroupNorm", GROUPS, weights="WeightStandardization"),
}
