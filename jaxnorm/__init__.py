"""Every normalization used in deep learning, as pure JAX functions.

The Flax modules are in `jaxnorm.linen` and `jaxnorm.nnx`.
"""

from jaxnorm._core.combine import merge_moments as merge_moments
from jaxnorm._core.combine import mix_moments as mix_moments
from jaxnorm._core.combine import update_moments as update_moments
from jaxnorm._core.moments import Moments as Moments
from jaxnorm._core.moments import moments as moments
from jaxnorm._core.plain import plain as plain
from jaxnorm._core.standardize import standardize as standardize
from jaxnorm._layers.step import batch_norm_step as batch_norm_step
from jaxnorm._layers.step import init_running as init_running
from jaxnorm.functional.batch import batch_norm as batch_norm
from jaxnorm.functional.feature import layer_norm as layer_norm
from jaxnorm.functional.feature import rms_norm as rms_norm
from jaxnorm.functional.group import group_norm as group_norm
from jaxnorm.functional.group import instance_norm as instance_norm
from jaxnorm.functional.inverse import unstandardize as unstandardize
from jaxnorm.functional.penalty import statistics_penalty as statistics_penalty
from jaxnorm.functional.renorm import batch_renorm as batch_renorm
from jaxnorm.functional.renorm import blended_batch_norm as blended_batch_norm
from jaxnorm.functional.segment import segment_batch_norm as segment_batch_norm
from jaxnorm.functional.virtual import ghost_batch_norm as ghost_batch_norm
from jaxnorm.functional.weight import spectral_norm as spectral_norm
from jaxnorm.functional.weight import weight_norm as weight_norm
from jaxnorm.functional.weight_standardization import (
    scaled_weight_standardize as scaled_weight_standardize,
)
from jaxnorm.functional.weight_standardization import weight_standardize as weight_standardize
from jaxnorm.functional.whitening import Whitening as Whitening
from jaxnorm.functional.whitening import decorrelate as decorrelate
from jaxnorm.functional.whitening import update_whitening as update_whitening
from jaxnorm.functional.whitening import whiten as whiten

__version__ = "0.1.0"

__all__ = [
    "Moments",
    "Whitening",
    "batch_norm",
    "batch_norm_step",
    "batch_renorm",
    "blended_batch_norm",
    "decorrelate",
    "ghost_batch_norm",
    "group_norm",
    "init_running",
    "instance_norm",
    "layer_norm",
    "merge_moments",
    "mix_moments",
    "moments",
    "plain",
    "rms_norm",
    "scaled_weight_standardize",
    "segment_batch_norm",
    "spectral_norm",
    "standardize",
    "statistics_penalty",
    "unstandardize",
    "update_moments",
    "update_whitening",
    "weight_norm",
    "weight_standardize",
    "whiten",
]
