"""Running moments of a whole population of inputs, merged exactly."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.mesh import placed, spec_of
from jaxnorm._core.moments import Moments
from jaxnorm._core.pool import compute_dtype, real_dtype
from jaxnorm._layers.call import Call, Decisions, Params, State, StateInit, placed_init
from jaxnorm._layers.layer import Layer
from jaxnorm._layers.options import options
from jaxnorm.functional.inverse import unstandardize
from jaxnorm.functional.merge import merge_moments
from jaxnorm.functional.moments import moments
from jaxnorm.functional.standardize import standardize

# Not "mean" and "var": what moves those of batch norms would take elements for updates.
NAMES = ("population_mean", "population_var", "population_count")


@options
class InputNorm(Layer):
    """Normalization of raw inputs by the moments of all that were ever seen.

    Reference: Chan, Golub & LeVeque 1979, Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances.
    """

    use_running_average: bool | None = None
    """evaluation or training; here or in the call, which wins."""
    feature_axes: Axes = -1
    """the axes whose elements have moments of their own."""
    epsilon: float = 1e-5
    """added to the variance."""
    clip: float | None = None
    """limit of the absolute value of the result."""
    axis_name: str | Sequence[str] | None = None
    """mapped axes to pool over as well, as for environments on several devices."""
    axis_index_groups: AxisIndexGroups = None
    """groups of indices of `axis_name` that pool together."""
    dtype: DTypeLike | None = None
    """dtype of the result; default: that of the input."""

    def __call__(
        self,
        x: ArrayLike,
        *,
        use_running_average: bool | jax.Array | None = None,
        mask: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x`."""
        x = _axes.check_input(x)
        state, context = self._read_state(self._init_state(x), x), self._context()
        evaluate = self.use_running_average if use_running_average is None else use_running_average
        call = Call(context, mask, Decisions.of_mode(evaluate, context))
        y, new = self._normalize(x, {}, state, call)
        self._write_state(new)
        return y

    def inverse(self, y: ArrayLike) -> jax.Array:
        """Brings `y` back to the scale of the raw inputs.

        The result has the moments' dtype or a wider one, unless `dtype` says otherwise.
        """
        y = _axes.check_input(y, "y")
        state = self._read_state(self._init_state(y), y)
        arguments = {"axis": self._axes_of(y), "epsilon": self.epsilon, "dtype": self.dtype}
        return unstandardize(y, _moments_of(state), **arguments)

    def _features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.canonical_axes(self.feature_axes, shape, "feature_axes")

    def _init_state(self, x: jax.Array) -> StateInit:
        init = _init_population(self._sizes_of(x.shape), x.dtype)
        return placed_init(init, dict.fromkeys(init, self._state_spec(x)))

    def _init_state_of(self, sizes: tuple[int, ...], shape: tuple[int, ...] | None) -> StateInit:
        return _init_population(sizes, jnp.float32 if self.dtype is None else self.dtype)

    def _state_spec(self, x: jax.Array) -> tuple[Any, ...]:
        """Returns how the moments lie on an explicit mesh: as the features do."""
        spec = spec_of(x)
        return tuple(spec[a] for a in self._features_of(x.shape))

    def _normalize(
        self, x: jax.Array, params: Params, state: State, call: Call
    ) -> tuple[jax.Array, State | None]:
        """Normalizes by the moments of all seen so far, this batch included unless it evaluates."""
        context, mask, decisions, *_ = call
        tracks = decisions.tracks(context)
        axes, spec = self._axes_of(x), self._state_spec(x)
        population = Moments(*(placed(value, spec) for value in _moments_of(state)))
        new = None
        if tracks:
            mapped = {"axis_name": self.axis_name, "axis_index_groups": self.axis_index_groups}
            batch = jax.lax.stop_gradient(moments(x, axes, mask=mask, **mapped))
            count = batch.count
            if isinstance(decisions.update, jax.Array):
                count = jnp.where(decisions.update, count, 0)
            merged = merge_moments(population, batch._replace(count=count))
            # Moments of nothing have variance 0: until there is anything, nothing changes.
            some = merged.count > 0
            population = Moments(
                jnp.where(some, merged.mean, population.mean),
                jnp.where(some, merged.var, population.var),
                jnp.broadcast_to(merged.count, population.count.shape),
            )
            pairs = zip(NAMES, population, strict=True)
            new = {name: value.astype(state[name].dtype) for name, value in pairs}
        options = {"axis": axes, "epsilon": self.epsilon, "dtype": self.dtype}
        y = standardize(x, population, **options, mask=mask)
        if self.clip is not None:
            y = jnp.clip(y, -self.clip, self.clip)
        return y, new

    def _axes_of(self, x: jax.Array) -> tuple[int, ...]:
        return _axes.other_axes(self._features_of(x.shape), x.ndim)


def _init_population(sizes: tuple[int, ...], dtype: DTypeLike) -> StateInit:
    """Returns the moments of nothing, for features of `sizes`: mean 0, variance 1, count 0."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    mean, real = compute_dtype(dtype), real_dtype(dtype)
    makers = (
        functools.partial(jnp.zeros, sizes, mean),
        functools.partial(jnp.ones, sizes, real),
        functools.partial(jnp.zeros, sizes, real),
    )
    return dict(zip(NAMES, makers, strict=True))


def _moments_of(state: State) -> Moments:
    return Moments(*(state[name] for name in NAMES))
