"""Flax NNX modules over the pure functions of `jaxnorm`."""

from jaxnorm.nnx.bake import bake as bake
from jaxnorm.nnx.batch import BatchNorm as BatchNorm
from jaxnorm.nnx.feature import LayerNorm as LayerNorm
from jaxnorm.nnx.feature import RMSNorm as RMSNorm
from jaxnorm.nnx.group import GroupNorm as GroupNorm
from jaxnorm.nnx.group import InstanceNorm as InstanceNorm
from jaxnorm.nnx.make import make as make
from jaxnorm.nnx.make import names as names
from jaxnorm.nnx.recurrent import LayerNormGRUCell as LayerNormGRUCell
from jaxnorm.nnx.recurrent import LayerNormLSTMCell as LayerNormLSTMCell
from jaxnorm.nnx.weight import SpectralNorm as SpectralNorm
from jaxnorm.nnx.weight import WeightNorm as WeightNorm
from jaxnorm.nnx.weight import WeightStandardization as WeightStandardization
from jaxnorm.nnx.whitening import DecorrelatedBatchNorm as DecorrelatedBatchNorm

__all__ = [
    "BatchNorm",
    "DecorrelatedBatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "RMSNorm",
    "SpectralNorm",
    "WeightNorm",
    "WeightStandardization",
    "bake",
    "make",
    "names",
]
