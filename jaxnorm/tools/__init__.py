"""Tools around the modules: statistics over whole data sets and over microbatches."""

from jaxnorm.tools._accumulate import accumulate as accumulate
from jaxnorm.tools._accumulate import settle as settle
from jaxnorm.tools._dataset import dataset_moments as dataset_moments
from jaxnorm.tools._recalibrate import recalibrate as recalibrate

__all__ = ["accumulate", "dataset_moments", "recalibrate", "settle"]
