"""Flax NNX modules over the pure functions of `jaxnorm`."""

from jaxnorm.nnx.activation import DynamicErf as DynamicErf
from jaxnorm.nnx.activation import DynamicTanh as DynamicTanh
from jaxnorm.nnx.activation import EvoNormS0 as EvoNormS0
from jaxnorm.nnx.activation import GatedRMSNorm as GatedRMSNorm
from jaxnorm.nnx.activation import LayerScale as LayerScale
from jaxnorm.nnx.activation import PolyNorm as PolyNorm
from jaxnorm.nnx.bake import bake
from jaxnorm.nnx.batch import BatchNorm
from jaxnorm.nnx.conditional import SPADE, AdaptiveNorm
from jaxnorm.nnx.feature import LayerNorm, RMSNorm
from jaxnorm.nnx.graph import GraphNorm
from jaxnorm.nnx.group import GroupNorm, InstanceNorm
from jaxnorm.nnx.make import make, names
from jaxnorm.nnx.mixture import BatchChannelNorm, BatchInstanceNorm, EvoNormB0, SwitchableNorm
from jaxnorm.nnx.recurrent import LayerNormGRUCell, LayerNormLSTMCell
from jaxnorm.nnx.response import DivisiveNorm as DivisiveNorm
from jaxnorm.nnx.response import FilterResponseNorm as FilterResponseNorm
from jaxnorm.nnx.response import GlobalResponseNorm as GlobalResponseNorm
from jaxnorm.nnx.response import LocalResponseNorm as LocalResponseNorm
from jaxnorm.nnx.response import ScaleNorm as ScaleNorm
from jaxnorm.nnx.sequence import CumulativeNorm
from jaxnorm.nnx.series import InputNorm, RevIN
from jaxnorm.nnx.weight import SpectralNorm, WeightNorm, WeightStandardization
from jaxnorm.nnx.whitening import DecorrelatedBatchNorm

__all__ = [
    "SPADE",
    "AdaptiveNorm",
    "BatchChannelNorm",
    "BatchInstanceNorm",
    "BatchNorm",
    "CumulativeNorm",
    "DecorrelatedBatchNorm",
    "DivisiveNorm",
    "DynamicErf",
    "DynamicTanh",
    "EvoNormB0",
    "EvoNormS0",
    "FilterResponseNorm",
    "GatedRMSNorm",
    "GlobalResponseNorm",
    "GraphNorm",
    "GroupNorm",
    "InputNorm",
    "InstanceNorm",
    "LayerNorm",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "LayerScale",
    "LocalResponseNorm",
    "PolyNorm",
    "RMSNorm",
    "RevIN",
    "ScaleNorm",
    "SpectralNorm",
    "SwitchableNorm",
    "WeightNorm",
    "WeightStandardization",
    "bake",
    "make",
    "names",
]
