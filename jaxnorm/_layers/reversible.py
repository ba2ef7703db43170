"""Normalization of each series by its own statistics, with a way back, as a layer."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike
from jaxnorm._core.moments import Moments, moments
from jaxnorm._core.standardize import standardize
from jaxnorm._layers.layer import AffineLayer, Own
from jaxnorm.functional.inverse import unstandardize

_NEEDED = (
    "RevIN.denormalize needs the moments of a series: call normalize before it, in the same call "
    "of the model, or pass moments=jaxnorm.moments(x, axis=time_axis)."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RevINLayer(AffineLayer):
    """The options of `jaxnorm.linen.RevIN`."""

    time_axis: int
    epsilon: float
    stop_gradient: bool

    def features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (len(shape) - 1,)

    def normalize(
        self, x: jax.Array, own: Own, mask: ArrayLike | None
    ) -> tuple[jax.Array, Moments]:
        """Returns `x`, normalized over time, and its moments.

        Less the mean, then less the mean of the rest: a mean that is large beside the deviation is
        itself rounded.
        """
        time = self._time(x)
        dtype = _axes.result_dtype(x, self.dtype)
        given = moments(x, time, mask=mask)
        center = jnp.expand_dims(given.mean, time)
        if mask is not None:
            x = jnp.where(_axes.expand_mask(mask, x), x, 0)
        rest = x.astype(center.dtype) - jax.lax.stop_gradient(center)
        small = moments(rest, time, mask=mask)
        if self.stop_gradient:
            small, given = jax.lax.stop_gradient((small, given))
        options = {"axis": time, "feature_axes": -1, "epsilon": self.epsilon, "dtype": dtype}
        return standardize(rest, small, **own, mask=mask, **options), given

    def denormalize(self, y: jax.Array, own: Own, given: Moments | None) -> jax.Array:
        """Returns `y` at the scale of the series whose moments are `given`."""
        if given is None:
            raise ValueError(_NEEDED)
        options = {"feature_axes": -1, "epsilon": self.epsilon, "dtype": self.dtype}
        try:
            return unstandardize(y, given, **own, axis=self._time(y), **options)
        except jax.errors.UnexpectedTracerError as error:
            # What was found in a function that JAX traced is gone with it.
            raise ValueError(_NEEDED) from error

    def _time(self, x: jax.Array) -> int:
        return _axes.canonical_axis(self.time_axis, x.shape, "time_axis")
