"""Every normalization used in deep learning, as pure JAX functions.

The Flax modules are in `jaxnorm.linen` and `jaxnorm.nnx`.
"""

from jaxnorm._core.moments import Moments as Moments
from jaxnorm._core.plain import plain as plain
from jaxnorm._layers.step import batch_norm_step as batch_norm_step
from jaxnorm._layers.step import init_running as init_running
from jaxnorm.functional.activation import dynamic_erf as dynamic_erf
from jaxnorm.functional.activation import dynamic_tanh as dynamic_tanh
from jaxnorm.functional.activation import gated_rms_norm as gated_rms_norm
from jaxnorm.functional.activation import poly_norm as poly_norm
from jaxnorm.functional.adaptive import adaptive_instance_norm as adaptive_instance_norm
from jaxnorm.functional.adaptive import batch_instance_norm as batch_instance_norm
from jaxnorm.functional.adaptive import switchable_norm as switchable_norm
from jaxnorm.functional.average import mix_moments as mix_moments
from jaxnorm.functional.average import update_moments as update_moments
from jaxnorm.functional.batch import batch_norm as batch_norm
from jaxnorm.functional.evolved_batch import evo_norm_b0 as evo_norm_b0
from jaxnorm.functional.evolved_batch import evo_norm_b1 as evo_norm_b1
from jaxnorm.functional.evolved_batch import evo_norm_b2 as evo_norm_b2
from jaxnorm.functional.evolved_example import evo_norm_s0 as evo_norm_s0
from jaxnorm.functional.evolved_example import evo_norm_s1 as evo_norm_s1
from jaxnorm.functional.evolved_example import evo_norm_s2 as evo_norm_s2
from jaxnorm.functional.feature import layer_norm as layer_norm
from jaxnorm.functional.feature import rms_norm as rms_norm
from jaxnorm.functional.graph import graph_norm as graph_norm
from jaxnorm.functional.graph import pair_norm as pair_norm
from jaxnorm.functional.group import group_norm as group_norm
from jaxnorm.functional.group import instance_norm as instance_norm
from jaxnorm.functional.inverse import unstandardize as unstandardize
from jaxnorm.functional.local import divisive_norm as divisive_norm
from jaxnorm.functional.local import local_response_norm as local_response_norm
from jaxnorm.functional.merge import merge_moments as merge_moments
from jaxnorm.functional.modulation import demodulate as demodulate
from jaxnorm.functional.moments import moments as moments
from jaxnorm.functional.penalty import statistics_penalty as statistics_penalty
from jaxnorm.functional.renorm import batch_renorm as batch_renorm
from jaxnorm.functional.renorm import blended_batch_norm as blended_batch_norm
from jaxnorm.functional.response import filter_response_norm as filter_response_norm
from jaxnorm.functional.response import global_response_norm as global_response_norm
from jaxnorm.functional.response import lp_norm as lp_norm
from jaxnorm.functional.segment import segment_batch_norm as segment_batch_norm
from jaxnorm.functional.sequence import cumulative_norm as cumulative_norm
from jaxnorm.functional.standardize import standardize as standardize
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
    "adaptive_instance_norm",
    "batch_instance_norm",
    "batch_norm",
    "batch_norm_step",
    "batch_renorm",
    "blended_batch_norm",
    "cumulative_norm",
    "decorrelate",
    "demodulate",
    "divisive_norm",
    "dynamic_erf",
    "dynamic_tanh",
    "evo_norm_b0",
    "evo_norm_b1",
    "evo_norm_b2",
    "evo_norm_s0",
    "evo_norm_s1",
    "evo_norm_s2",
    "filter_response_norm",
    "gated_rms_norm",
    "ghost_batch_norm",
    "global_response_norm",
    "graph_norm",
    "group_norm",
    "init_running",
    "instance_norm",
    "layer_norm",
    "local_response_norm",
    "lp_norm",
    "merge_moments",
    "mix_moments",
    "moments",
    "pair_norm",
    "plain",
    "poly_norm",
    "rms_norm",
    "scaled_weight_standardize",
    "segment_batch_norm",
    "spectral_norm",
    "standardize",
    "statistics_penalty",
    "switchable_norm",
    "unstandardize",
    "update_moments",
    "update_whitening",
    "weight_norm",
    "weight_standardize",
    "whiten",
]
