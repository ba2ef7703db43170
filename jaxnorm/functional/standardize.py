"""Normalization by given moments: (x - mean) / sqrt(var + epsilon) * gamma + beta."""

from __future__ import annotations

import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.mesh import placed, spec_of
from jaxnorm._core.moments import Moments
from jaxnorm._core.standardize import expand_moment, standardize_full
from jaxnorm.functional._restored import as_moments


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
      gamma: scale; has the sizes of `x` along `feature_axes` in ascending order, or the rank of
        `x` (broadcast), or rank 0.
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
        placed(expand_moment(value, x.shape, axes, name), spec_of(x))
        for value, name in zip(
            as_moments(moments, "moments")[:2], ("moments.mean", "moments.var"), strict=True
        )
    )
    gamma = _axes.expand_parameter(gamma, x, feature_axes, kept, "gamma")
    beta = _axes.expand_parameter(beta, x, feature_axes, kept, "beta")
    mask = _axes.expand_mask(mask, x)
    epsilon, dtype = _axes.check_epsilon(epsilon), _axes.result_dtype(x, dtype)
    return standardize_full(x, mean, var, gamma, beta, mask, epsilon, float(gamma_offset), dtype)
