"""Tools around the modules: whole models, statistics of data sets, layers of other libraries."""

from jaxnorm.tools._accumulate import accumulate as accumulate
from jaxnorm.tools._accumulate import settle as settle
from jaxnorm.tools._dataset import dataset_moments as dataset_moments
from jaxnorm.tools._fold import Folded as Folded
from jaxnorm.tools._fold import fold as fold
from jaxnorm.tools._fold_kernel import fold_kernel as fold_kernel
from jaxnorm.tools._freeze import freeze as freeze
from jaxnorm.tools._inspect import inspect as inspect
from jaxnorm.tools._inspected import InspectedLayer as InspectedLayer
from jaxnorm.tools._inspected import Inspection as Inspection
from jaxnorm.tools._mixing import find_mixing as find_mixing
from jaxnorm.tools._norm_params import norm_params as norm_params
from jaxnorm.tools._recalibrate import recalibrate as recalibrate
from jaxnorm.tools.convert.equinox import from_equinox as from_equinox
from jaxnorm.tools.convert.flax import from_flax as from_flax
from jaxnorm.tools.convert.haiku import from_haiku as from_haiku
from jaxnorm.tools.convert.keras import from_keras as from_keras
from jaxnorm.tools.convert.torch import from_torch as from_torch

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
