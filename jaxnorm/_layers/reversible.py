"""Normalization of each series by its own statistics, with a way back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.nn import initializers

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike
from jaxnorm._core.moments import Moments
from jaxnorm._layers.call import Params
from jaxnorm._layers.layer import AffineLayer, Initializer
from jaxnorm._layers.options import options
from jaxnorm.functional.inverse import unstandardize
from jaxnorm.functional.moments import moments
from jaxnorm.functional.standardize import standardize

_NEEDED = (
    "RevIN.denormalize needs the moments of a series: call normalize before it, in the same call "
    "of the model, or pass moments=jaxnorm.moments(x, axis=time_axis)."
)


@options
class RevIN(AffineLayer):
    """Reversible instance normalization of time series: each by its own statistics, and back.

    Reference: Kim et al. 2022, Reversible Instance Normalization for Accurate Time-Series
    Forecasting against Distribution Shift (ICLR).
    """

    time_axis: int = 1
    """the axis of the times; variables are on the last."""
    epsilon: float = 1e-5
    """added to the variance."""
    stop_gradient: bool = True
    """whether no gradient goes through the statistics, as in the authors' code."""
    gamma_init: Initializer = initializers.ones
    """initializer of gamma, which must not start at zero."""

    def _remember(self, found: Moments) -> None:
        """Keeps the moments of the series for `denormalize`. Modules have it."""
        raise NotImplementedError

    def _recall(self) -> Moments | None:
        """Returns the moments that were kept last, if they are still there. Modules have it."""
        raise NotImplementedError

    def _features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (len(shape) - 1,)

    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalizes `x`, as `normalize`."""
        return self.normalize(x, mask=mask)

    def normalize(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalizes `x` and keeps its moments."""
        x = _axes.check_input(x)
        y, found = self._standardize(x, self._params(x), mask)
        self._remember(found)
        return y

    def denormalize(self, y: ArrayLike, *, moments: Moments | None = None) -> jax.Array:
        """Brings `y` back to the scale of the series that was normalized last.

        The result has the moments' dtype or a wider one, unless `dtype` says otherwise.
        """
        y = _axes.check_input(y, "y")
        params, used = self._params(y), self._recall() if moments is None else moments
        if used is None:
            raise ValueError(_NEEDED)
        arguments = {"feature_axes": -1, "epsilon": self.epsilon, "dtype": self.dtype}
        try:
            return unstandardize(y, used, **params, axis=self._time(y), **arguments)
        except jax.errors.UnexpectedTracerError as error:
            # What was found in a function that JAX traced is gone with it.
            raise ValueError(_NEEDED) from error

    def _standardize(
        self, x: jax.Array, params: Params, mask: ArrayLike | None
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
        return standardize(rest, small, **params, mask=mask, **options), given

    def _time(self, x: jax.Array) -> int:
        return _axes.canonical_axis(self.time_axis, x.shape, "time_axis")
