"""Running moments of a whole population of inputs, merged exactly."""

from __future__ import annotations

import dataclasses
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
from jaxnorm._layers.call import Context, Decisions, State, StateInit
from jaxnorm._layers.layer import Layer
from jaxnorm.functional.inverse import unstandardize
from jaxnorm.functional.merge import merge_moments
from jaxnorm.functional.moments import moments
from jaxnorm.functional.standardize import standardize

# Not "mean" and "var": what moves those of batch norms would take elements for updates.
NAMES = ("population_mean", "population_var", "population_count")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PopulationLayer(Layer):
    """The options of `jaxnorm.linen.InputNorm`."""

    epsilon: float
    dtype: DTypeLike | None
    use_running_average: bool | jax.Array | None
    feature_axes: Axes
    clip: float | None
    axis_name: str | Sequence[str] | None
    axis_index_groups: AxisIndexGroups

    def features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.canonical_axes(self.feature_axes, shape, "feature_axes")

    def first_state(self, sizes: tuple[int, ...], dtype: DTypeLike) -> StateInit:
        """Returns the moments of nothing, for features of `sizes`: mean 0, variance 1, count 0."""
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        mean, real = compute_dtype(dtype), real_dtype(dtype)
        makers = (
            functools.partial(jnp.zeros, sizes, mean),
            functools.partial(jnp.ones, sizes, real),
            functools.partial(jnp.zeros, sizes, real),
        )
        return dict(zip(NAMES, makers, strict=True))

    def state_spec(self, x: jax.Array) -> tuple[Any, ...]:
        """Returns how the moments lie on an explicit mesh: as the features do."""
        given = spec_of(x)
        return tuple(given[a] for a in self.features_of(x.shape))

    def apply(
        self,
        x: jax.Array,
        state: State,
        evaluate: Any,
        context: Context,
        mask: ArrayLike | None,
    ) -> tuple[jax.Array, State | None]:
        """Normalizes by the moments of all seen so far, this batch included unless it evaluates."""
        evaluate = self.use_running_average if evaluate is None else evaluate
        decisions = Decisions.make(evaluate, None, "batch", "running", None, context.label)
        tracks = decisions.tracks(context)
        axes, spec = self._axes_of(x), self.state_spec(x)
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

    def inverse(self, y: jax.Array, state: State) -> jax.Array:
        """Undoes the normalization, but for the clipping."""
        options = {"axis": self._axes_of(y), "epsilon": self.epsilon, "dtype": self.dtype}
        return unstandardize(y, _moments_of(state), **options)

    def _axes_of(self, x: jax.Array) -> tuple[int, ...]:
        return _axes.other_axes(self.features_of(x.shape), x.ndim)


def _moments_of(state: State) -> Moments:
    return Moments(*(state[name] for name in NAMES))
