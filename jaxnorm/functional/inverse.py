"""The inverse of standardization."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.mesh import placed, spec_of, without_explicit_axes
from jaxnorm._core.moments import Moments
from jaxnorm._core.pool import compute_dtype
from jaxnorm._core.restored import as_moments
from jaxnorm._core.standardize import expand_moment


def unstandardize(
    y: ArrayLike,
    moments: Moments,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: Axes,
    feature_axes: Axes | None = None,
    epsilon: float,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Undoes `jaxnorm.standardize`: (y - beta) / gamma * sqrt(var + epsilon) + mean.

    To bring predictions back to the scale of the data that the moments were computed from.

    Args:
      y: floating-point or complex array of rank 1 or more.
      moments: the `Moments` that `y` was standardized by, or a `(mean, var, count)` tuple.
      gamma: the scale it was given, without zeros.
      beta: the offset it was given.
      axis: the axes that the moments were reduced over.
      feature_axes: the axes that gamma and beta vary along. Default: all that are not in `axis`
        (the last axis for a gamma or beta of rank 1).
      epsilon: as in `jaxnorm.standardize`.
      dtype: of the result; default: that of `y`, or of the moments where theirs is wider: what a
        network makes in bfloat16 comes back in float32, since bfloat16 would round what lies far
        from 0 to its own coarse steps.

    Returns:
      The array before standardization, in the shape of `y`.

    Raises:
      TypeError: `y` or `dtype` is of integers.
      ValueError: an axis is out of range or given twice, mean, variance, gamma or beta does not
        fit, or epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[1., 3.], [5., 11.]])
      >>> m = jaxnorm.moments(x, axis=0)
      >>> y = jaxnorm.standardize(x, m, axis=0, epsilon=0.0)
      >>> jaxnorm.unstandardize(y, m, axis=0, epsilon=0.0).tolist()
      [[1.0, 3.0], [5.0, 11.0]]

    Reference: Kim et al. 2022, Reversible Instance Normalization (ICLR), the second half.
    """
    y = _axes.check_input(y, "y")
    axes = _axes.canonical_axes(axis, y.shape)
    kept = _axes.other_axes(axes, y.ndim)
    mean, var = (
        placed(expand_moment(value, y.shape, axes, name), spec_of(y))
        for value, name in zip(
            as_moments(moments, "moments")[:2], ("moments.mean", "moments.var"), strict=True
        )
    )
    gamma = _axes.expand_parameter(gamma, y, feature_axes, kept, "gamma")
    beta = _axes.expand_parameter(beta, y, feature_axes, kept, "beta")
    # However strict the caller wants promotion to be.
    with jax.numpy_dtype_promotion("standard"):
        wide = jnp.promote_types(jnp.promote_types(y.dtype, mean.dtype), var.dtype)
    dtype = _axes.result_dtype(y, wide if dtype is None else dtype)
    epsilon, wide = _axes.check_epsilon(epsilon), compute_dtype(wide)

    def compute(y, mean, var, gamma, beta):
        x = y.astype(wide)
        if beta is not None:
            x = x - beta.astype(x.dtype)
        if gamma is not None:
            x = x / gamma.astype(x.dtype)
        sigma = jnp.sqrt(var.astype(x.real.dtype) + epsilon)
        return (x * sigma.astype(x.dtype) + mean.astype(x.dtype)).astype(dtype)

    return without_explicit_axes(compute, spec_of(y))(y, mean, var, gamma, beta)
