"""Cumulative norm as a layer: the moments of a stream so far, if it comes piece by piece."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.moments import Moments
from jaxnorm._core.pool import compute_dtype, real_dtype
from jaxnorm._layers.call import Context, State, StateInit
from jaxnorm._layers.layer import AffineLayer, Own
from jaxnorm.functional import sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class CumulativeNormLayer(AffineLayer):
    """The options of `jaxnorm.linen.CumulativeNorm`."""

    epsilon: float
    reduction_axes: Axes
    feature_axes: Axes
    time_axis: int
    decode: bool

    def features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.canonical_axes(self.feature_axes, shape, "feature_axes")

    def first_state(self, shape: tuple[int, ...], dtype: DTypeLike) -> StateInit:
        """Returns the moments of nothing for inputs of shape `shape`; none of a whole sequence."""
        if not self.decode:
            return {}
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        pooled = (*self._pooled(shape), self._time(shape))
        kept = tuple(size for a, size in enumerate(shape) if a not in pooled)
        kinds = zip(Moments._fields, (compute_dtype(dtype), *(real_dtype(dtype),) * 2), strict=True)
        return {name: functools.partial(jnp.zeros, kept, kind) for name, kind in kinds}

    def apply(
        self, x: jax.Array, own: Own, state: State, context: Context, mask: ArrayLike | None
    ) -> tuple[jax.Array, State | None]:
        """Normalizes `x`, after the stream that `state` is of; returns the new state too."""
        features = self.features_of(x.shape)
        own = {k: _axes.expand_parameter(v, x, features, features, k) for k, v in own.items()}
        y, moments = sequence.cumulative_norm(
            x,
            **own,
            axis=self._pooled(x.shape),
            time_axis=self._time(x.shape),
            initial=Moments(*(state[name] for name in Moments._fields)) if self.decode else None,
            epsilon=self.epsilon,
            mask=mask,
            dtype=self.dtype,
        )
        if not self.decode or context.initializing:
            return y, None
        if not context.mutable:
            raise ValueError(
                f"{context.label} decodes: it keeps the moments of the stream in the collection "
                'cache, which is not mutable; call apply(..., mutable=["cache"]) and keep the '
                "updates it returns."
            )
        return y, {k: value.astype(state[k].dtype) for k, value in moments._asdict().items()}

    def _pooled(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.canonical_axes(self.reduction_axes, shape, "reduction_axes", allow_empty=True)

    def _time(self, shape: tuple[int, ...]) -> int:
        return _axes.canonical_axis(self.time_axis, shape, "time_axis")
