"""Every normalization used in deep learning, as pure JAX functions.

The Flax linen modules are in `jaxnorm.linen`.
"""

from jaxnorm._moments import Moments as Moments
from jaxnorm._moments import merge_moments as merge_moments
from jaxnorm._moments import moments as moments
from jaxnorm._moments import update_moments as update_moments
from jaxnorm._standardize import standardize as standardize
from jaxnorm.functional.batch import batch_norm as batch_norm
from jaxnorm.functional.feature import layer_norm as layer_norm
from jaxnorm.functional.feature import rms_norm as rms_norm
from jaxnorm.functional.group import group_norm as group_norm
from jaxnorm.functional.group import instance_norm as instance_norm

__version__ = "0.1.0"

__all__ = [
    "Moments",
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "merge_moments",
    "moments",
    "rms_norm",
    "standardize",
    "update_moments",
]
