"""Tools around the modules: whole models, statistics of data sets, layers of other libraries."""

from jaxnorm.tools._freeze import freeze as freeze
from jaxnorm.tools._norm_params import norm_params as norm_params
from jaxnorm.tools.convert.equinox import from_equinox as from_equinox
from jaxnorm.tools.convert.flax import from_flax as from_flax
from jaxnorm.tools.convert.haiku import from_haiku as from_haiku
from jaxnorm.tools.convert.keras import from_keras as from_keras
from jaxnorm.tools.convert.torch import from_torch as from_torch
from jaxnorm.tools.folding.fold import Folded as Folded
from jaxnorm.tools.folding.fold import fold as fold
from jaxnorm.tools.folding.kernel import fold_kernel as fold_kernel
from jaxnorm.tools.inspection.inspect import inspect as inspect
from jaxnorm.tools.inspection.layers import InspectedLayer as InspectedLayer
from jaxnorm.tools.inspection.layers import Inspection as Inspection
from jaxnorm.tools.mixing.find import find_mixing as find_mixing
from jaxnorm.tools.statistics.accumulate import accumulate as accumulate
from jaxnorm.tools.statistics.accumulate import settle as settle
from jaxnorm.tools.statistics.dataset import dataset_moments as dataset_moments
from jaxnorm.tools.statistics.recalibrate import recalibrate as recalibrate

__all__ = [
    "Folded",
    "InspectedLayer",
    "Inspection",
    "accumulate",
    "dataset_moments",
    "find_mixing",
    "fold",
    "fold_kernel",
    "freeze",
    "from_equinox",
    "from_flax",
    "from_haiku",
    "from_keras",
    "from_torch",
    "inspect",
    "norm_params",
    "recalibrate",
    "settle",
]
