"""Tools around the modules: layers converted, statistics over data sets and over microbatches."""

from jaxnorm.tools._accumulate import accumulate as accumulate
from jaxnorm.tools._accumulate import settle as settle
from jaxnorm.tools._dataset import dataset_moments as dataset_moments
from jaxnorm.tools._recalibrate import recalibrate as recalibrate
from jaxnorm.tools.convert.equinox import from_equinox as from_equinox
from jaxnorm.tools.convert.flax import from_flax as from_flax
from jaxnorm.tools.convert.haiku import from_haiku as from_haiku
from jaxnorm.tools.convert.keras import from_keras as from_keras
from jaxnorm.tools.convert.torch import from_torch as from_torch

__all__ = [
    "accumulate",
    "dataset_moments",
    "from_equinox",
    "from_flax",
    "from_haiku",
    "from_keras",
    "from_torch",
    "recalibrate",
    "settle",
]
