"""Norms of raw inputs that can be undone, as Flax linen modules."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.moments import Moments
from jaxnorm._layers.population import PopulationLayer
from jaxnorm._layers.reversible import normalize_series
from jaxnorm.functional.inverse import unstandardize
from jaxnorm.linen._state import StateVariables, context_of


class _Kept:
    """What `normalize` leaves for `denormalize`, within one call of the model."""

    moments: Moments | None = None


class RevIN(nn.Module, kw_only=True):
    """Reversible instance normalization of time series: each by its own statistics, and back.

    `normalize` brings each variable of each series to mean 0 and variance 1 over time,
    `denormalize` brings what the model forecasts from it, of any length, back: it undoes gamma and
    beta and uses the moments that the last `normalize` of this module found in the same call of the
    model. In separate calls give it `moments=jaxnorm.moments(x, axis=1)`.

    Attributes:
      time_axis: the axis of the times; variables are on the last.
      epsilon: added to the variance.
      stop_gradient: whether no gradient goes through the statistics, as in the authors' code.
      dtype: dtype of the result; default: that of the input.
      param_dtype: dtype of the parameters.
      use_gamma: whether to scale by a parameter gamma, with one value per variable.
      use_beta: whether to add a parameter beta.
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

    time_axis: int = 1
    epsilon: float = 1e-5
    stop_gradient: bool = True
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32
    use_gamma: bool = True
    use_beta: bool = True
    gamma_init: nn.initializers.Initializer = nn.initializers.ones
    beta_init: nn.initializers.Initializer = nn.initializers.zeros

    def setup(self):
        """Makes room for the moments."""
        self._kept = _Kept()

    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalizes `x`, as `normalize`."""
        return self.normalize(x, mask=mask)

    @nn.compact
    def affine(self, variables: int) -> tuple[jax.Array | None, jax.Array | None]:
        """Returns gamma and beta."""
        gamma = beta = None
        if self.use_gamma:
            gamma = self.param("gamma", self.gamma_init, (variables,), self.param_dtype)
        if self.use_beta:
            beta = self.param("beta", self.beta_init, (variables,), self.param_dtype)
        return gamma, beta

    def normalize(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalizes `x` and keeps its moments."""
        x = _axes.check_input(x)
        time = _axes.canonical_axis(self.time_axis, x.shape, "time_axis")
        y, self._kept.moments = normalize_series(
            x,
            *self.affine(x.shape[-1]),
            time,
            epsilon=self.epsilon,
            stop_gradient=self.stop_gradient,
            mask=mask,
            dtype=self.dtype,
        )
        return y

    def denormalize(self, y: ArrayLike, *, moments: Moments | None = None) -> jax.Array:
        """Brings `y` back to the scale of the series that was normalized last."""
        y = _axes.check_input(y, "y")
        moments = self._kept.moments if moments is None else moments
        if moments is None:
            raise ValueError(
                "RevIN.denormalize needs the moments of a series: call normalize before it, in the "
                "same call of the model, or pass moments=jaxnorm.moments(x, axis=time_axis)."
            )
        time = _axes.canonical_axis(self.time_axis, y.shape, "time_axis")
        gamma, beta = self.affine(y.shape[-1])
        options = {"axis": time, "feature_axes": -1, "epsilon": self.epsilon, "dtype": self.dtype}
        return unstandardize(y, moments, gamma, beta, **options)


class InputNorm(nn.Module, kw_only=True):
    """Normalization of raw inputs by the moments of all that were ever seen.

    In training the batch's moments are merged into those of the population, exactly, by their
    counts, in the collection `batch_stats` (`population_mean`, `population_var`,
    `population_count`), and these normalize: apply with `mutable=["batch_stats"]`. In evaluation
    they stay. No gradient reaches them, and there are no parameters.

    Attributes:
      use_running_average: evaluation or training; here or in the call, which wins.
      feature_axes: the axes whose elements have moments of their own.
      epsilon: added to the variance.
      clip: limit of the absolute value of the result.
      dtype: dtype of the result; default: that of the input.
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

    use_running_average: bool | None = None
    feature_axes: Axes = -1
    epsilon: float = 1e-5
    clip: float | None = None
    dtype: jax.typing.DTypeLike | None = None
    axis_name: str | Sequence[str] | None = None
    axis_index_groups: AxisIndexGroups = None

    @nn.compact
    def population(self, x: jax.Array) -> tuple[PopulationLayer, StateVariables]:
        """Returns the layer and its state, for inputs like `x`."""
        layer = PopulationLayer.of(self)
        return layer, StateVariables(self, layer.first_state(x))

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
        context = context_of(self, "InputNorm")
        y, new = layer.apply(x, state.value, use_running_average, context, mask)
        state.keep(new)
        return y

    def inverse(self, y: ArrayLike) -> jax.Array:
        """Brings `y` back to the scale of the raw inputs."""
        y = _axes.check_input(y, "y")
        layer, state = self.population(y)
        return layer.inverse(y, state.value)
