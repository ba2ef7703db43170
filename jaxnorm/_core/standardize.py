"""Normalization by given moments: (x - mean) / sqrt(var + epsilon) * gamma + beta."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.formula import apply_affine, full_gamma, inverse_root
from jaxnorm._core.mesh import placed, spec_of, without_explicit_axes
from jaxnorm._core.moments import Moments
from jaxnorm._core.pool import compute_dtype, keep, real_dtype, widen
from jaxnorm._core.residuals import recomputed
from jaxnorm._core.restored import as_moments


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


def expand_moment(value, shape, axes, name) -> jax.Array:
    value = jnp.asarray(value)
    kept = tuple(s for a, s in enumerate(shape) if a not in axes)
    if value.shape == kept:
        return jnp.expand_dims(value, tuple(axes))
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
    wide = compute_dtype(x.dtype)
    scales_as_var = gamma is None or np.broadcast_shapes(var.shape, gamma.shape) == var.shape

    def compute(x, mean, var, gamma, beta, mask):
        scale = inverse_root(var.astype(real_dtype(x.dtype)), epsilon).astype(wide)
        if scales_as_var and (gamma is not None or gamma_offset):
            scale = scale * full_gamma(gamma, gamma_offset, wide)
        y = (widen(x, mask) - mean.astype(wide)) * scale
        left = (None, 0.0) if scales_as_var else (gamma, gamma_offset)
        y = apply_affine(y, left[0], beta, left[1])
        return keep(mask, y).astype(dtype)

    # Where the one product over the array is of the input's own size, nothing else is kept.
    if not (scales_as_var and x.dtype == wide):
        compute = recomputed(compute)
    return without_explicit_axes(compute, spec_of(x))(x, mean, var, gamma, beta, mask)
