"""Norms of raw inputs that can be undone, as Flax NNX modules."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jax.extend.core import get_opaque_trace_state

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.moments import Moments
from jaxnorm._layers.population import PopulationLayer
from jaxnorm._layers.reversible import RevINLayer
from jaxnorm.nnx._base import AffineModule, LayerModule, Moded, check_sizes, module
from jaxnorm.nnx._state import keep, make_state, state_of


class _Call:
    """A call of `normalize`, alike to all others for JAX, which looks up programs by them.

    Attributes:
      traced: whether it was in a function that is transformed or compiled.
    """

    def __init__(self, traced: bool):
        self.traced = traced

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Call)

    def __hash__(self) -> int:
        return hash(_Call)


_OUTSIDE = get_opaque_trace_state(convention="nnx")  # modules are imported outside of any


def _is_traced() -> bool:
    """Whether this is in a function that is transformed, even if no array here is traced."""
    return get_opaque_trace_state(convention="nnx") != _OUTSIDE


# What each RevIN found last. Not in its attributes, which are split, compiled and copied with it.
_FOUND: weakref.WeakKeyDictionary[nnx.Module, Moments] = weakref.WeakKeyDictionary()


@module
class RevIN(AffineModule):
    """Reversible instance normalization of time series: each by its own statistics, and back.

    `normalize` brings each variable of each series to mean 0 and variance 1 over time,
    `denormalize` brings what the model forecasts from it, of any length, back: it undoes gamma and
    beta and uses the moments that the last `normalize` of this module found. They are no part of
    the model's state: call both in one function if that is transformed or jitted, or give
    `moments=jaxnorm.moments(x, axis=1)`. Where the last `normalize` was in a function transformed
    by NNX, `denormalize` outside is an error; of one in a function that keeps the model to itself
    (`jax.jit` of a model split before, `nnx.cached_partial`, NNX without graph updates) nothing is
    known here, and the moments of a call before that are used. The options that are not
    listed are those of `jaxnorm.linen.RevIN`.

    Attributes:
      num_features: number of variables, on the last axis.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.RevIN(1, epsilon=0.0)
      >>> y = norm.normalize(jnp.array([[[10.], [30.]]]))
      >>> norm.denormalize(y[:, -1:]).tolist()
      [[[30.0]]]

    Reference: Kim et al. 2022, Reversible Instance Normalization for Accurate Time-Series
    Forecasting against Distribution Shift (ICLR).
    """

    technique = RevINLayer

    time_axis: int = 1
    epsilon: float = 1e-5
    stop_gradient: bool = True

    def _make(self, **given: Any) -> None:
        """Makes gamma and beta."""
        super()._make(**given)
        self._last_call = _Call(False)

    @property
    def _last_call(self) -> _Call:
        return vars(self)["_last_call"]

    @_last_call.setter
    def _last_call(self, call: _Call) -> None:
        # NNX brings the attributes of a module in a transformed function back to the one outside:
        # what that found itself is then no longer the last.
        if call.traced:
            _FOUND.pop(self, None)
        vars(self)["_last_call"] = call

    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalizes `x`, as `normalize`."""
        return self.normalize(x, mask=mask)

    def normalize(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalizes `x` and keeps its moments."""
        x = _axes.check_input(x)
        y, moments = self.options.normalize(x, self._own(x), mask)
        # Not by `setattr`, which NNX refuses in a function that the module was not given to.
        object.__setattr__(self, "_last_call", _Call(_is_traced()))
        _FOUND[self] = moments
        return y

    def denormalize(self, y: ArrayLike, *, moments: Moments | None = None) -> jax.Array:
        """Brings `y` back to the scale of the series that was normalized last.

        The result has the moments' dtype or a wider one, unless `dtype` says otherwise.
        """
        y = _axes.check_input(y, "y")
        moments = _FOUND.get(self) if moments is None else moments
        return self.options.denormalize(y, self._own(y), moments)


@module
class InputNorm(Moded, LayerModule):
    """Normalization of raw inputs by the moments of all that were ever seen.

    In training the batch's moments are merged into those of the population, exactly, by their
    counts, in variables of the kind `nnx.BatchStat` (`population_mean`, `population_var`,
    `population_count`), and these normalize. In evaluation they stay. No gradient reaches them, and
    there are no parameters. The count is float32: it stops at 2^24 (16.8 million) single
    observations, or at 2^30 in batches of 64, and the moments with it. The options that are not
    listed are those of `jaxnorm.linen.InputNorm`.

    Attributes:
      num_features: sizes of the axes whose elements have moments of their own.
      use_running_average: evaluation or training, as `model.eval()` and `model.train()` set it;
        here or in the call, which wins.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.InputNorm(1, epsilon=0.0)
      >>> for x in (jnp.array([[10.]]), jnp.array([[20.], [30.], [40.]])):
      ...     y = norm(x)
      >>> norm.population_mean[...].tolist()
      [25.0]

    Reference: Chan, Golub & LeVeque 1979, Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances.
    """

    technique = PopulationLayer

    num_features: int | Sequence[int] = dataclasses.field(kw_only=False)
    use_running_average: bool | None = False
    feature_axes: Axes = -1
    epsilon: float = 1e-5
    clip: float | None = None
    axis_name: str | Sequence[str] | None = None
    axis_index_groups: AxisIndexGroups = None

    def _make(self, **given: Any) -> None:
        """Makes the moments of nothing."""
        del given
        self.num_features = check_sizes(self.num_features)
        make_state(self, self.options.first_state(self.sizes, self.state_dtype))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the features."""
        assert isinstance(self.num_features, tuple)
        return self.num_features

    def _population(self, x: jax.Array) -> dict[str, jax.Array]:
        """Returns the moments of all inputs, for inputs like `x`."""
        layer = self.options
        return state_of(self, layer.first_state(layer.sizes(x.shape), x.dtype), x.shape)

    def __call__(
        self,
        x: ArrayLike,
        *,
        use_running_average: bool | jax.Array | None = None,
        mask: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x`."""
        x = _axes.check_input(x)
        state = self._population(x)
        y, new = self.options.apply(x, state, use_running_average, self.context, mask)
        keep(self, new)
        return y

    def inverse(self, y: ArrayLike) -> jax.Array:
        """Brings `y` back to the scale of the raw inputs.

        The result has the moments' dtype or a wider one, unless `dtype` says otherwise.
        """
        y = _axes.check_input(y, "y")
        return self.options.inverse(y, self._population(y))
