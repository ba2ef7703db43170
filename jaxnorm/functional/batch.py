"""Batch normalization."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.formula import Options
from jaxnorm._core.moments import Moments
from jaxnorm._core.normalize import normalize
from jaxnorm._core.pool import pool_of


def batch_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: Axes,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-5,
    mask: ArrayLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: AxisIndexGroups = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, Moments]:
    """Normalizes `x` by the batch's own mean and variance, as in training.

    y = (x - mean) / sqrt(var + epsilon) * gamma + beta, with the mean and the biased variance
    over `axis`. `axis=0` after a dense layer, `(0, 1, 2)` after a convolution on [B, H, W, C]; any
    other choice is the same call. To predict, use `jaxnorm.standardize` with running moments.

    Args:
      x: floating-point or complex array of rank 1 or more.
      gamma: scale; has the sizes of `x` along `feature_axes` in ascending order, or the rank of
        `x` (broadcast), or rank 0.
      beta: offset; like `gamma`.
      axis: the axes pooled, in any order and sign.
      feature_axes: the axes that gamma and beta vary along. Default: all that are not in `axis`
        (the last axis for a gamma or beta of rank 1).
      epsilon: added to the variance.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) to pool over as well.
      axis_index_groups: groups of indices of `axis_name` that pool together.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, in the shape of `x`, and the batch's `Moments` in float32 or
      wider, for `jaxnorm.update_moments`.

    Raises:
      TypeError: `x` or `dtype` is of integers, or `mask` is not boolean.
      ValueError: an axis is out of range or given twice, gamma, beta or mask does not fit, or
        epsilon is negative.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[1., 10.], [3., 30.]])
      >>> y, m = jaxnorm.batch_norm(x, axis=0, epsilon=0.0)
      >>> y.tolist(), m.mean.tolist(), m.var.tolist()
      ([[-1.0, -1.0], [1.0, 1.0]], [2.0, 20.0], [1.0, 100.0])

    Reference: Ioffe & Szegedy 2015, Batch Normalization, arXiv:1502.03167.
    """
    x = _axes.check_input(x)
    axes = _axes.canonical_axes(axis, x.shape)
    kept = _axes.other_axes(axes, x.ndim)
    pool = pool_of(axes, axis_name, axis_index_groups)
    options = Options(pool, _axes.check_epsilon(epsilon), _axes.result_dtype(x, dtype))
    if gamma is not None:
        gamma = _axes.expand_parameter(gamma, x, feature_axes, kept, "gamma")
    if beta is not None:
        beta = _axes.expand_parameter(beta, x, feature_axes, kept, "beta")
    if mask is not None:
        mask = _axes.expand_mask(mask, x)
    return normalize(x, gamma, beta, mask, options)
