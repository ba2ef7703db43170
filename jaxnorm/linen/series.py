"""Norms of raw inputs that can be undone, as Flax linen modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.moments import Moments
from jaxnorm._layers.call import placed_init
from jaxnorm._layers.population import PopulationLayer
from jaxnorm._layers.reversible import RevINLayer
from jaxnorm.linen._base import AffineModule, LayerModule
from jaxnorm.linen._state import StateVariables


class _Kept:
    """What `normalize` leaves for `denormalize`, within one call of the model."""

    moments: Moments | None = None


class RevIN(AffineModule, kw_only=True):
    """Reversible instance normalization of time series: each by its own statistics, and back.

    `normalize` brings each variable of each series to mean 0 and variance 1 over time,
    `denormalize` brings what the model forecasts from it, of any length, back: it undoes gamma and
    beta and uses the moments that the last `normalize` of this module found in the same call of the
    model. In separate calls give it `moments=jaxnorm.moments(x, axis=1)`.

    Attributes:
      time_axis: the axis of the times; variables are on the last.
      epsilon: added to the variance.
      stop_gradient: whether no gradient goes through the statistics, as in the authors' code.
      gamma_init: initializer of gamma, which must not start at zero.
      beta_init: initializer of beta.

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

    Reference: Kim et al. 2022, Reversible Instance Normalization for Accurate Time-Series
    Forecasting against Distribution Shift (ICLR).
    """

    technique = RevINLayer

    time_axis: int = 1
    epsilon: float = 1e-5
    stop_gradient: bool = True

    def setup(self):
        """Makes room for the moments."""
        self._kept = _Kept()

    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalizes `x`, as `normalize`."""
        return self.normalize(x, mask=mask)

    @nn.compact
    def affine(self, x: jax.Array) -> dict[str, Any]:
        """Returns gamma and beta."""
        return self.own(x)

    def normalize(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalizes `x` and keeps its moments."""
        x = _axes.check_input(x)
        y, self._kept.moments = self.options.normalize(x, self.affine(x), mask)
        return y

    def denormalize(self, y: ArrayLike, *, moments: Moments | None = None) -> jax.Array:
        """Brings `y` back to the scale of the series that was normalized last.

        The result has the moments' dtype or a wider one, unless `dtype` says otherwise.
        """
        y = _axes.check_input(y, "y")
        moments = self._kept.moments if moments is None else moments
        return self.options.denormalize(y, self.affine(y), moments)


class InputNorm(LayerModule, kw_only=True):
    """Normalization of raw inputs by the moments of all that were ever seen.

    In training the batch's moments are merged into those of the population, exactly, by their
    counts, in the collection `batch_stats` (`population_mean`, `population_var`,
    `population_count`), and these normalize: apply with `mutable=["batch_stats"]`. In evaluation
    they stay. No gradient reaches them, and there are no parameters. The count is float32: it stops
    at 2^24 (16.8 million) single observations, at 2^30 in batches of 64, and the moments with it.

    Attributes:
      use_running_average: evaluation or training; here or in the call, which wins.
      feature_axes: the axes whose elements have moments of their own.
      epsilon: added to the variance.
      clip: limit of the absolute value of the result.
      axis_name: mapped axes to pool over as well, as for environments on several devices.
      axis_index_groups: groups of indices of `axis_name` that pool together.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> norm = jnn.InputNorm(epsilon=0.0, use_running_average=False)
      >>> variables = norm.init(jax.random.key(0), jnp.zeros((1, 1)))
      >>> for x in (jnp.array([[10.]]), jnp.array([[20.], [30.], [40.]])):
      ...     y, variables = norm.apply(variables, x, mutable=["batch_stats"])
      >>> variables["batch_stats"]["population_mean"].tolist()
      [25.0]

    Reference: Chan, Golub & LeVeque 1979, Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances.
    """

    technique = PopulationLayer

    use_running_average: bool | None = None
    feature_axes: Axes = -1
    epsilon: float = 1e-5
    clip: float | None = None
    axis_name: str | Sequence[str] | None = None
    axis_index_groups: AxisIndexGroups = None

    @nn.compact
    def population(self, x: jax.Array) -> tuple[PopulationLayer, StateVariables]:
        """Returns the layer and its state, for inputs like `x`."""
        layer = self.options
        first = layer.first_state(layer.sizes(x.shape), x.dtype)
        first = placed_init(first, dict.fromkeys(first, layer.state_spec(x)))
        return layer, StateVariables(self, first)

    def __call__(
        self,
        x: ArrayLike,
        *,
        use_running_average: bool | jax.Array | None = None,
        mask: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x`."""
        x = _axes.check_input(x)
        layer, state = self.population(x)
        y, new = layer.apply(x, state.value, use_running_average, self.context(), mask)
        state.keep(new)
        return y

    def inverse(self, y: ArrayLike) -> jax.Array:
        """Brings `y` back to the scale of the raw inputs.

        The result has the moments' dtype or a wider one, unless `dtype` says otherwise.
        """
        y = _axes.check_input(y, "y")
        layer, state = self.population(y)
        return layer.inverse(y, state.value)
