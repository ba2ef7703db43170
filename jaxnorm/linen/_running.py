"""The running statistics of a module, in the collection `batch_stats`."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxnorm._core import combine, pool
from jaxnorm._core.moments import Moments

ACCUMULATORS = ("accumulated_mean", "accumulated_var", "accumulated_count")


class RunningMoments:
    """Mean and variance, and where it is needed the number of updates, as Flax variables.

    Beside them may stand accumulators, which `jaxnorm.tools.accumulate` puts there: then the
    batches' moments are merged into those, and the running ones rest.
    """

    collection = "batch_stats"

    def __init__(
        self, module: nn.Module, shape: tuple[int, ...], dtype: jnp.dtype, *, counts: bool
    ):
        mean, var = pool.compute_dtype(dtype), pool.real_dtype(dtype)
        self._module = module
        self._mean = module.variable(self.collection, "mean", jnp.zeros, shape, mean)
        self._var = module.variable(self.collection, "var", jnp.ones, shape, var)
        self._count = None
        if counts:
            self._count = module.variable(self.collection, "count", jnp.zeros, shape, var)

    @property
    def value(self) -> Moments:
        """The running moments; their count is the number of updates, or 0 where none is kept."""
        var = self._var.value
        count = jnp.zeros((), var.dtype) if self._count is None else self._count.value
        return Moments(self._mean.value, var, count)

    @value.setter
    def value(self, new: Moments) -> None:
        self._mean.value, self._var.value = new.mean, new.var
        if self._count is not None:
            self._count.value = new.count

    @classmethod
    def accumulates(cls, module: nn.Module) -> bool:
        """Whether there are accumulators to merge moments into."""
        return module.has_variable(cls.collection, ACCUMULATORS[0])

    def accumulate(self, batch: Moments) -> None:
        """Merges the moments of a batch, of the shape of the running ones."""
        old = Moments(*(self._module.get_variable(self.collection, name) for name in ACCUMULATORS))
        batch = Moments(*(b.astype(a.dtype) for a, b in zip(old, batch, strict=True)))
        merged = combine.merge_moments(old, batch)
        for name, value, shaped in zip(ACCUMULATORS, merged, old, strict=True):
            self._module.put_variable(self.collection, name, jnp.broadcast_to(value, shaped.shape))
