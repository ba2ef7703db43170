"""Cumulative norm: the moments of a stream so far, if it comes piece by piece."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.moments import Moments
from jaxnorm._core.pool import compute_dtype, real_dtype
from jaxnorm._layers.call import Call, Params, State, StateInit
from jaxnorm._layers.layer import AffineLayer
from jaxnorm._layers.options import options
from jaxnorm.functional import sequence


@options
class CumulativeNorm(AffineLayer):
    """Normalization by all steps up to each; see `jaxnorm.cumulative_norm`.

    Reference: Luo & Mesgarani 2018, Conv-TasNet, arXiv:1809.07454.
    """

    epsilon: float = 1e-6
    """added to the variances."""
    reduction_axes: Axes = -1
    """the axes pooled at each time."""
    feature_axes: Axes = -1
    """the axes that gamma and beta vary along."""
    time_axis: int = 1
    """the axis of the times."""
    decode: bool = False
    """whether the sequence comes piece by piece."""

    def _features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.canonical_axes(self.feature_axes, shape, "feature_axes")

    def _init_stream(self, shape: tuple[int, ...], dtype: DTypeLike) -> StateInit:
        """Returns the moments of nothing for inputs of shape `shape`; none of a whole sequence."""
        if not self.decode:
            return {}
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        pooled = (*self._pooled(shape), self._time(shape))
        kept = tuple(size for a, size in enumerate(shape) if a not in pooled)
        kinds = zip(Moments._fields, (compute_dtype(dtype), *(real_dtype(dtype),) * 2), strict=True)
        return {name: functools.partial(jnp.zeros, kept, kind) for name, kind in kinds}

    def _init_state_of(self, sizes: tuple[int, ...], shape: tuple[int, ...] | None) -> StateInit:
        return {} if shape is None else self._init_stream(shape, self._state_dtype)

    def __call__(
        self,
        x: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x`; a gamma or beta given here replaces the module's own."""
        x = _axes.check_input(x)
        params = self._params(x, gamma=gamma, beta=beta)
        state = self._read_state(self._init_stream(x.shape, x.dtype), x)
        y, new = self._normalize(x, params, state, Call(self._context(), mask))
        self._write_state(new)
        return y

    def _normalize(
        self, x: jax.Array, params: Params, state: State, call: Call
    ) -> tuple[jax.Array, State | None]:
        """Normalizes `x`, after the stream that `state` is of; returns the new state too."""
        axes, context = self._features_of(x.shape), call.context
        affine = {k: _axes.expand_parameter(v, x, axes, axes, k) for k, v in params.items()}
        y, moments = sequence.cumulative_norm(
            x,
            **affine,
            axis=self._pooled(x.shape),
            time_axis=self._time(x.shape),
            initial=Moments(*(state[name] for name in Moments._fields)) if self.decode else None,
            epsilon=self.epsilon,
            mask=call.mask,
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
