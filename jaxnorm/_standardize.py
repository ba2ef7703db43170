"""The differentiable core: (x - mean) * rsqrt(var + epsilon) * gamma + beta."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import _axes, _moments
from jaxnorm._axes import ArrayLike, Axes, DTypeLike
from jaxnorm._moments import Moments


class Options(NamedTuple):
    """What `normalize` needs to know at trace time."""

    axes: tuple[int, ...]
    epsilon: float
    gamma_offset: float = 0.0
    center: bool = True
    cast_before_gamma: bool = False
    split: tuple[int, int] | None = None  # (axis, parts): divided first, as for groups of channels
    names: tuple[str, ...] = ()
    groups: tuple[tuple[int, ...], ...] | None = None


def inverse_root(var: jax.Array, epsilon: float) -> jax.Array:
    """Returns 1 / sqrt(var + epsilon), and 0 with gradient 0 where that is infinite."""
    radicand = var + epsilon
    if epsilon > 0:
        return lax.rsqrt(radicand)
    positive = radicand > 0
    return jnp.where(positive, lax.rsqrt(jnp.where(positive, radicand, 1)), 0)


def apply_affine(y, gamma, beta, gamma_offset: float, cast_before_gamma=None) -> jax.Array:
    """Returns y * (gamma + gamma_offset) + beta, in the dtype of `y`.

    `cast_before_gamma` is a narrower dtype that `y` is rounded to before gamma is applied.
    """
    if cast_before_gamma is not None and cast_before_gamma != y.dtype:
        # A cast there and back would be removed by XLA, which may keep excess precision.
        info = jnp.finfo(cast_before_gamma)
        y = lax.reduce_precision(y, info.nexp, info.nmant)
    if gamma is not None:
        gamma = gamma.astype(y.dtype)
        y = y * (gamma + gamma_offset if gamma_offset else gamma)
    elif gamma_offset:
        y = y * gamma_offset
    if beta is not None:
        y = y + beta.astype(y.dtype)
    return y


@functools.partial(jax.jit, static_argnums=(4, 5), inline=True)
def normalize(x, gamma, beta, mask, options: Options, dtype) -> tuple[jax.Array, Moments]:
    """Normalizes `x` by its own statistics over `options.axes`, pooled over `options.names`.

    gamma, beta and mask have the rank of `x`; `options.axes` are those after the split. Only `x`,
    the parameters and the per-group statistics are kept for the backward pass; x_hat is computed
    again there.

    Returns:
      The result in `dtype` and the moments, the reduced axes removed. Without `options.center`
      the moments have mean 0, and var is the mean square.
    """

    @functools.partial(jax.checkpoint, policy=_moments.save_only_statistics)
    def compute(x, gamma, beta):
        wide = split_axis(x, x.shape, options.split).astype(_moments.compute_dtype(x.dtype))
        if mask is not None:
            # Zeros in masked slots keep NaN there out of every product below.
            wide = jnp.where(mask, wide, 0)
        if options.center:
            stats = _moments.centered_moments(
                wide, mask, options.axes, options.names, options.groups
            )
            wide = (wide - stats.shift) - stats.offset
        else:
            stats = _mean_square(wide, mask, options.axes)
        y = wide * inverse_root(stats.var, options.epsilon).astype(wide.dtype)
        early = x.dtype if options.cast_before_gamma else None
        y = apply_affine(y, gamma, beta, options.gamma_offset, early)
        if mask is not None:
            y = jnp.where(mask, y, 0)
        return y.reshape(x.shape).astype(dtype), stats.to_moments(options.axes)

    gamma, beta, mask = (split_axis(v, x.shape, options.split) for v in (gamma, beta, mask))
    return compute(x, gamma, beta)


def split_axis(value: Any, shape: tuple[int, ...], split: tuple[int, int] | None) -> Any:
    """Divides an axis of `value`, which broadcasts to `shape`, into (parts, size of a part)."""
    if value is None or split is None:
        return value
    axis, parts = split
    size = value.shape[axis]
    pair = (1, 1) if size == 1 and shape[axis] != 1 else (parts, size // parts)
    return value.reshape(value.shape[:axis] + pair + value.shape[axis + 1 :])


def _mean_square(x, mask, axes) -> _moments.Centered:
    total = _moments.pooled_sum(_moments.abs2(x), axes)
    if mask is None:
        size = x.size // max(total.size, 1)
        count = jnp.asarray(size, total.dtype)
    else:
        kept = jnp.broadcast_to(mask, x.shape).astype(total.dtype)
        count = _moments.pooled_sum(kept, axes)
    mean_square = _moments.save(total / jnp.maximum(count, 1))
    zero = jnp.zeros_like(mean_square)
    return _moments.Centered(zero, zero, mean_square, count)


def standardize(
    x: ArrayLike,
    moments: Moments,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: Axes,
    feature_axes: Axes | None = None,
    epsilon: float,
    gamma_offset: float = 0.0,
    mask: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Normalizes `x` by given moments: (x - mean) / sqrt(var + epsilon) * gamma + beta.

    The moments can be any: of this batch, of another, running ones, a mixture.

    Args:
      x: floating-point or complex array of rank 1 or more.
      moments: `Moments`, or a `(mean, var, count)` tuple. Mean and variance have the shape of `x`
        without the axes in `axis`, or the rank of `x` (broadcast). The count is not used.
      gamma: scale; has the shape of `x` along `feature_axes`, or the rank of `x` (broadcast).
      beta: offset; like `gamma`.
      axis: the axes that the moments were reduced over.
      feature_axes: the axes that gamma and beta vary along. Default: all that are not in `axis`
        (the last axis for a gamma or beta of rank 1).
      epsilon: added to the variance.
      gamma_offset: added to gamma in float32 or wider.
      mask: boolean, broadcasts against `x`; elements where it is False give 0.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, in the shape of `x`.

    Raises:
      TypeError: `x` or `dtype` is of integers.
      ValueError: an axis is out of range or given twice, mean, variance, gamma or beta does not
        fit, or epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[1., 3.], [4., 8.]])
      >>> m = jaxnorm.moments(x, axis=1)
      >>> jaxnorm.standardize(x, m, axis=1, epsilon=0.0).tolist()
      [[-1.0, 1.0], [-1.0, 1.0]]
    """
    x = _axes.check_input(x)
    axes = _axes.canonical_axes(axis, x.shape)
    kept = _axes.other_axes(axes, x.ndim)
    mean, var = (
        _expand_moment(value, x.shape, axes, name)
        for value, name in ((moments[0], "moments.mean"), (moments[1], "moments.var"))
    )
    if gamma is not None:
        gamma = _axes.expand_parameter(gamma, x.shape, feature_axes, kept, "gamma")
    if beta is not None:
        beta = _axes.expand_parameter(beta, x.shape, feature_axes, kept, "beta")
    if mask is not None:
        mask = _axes.expand_mask(mask, x.shape)
    epsilon, dtype = _axes.check_epsilon(epsilon), _axes.result_dtype(x, dtype)
    return standardize_full(x, mean, var, gamma, beta, mask, epsilon, float(gamma_offset), dtype)


def _expand_moment(value, shape, axes, name) -> jax.Array:
    value = jnp.asarray(value)
    kept = tuple(s for a, s in enumerate(shape) if a not in axes)
    if value.shape == kept:
        return jnp.expand_dims(value, tuple(sorted(axes)))
    if value.ndim == len(shape) and all(
        v in (1, s) for v, s in zip(value.shape, shape, strict=True)
    ):
        return value
    raise ValueError(
        f"{name} of shape {value.shape} does not fit an input of shape {shape} reduced over axes "
        f"{axes}: expected {kept}, or rank {len(shape)} with every size 1 or the input's."
    )


@functools.partial(jax.jit, static_argnums=(6, 7, 8), inline=True)
def standardize_full(x, mean, var, gamma, beta, mask, epsilon, gamma_offset, dtype) -> jax.Array:
    """`standardize` with moments, parameters and mask of the rank of `x`."""

    @functools.partial(jax.checkpoint, policy=_moments.save_only_statistics)
    def compute(x, mean, var, gamma, beta):
        wide = _moments.compute_dtype(x.dtype)
        mean, var = mean.astype(wide), var.astype(jnp.finfo(wide).dtype)
        y = x.astype(wide)
        if mask is not None:
            y = jnp.where(mask, y, 0)
        y = (y - mean) * inverse_root(var, epsilon).astype(y.dtype)
        y = apply_affine(y, gamma, beta, gamma_offset)
        if mask is not None:
            y = jnp.where(mask, y, 0)
        return y.astype(dtype)

    return compute(x, mean, var, gamma, beta)
