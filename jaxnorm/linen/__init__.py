"""Flax linen modules over the pure functions of `jaxnorm`."""

from jaxnorm.linen.activation import DynamicErf as DynamicErf
from jaxnorm.linen.activation import DynamicTanh as DynamicTanh
from jaxnorm.linen.activation import EvoNormS0 as EvoNormS0
from jaxnorm.linen.activation import GatedRMSNorm as GatedRMSNorm
from jaxnorm.linen.activation import LayerScale as LayerScale
from jaxnorm.linen.activation import PolyNorm as PolyNorm
from jaxnorm.linen.bake import bake as bake
from jaxnorm.linen.batch import BatchNorm as BatchNorm
from jaxnorm.linen.feature import LayerNorm as LayerNorm
from jaxnorm.linen.feature import RMSNorm as RMSNorm
from jaxnorm.linen.group import GroupNorm as GroupNorm
from jaxnorm.linen.group import InstanceNorm as InstanceNorm
from jaxnorm.linen.recurrent import LayerNormGRUCell as LayerNormGRUCell
from jaxnorm.linen.recurrent import LayerNormLSTMCell as LayerNormLSTMCell
from jaxnorm.linen.response import DivisiveNorm as DivisiveNorm
from jaxnorm.linen.response import FilterResponseNorm as FilterResponseNorm
from jaxnorm.linen.response import GlobalResponseNorm as GlobalResponseNorm
from jaxnorm.linen.response import LocalResponseNorm as LocalResponseNorm
from jaxnorm.linen.response import ScaleNorm as ScaleNorm
from jaxnorm.linen.weight import SpectralNorm as SpectralNorm
from jaxnorm.linen.weight import WeightNorm as WeightNorm
from jaxnorm.linen.weight import WeightStandardization as WeightStandardization
from jaxnorm.linen.whitening import DecorrelatedBatchNorm as DecorrelatedBatchNorm

__all__ = [
    "BatchNorm",
    "DecorrelatedBatchNorm",
    "DivisiveNorm",
    "DynamicErf",
    "DynamicTanh",
    "EvoNormS0",
    "FilterResponseNorm",
    "GatedRMSNorm",
    "GlobalResponseNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "LayerScale",
    "LocalResponseNorm",
    "PolyNorm",
    "RMSNorm",
    "ScaleNorm",
    "SpectralNorm",
    "WeightNorm",
    "WeightStandardization",
    "bake",
]
