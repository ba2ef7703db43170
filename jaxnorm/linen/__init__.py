"""Flax linen modules over the pure functions of `jaxnorm`."""

from jaxnorm.linen.activation import DynamicErf as DynamicErf
from jaxnorm.linen.activation import DynamicTanh as DynamicTanh
from jaxnorm.linen.activation import EvoNormS0 as EvoNormS0
from jaxnorm.linen.activation import GatedRMSNorm as GatedRMSNorm
from jaxnorm.linen.activation import LayerScale as LayerScale
from jaxnorm.linen.activation import PolyNorm as PolyNorm
from jaxnorm.linen.bake import bake as bake
from jaxnorm.linen.batch import BatchNorm as BatchNorm
from jaxnorm.linen.conditional import SPADE as SPADE
from jaxnorm.linen.conditional import AdaptiveNorm as AdaptiveNorm
from jaxnorm.linen.feature import LayerNorm as LayerNorm
from jaxnorm.linen.feature import RMSNorm as RMSNorm
from jaxnorm.linen.graph import GraphNorm as GraphNorm
from jaxnorm.linen.group import GroupNorm as GroupNorm
from jaxnorm.linen.group import InstanceNorm as InstanceNorm
from jaxnorm.linen.make import make as make
from jaxnorm.linen.make import names as names
from jaxnorm.linen.mixture import BatchChannelNorm as BatchChannelNorm
from jaxnorm.linen.mixture import BatchInstanceNorm as BatchInstanceNorm
from jaxnorm.linen.mixture import EvoNormB0 as EvoNormB0
from jaxnorm.linen.mixture import SwitchableNorm as SwitchableNorm
from jaxnorm.linen.recurrent import LayerNormGRUCell as LayerNormGRUCell
from jaxnorm.linen.recurrent import LayerNormLSTMCell as LayerNormLSTMCell
from jaxnorm.linen.response import DivisiveNorm as DivisiveNorm
from jaxnorm.linen.response import FilterResponseNorm as FilterResponseNorm
from jaxnorm.linen.response import GlobalResponseNorm as GlobalResponseNorm
from jaxnorm.linen.response import LocalResponseNorm as LocalResponseNorm
from jaxnorm.linen.response import ScaleNorm as ScaleNorm
from jaxnorm.linen.sequence import CumulativeNorm as CumulativeNorm
from jaxnorm.linen.series import InputNorm as InputNorm
from jaxnorm.linen.series import RevIN as RevIN
from jaxnorm.linen.weight import SpectralNorm as SpectralNorm
from jaxnorm.linen.weight import WeightNorm as WeightNorm
from jaxnorm.linen.weight import WeightStandardization as WeightStandardization
from jaxnorm.linen.whitening import DecorrelatedBatchNorm as DecorrelatedBatchNorm

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
