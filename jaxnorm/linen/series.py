"""Norms of raw inputs that can be undone, as Flax linen modules."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxnorm._core.axes import ArrayLike
from jaxnorm._core.moments import Moments
from jaxnorm._layers import population, reversible
from jaxnorm._layers.call import Params, State, StateInit
from jaxnorm.linen._base import Module


class _Kept:
    """What `normalize` leaves for `denormalize`, within one call of the model."""

    moments: Moments | None = None


class RevIN(reversible.RevIN, Module, kw_only=True):
    """Reversible instance normalization of time series: each by its own statistics, and back.

    `normalize` brings each variable of each series to mean 0 and variance 1 over time,
    `denormalize` brings what the model forecasts from it, of any length, back: it undoes gamma and
    beta and uses the moments that the last `normalize` of this module found in the same call of the
    model. In separate calls give it `moments=jaxnorm.moments(x, axis=1)`.

    Example:
      >>> import jax, jax.numpy as jnp, flax.linen as nn, jaxnorm.linen as jnn
      >>> class LastValue(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         norm = jnn.RevIN(epsilon=0.0)
      ...         y = norm.normalize(x)
      ...         return norm.denormalize(y[:, -1:])
      >>> x = jnp.array([[[10.], [30.]]])
      >>> model = LastValue()
      >>> model.apply(model.init(jax.random.key(0), x), x).tolist()
      [[[30.0]]]
    """

    def setup(self):
        """Makes room for the moments."""
        self._kept = _Kept()

    __call__ = reversible.RevIN.__call__
    normalize = reversible.RevIN.normalize
    denormalize = reversible.RevIN.denormalize

    @nn.compact
    def _params(self, x: jax.Array, **overrides: ArrayLike | None) -> Params:
        return super()._params(x, **overrides)

    @nn.nowrap
    def _remember(self, found: Moments) -> None:
        self._kept.moments = found

    @nn.nowrap
    def _recall(self) -> Moments | None:
        return self._kept.moments


class InputNorm(population.InputNorm, Module, kw_only=True):
    """Normalization of raw inputs by the moments of all that were ever seen.

    In training the batch's moments are merged into those of the population, exactly, by their
    counts, in the collection `batch_stats` (`population_mean`, `population_var`,
    `population_count`), and these normalize: apply with `mutable=["batch_stats"]`. In evaluation
    they stay. No gradient reaches them, and there are no parameters. The count is float32: it stops
    at 2^24 (16.8 million) single observations, at 2^30 in batches of 64, and the moments with it.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> norm = jnn.InputNorm(epsilon=0.0, use_running_average=False)
      >>> variables = norm.init(jax.random.key(0), jnp.zeros((1, 1)))
      >>> for x in (jnp.array([[10.]]), jnp.array([[20.], [30.], [40.]])):
      ...     y, variables = norm.apply(variables, x, mutable=["batch_stats"])
      >>> variables["batch_stats"]["population_mean"].tolist()
      [25.0]
    """

    __call__ = population.InputNorm.__call__
    inverse = population.InputNorm.inverse

    @nn.compact
    def _read_state(self, init: StateInit, x: jax.Array) -> State:
        return super()._read_state(init, x)
