"""Flax linen modules over the pure functions of `jaxnorm`."""

from jaxnorm.linen.activation import DynamicErf as DynamicErf
from jaxnorm.linen.activation import DynamicTanh as DynamicTanh
from jaxnorm.linen.activation import EvoNormS0 as EvoNormS0
from jaxnorm.linen.activation import GatedRMSNorm as GatedRMSNorm
from jaxnorm.linen.activation import LayerScale as LayerScale
from jaxnorm.linen.activation import PolyNorm as PolyNorm
from jaxnorm.linen.bake import bake
from jaxnorm.linen.batch import BatchNorm
from jaxnorm.linen.conditional import SPADE, AdaptiveNorm
from jaxnorm.linen.feature import LayerNorm, RMSNorm
from jaxnorm.linen.graph import GraphNorm
from jaxnorm.linen.group import GroupNorm, InstanceNorm
from jaxnorm.linen.make import make, names
from jaxnorm.linen.mixture import BatchChannelNorm, BatchInstanceNorm, EvoNormB0, SwitchableNorm
from jaxnorm.linen.recurrent import LayerNormGRUCell, LayerNormLSTMCell
from jaxnorm.linen.response import DivisiveNorm as DivisiveNorm
from jaxnorm.linen.response import FilterResponseNorm as FilterResponseNorm
from jaxnorm.linen.response import GlobalResponseNorm as GlobalResponseNorm
from jaxnorm.linen.response import LocalResponseNorm as LocalResponseNorm
from jaxnorm.linen.response import ScaleNorm as ScaleNorm
from jaxnorm.linen.sequence import CumulativeNorm
from jaxnorm.linen.series import InputNorm, RevIN
from jaxnorm.linen.weight import SpectralNorm, WeightNorm, WeightStandardization
from jaxnorm.linen.whitening import DecorrelatedBatchNorm

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
