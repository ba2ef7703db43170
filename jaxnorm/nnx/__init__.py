"""Flax NNX modules over the pure functions of `jaxnorm`."""

from jaxnorm.nnx.activation import DynamicErf as DynamicErf
from jaxnorm.nnx.activation import DynamicTanh as DynamicTanh
from jaxnorm.nnx.activation import EvoNormS0 as EvoNormS0
from jaxnorm.nnx.activation import GatedRMSNorm as GatedRMSNorm
from jaxnorm.nnx.activation import LayerScale as LayerScale
from jaxnorm.nnx.activation import PolyNorm as PolyNorm
from jaxnorm.nnx.bake import bake as bake
from jaxnorm.nnx.batch import BatchNorm as BatchNorm
from jaxnorm.nnx.conditional import SPADE as SPADE
from jaxnorm.nnx.conditional import AdaptiveNorm as AdaptiveNorm
from jaxnorm.nnx.feature import LayerNorm as LayerNorm
from jaxnorm.nnx.feature import RMSNorm as RMSNorm
from jaxnorm.nnx.graph import GraphNorm as GraphNorm
from jaxnorm.nnx.group import GroupNorm as GroupNorm
from jaxnorm.nnx.group import InstanceNorm as InstanceNorm
from jaxnorm.nnx.make import make as make
from jaxnorm.nnx.make import names as names
from jaxnorm.nnx.mixture import BatchChannelNorm as BatchChannelNorm
from jaxnorm.nnx.mixture import BatchInstanceNorm as BatchInstanceNorm
from jaxnorm.nnx.mixture import EvoNormB0 as EvoNormB0
from jaxnorm.nnx.mixture import SwitchableNorm as SwitchableNorm
from jaxnorm.nnx.recurrent import LayerNormGRUCell as LayerNormGRUCell
from jaxnorm.nnx.recurrent import LayerNormLSTMCell as LayerNormLSTMCell
from jaxnorm.nnx.response import DivisiveNorm as DivisiveNorm
from jaxnorm.nnx.response import FilterResponseNorm as FilterResponseNorm
from jaxnorm.nnx.response import GlobalResponseNorm as GlobalResponseNorm
from jaxnorm.nnx.response import LocalResponseNorm as LocalResponseNorm
from jaxnorm.nnx.response import ScaleNorm as ScaleNorm
from jaxnorm.nnx.sequence import CumulativeNorm as CumulativeNorm
from jaxnorm.nnx.series import InputNorm as InputNorm
from jaxnorm.nnx.series import RevIN as RevIN
from jaxnorm.nnx.weight import SpectralNorm as SpectralNorm
from jaxnorm.nnx.weight import WeightNorm as WeightNorm
from jaxnorm.nnx.weight import WeightStandardization as WeightStandardization
from jaxnorm.nnx.whitening import DecorrelatedBatchNorm as DecorrelatedBatchNorm

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
