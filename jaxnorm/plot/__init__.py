"""Pictures: what a normalization pools, what it does to each layer, and its running statistics.

`pools` and `norms` draw arrays as cubes; `activations` and `running_statistics` draw what
`record` saw in a Flax model. They need matplotlib: `pip install "jaxnorm[demo]"`.
"""

from jaxnorm.plot._layers import activations as activations
from jaxnorm.plot._layers import running_statistics as running_statistics
from jaxnorm.plot._pools import norms as norms
from jaxnorm.plot._pools import pools as pools
from jaxnorm.plot._record import Record as Record
from jaxnorm.plot._record import record as record

__all__ = ["Record", "activations", "norms", "pools", "record", "running_statistics"]
