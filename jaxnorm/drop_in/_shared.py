"""What flax's fields and arguments mean, in the terms of jaxnorm's functions; without flax."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, DTypeLike
from jaxnorm._core.pool import compute_dtype
from jaxnorm._layers.batch import BatchNorm
from jaxnorm._layers.call import Call, Context, State, StateInit, placed_init
from jaxnorm.functional import feature, group

Parameter = jax.Array | None


class Norm(NamedTuple):
    """A call of a norm of flax's.

    Attributes:
      x: the input.
      scale: has the sizes of `x` along `features`, or their product.
      bias: like `scale`.
      features: the axes that scale and bias vary along, ascending; possibly none.
      mask: which elements count; of any dtype.
      dtype: of the result.
      module: the module, for its other fields.
    """

    x: jax.Array
    scale: Parameter
    bias: Parameter
    features: tuple[int, ...]
    mask: ArrayLike | None
    dtype: DTypeLike
    module: Any

    @property
    def options(self) -> dict[str, Any]:
        """The options that all functions take."""
        mapped = {name: getattr(self.module, name) for name in ("axis_name", "axis_index_groups")}
        return {"epsilon": self.module.epsilon, "dtype": self.dtype, **mapped}


class _Arrays(NamedTuple):
    """The arrays of a call, at one rank."""

    x: jax.Array
    gamma: Parameter
    beta: Parameter
    mask: Parameter


def axes_of(given: Any, rank: int) -> tuple[int, ...]:
    """Returns the axes in a field of flax's, ascending; there may be none, and some twice."""
    given = given if isinstance(given, Iterable) else (given,)
    return tuple(sorted({axis + rank if axis < 0 else axis for axis in given}))


def others(axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Returns the axes that are not in `axes`."""
    return _axes.other_axes(axes, rank)


def sizes_of(x: jax.Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the sizes of `x` along `axes`."""
    return tuple(x.shape[a] for a in axes)


def layer_norm(norm: Norm, axes: tuple[int, ...]) -> jax.Array:
    """Normalizes by mean and variance over `axes`."""
    return _normalize(feature.layer_norm, norm, axes)


def rms_norm(norm: Norm, axes: tuple[int, ...]) -> jax.Array:
    """Normalizes by the mean square over `axes`."""
    return _normalize(feature.rms_norm, norm, axes)


def instance_norm(norm: Norm, context: Context) -> jax.Array:
    """Normalizes by mean and variance over all axes but the first and those of the features."""
    if 0 in norm.features:
        raise ValueError(
            "The channel axes cannot include the leading dimension as this is assumed to be the "
            f"batch axis: feature_axes are {norm.features} of an input of shape {norm.x.shape}. "
            "LayerNorm takes any axes."
        )
    axes = others((0, *norm.features), norm.x.ndim)
    if norm.mask is None and norm.module.axis_name is None:
        size = math.prod(sizes_of(norm.x, axes))
        group.report_one_value(_report(context), size, norm.x.shape, axes)
    return layer_norm(norm, axes)


def group_norm(
    norm: Norm,
    reduction_axes: Any,
    num_groups: int | None,
    group_size: int | None,
    context: Context,
) -> jax.Array:
    """Normalizes by mean and variance over `reduction_axes`, of the last those of a group."""
    (x, gamma, beta, mask), rank = _arrays(norm), norm.x.ndim
    axes = axes_of(range(1, rank) if reduction_axes is None else reduction_axes, rank)
    if rank - 1 not in axes and reduction_axes is not None:
        raise ValueError(
            f"reduction_axes must contain the last axis, of the channels, got {reduction_axes!r} "
            f"for an input of shape {x.shape}."
        )
    if (num_groups is None) == (group_size is None):
        raise ValueError(
            f"give num_groups or group_size, and None for the other, got {num_groups!r} and "
            f"{group_size!r}."
        )
    given = {"axis": axes, "num_groups": num_groups, "group_size": group_size}
    return group.normalize_groups(
        _report(context), x, gamma, beta, mask, channel_axis=-1, **given, **norm.options
    )


def _report(context: Context) -> group.Report:
    """Returns what to do about pools of one value: a warning, as flax computes on."""

    def warn(message: str) -> None:
        warnings.warn(
            f"{context.label} got {message} The result is the bias, whatever the input.",
            UserWarning,
            stacklevel=2,
        )

    return group.ignore if context.initializing else warn


def _normalize(function: Callable[..., jax.Array], norm: Norm, axes: tuple[int, ...]) -> jax.Array:
    (x, gamma, beta, mask), axes = _pooled(_arrays(norm), axes)
    y = function(x, gamma, beta, axis=axes, mask=mask, **norm.options)
    return y.reshape(norm.x.shape)


def first_statistics(norm: Norm, dtype: DTypeLike) -> StateInit:
    """Returns what running statistics of `dtype` start at."""
    shape = sizes_of(norm.x, norm.features)
    first = {
        "mean": functools.partial(jnp.zeros, shape, dtype),
        "var": functools.partial(jnp.ones, shape, dtype),
    }
    (x, *_), axes = _pooled(_arrays(norm), others(norm.features, norm.x.ndim))
    spec = _layer_of(norm, axes)._state_spec(x)
    return placed_init(first, dict.fromkeys(first, spec))


def batch_norm(
    norm: Norm, state: State, evaluate: bool | jax.Array | None, context: Context
) -> tuple[jax.Array, State | None]:
    """Normalizes by statistics of the batch or running ones; returns those too, if they moved."""
    arrays, axes = _pooled(_arrays(norm), others(norm.features, norm.x.ndim))
    x, gamma, beta, mask = arrays
    layer = _layer_of(norm, axes)
    if jnp.iscomplexobj(x) and not jnp.iscomplexobj(state["mean"]):
        state = {**state, "mean": state["mean"].astype(compute_dtype(x.dtype))}
    # Flax takes integers as well.
    evaluate = bool(evaluate) if isinstance(evaluate, int) else evaluate
    decisions = layer._decide(evaluate, None, context)
    params = {"gamma": gamma, "beta": beta}
    y, new = layer._normalize(x, params, state, Call(context, mask, decisions))
    return y.reshape(norm.x.shape), new


class _FlaxBatchNorm(BatchNorm):
    """Batch norm as flax has it."""

    def _check_count(self, *_: Any, **__: Any) -> None:
        """Lets a statistic be of one value, which becomes beta."""


def _layer_of(norm: Norm, axes: tuple[int, ...]) -> BatchNorm:
    momentum = norm.module.momentum
    return _FlaxBatchNorm(**norm.options, momentum=momentum, reduction_axes=axes, unbiased=False)


def _arrays(norm: Norm) -> _Arrays:
    x, mask = norm.x, norm.mask
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        x = x.astype(jnp.float32)
    # Elsewhere float32 is enough, and `x` is kept as it is for the backward pass.
    if jnp.dtype(norm.dtype).itemsize > compute_dtype(x.dtype).itemsize:
        x = x.astype(norm.dtype)
    shape = tuple(s if a in norm.features else 1 for a, s in enumerate(x.shape))
    gamma, beta = (None if p is None else p.reshape(shape) for p in (norm.scale, norm.bias))
    return _Arrays(x, gamma, beta, None if mask is None else jnp.asarray(mask, bool))


def _pooled(arrays: _Arrays, axes: tuple[int, ...]) -> tuple[_Arrays, tuple[int, ...]]:
    """Returns arrays with an axis of size 1 to pool, so that each value is a pool of its own.

    Where there are axes to pool they are returned as they are.
    """
    if axes:
        return arrays, axes
    x, gamma, beta, mask = arrays
    x, gamma, beta = (None if a is None else jnp.expand_dims(a, 0) for a in (x, gamma, beta))
    assert x is not None
    return _Arrays(x, gamma, beta, mask), (0,)
