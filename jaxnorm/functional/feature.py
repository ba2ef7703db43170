"""Normalizations of each example over its own features: layer norm and RMS norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.flags import check_flag
from jaxnorm._core.formula import Options
from jaxnorm._core.normalize import normalize
from jaxnorm._core.pool import pool_of


def layer_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-6,
    mask: ArrayLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: AxisIndexGroups = None,
    gamma_offset: float = 0.0,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Normalizes each example by the mean and the variance of its own features.

    y = (x - mean) / sqrt(var + epsilon) * (gamma + gamma_offset) + beta, with the mean and the
    biased variance over `axis`; the same in training and at test time.

    Args:
      x: floating-point or complex array of rank 1 or more.
      gamma: scale; has the sizes of `x` along `feature_axes` in ascending order, or the rank of
        `x` (broadcast), or rank 0.
      beta: offset; like `gamma`.
      axis: the axes pooled, in any order and sign.
      feature_axes: the axes that gamma and beta vary along. Default: those in `axis` (the last
        axis for a gamma or beta of rank 1 where `axis` has several).
      epsilon: added to the variance.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      gamma_offset: added to gamma in float32 or wider; 1.0 for a gamma that starts at zero.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) to pool over as well, as for
        features that are divided over devices.
      axis_index_groups: groups of indices of `axis_name` that pool together.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, in the shape of `x`.

    Raises:
      TypeError: `x` or `dtype` is of integers, or `mask` is not boolean.
      ValueError: an axis is out of range or given twice, gamma, beta or mask does not fit, or
        epsilon is negative.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> jaxnorm.layer_norm(jnp.array([1., 3., 5., 7.]), epsilon=4.0).tolist()
      [-1.0, -0.3333333432674408, 0.3333333432674408, 1.0]

    Reference: Ba, Kiros & Hinton 2016, Layer Normalization, arXiv:1607.06450. The standard
    deviation is the root of the mean squared deviation: an often copied formula that divides
    the root of the sum by the count has its root in the wrong place.
    """
    x = _axes.check_input(x)
    return normalize_features(
        x,
        gamma,
        beta,
        _axes.canonical_axes(axis, x.shape),
        feature_axes,
        epsilon,
        mask,
        (axis_name, axis_index_groups),
        dtype,
        gamma_offset=float(gamma_offset),
    )


def rms_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-6,
    mask: ArrayLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: AxisIndexGroups = None,
    gamma_offset: float = 0.0,
    cast_before_gamma: bool = False,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Divides each example by the root mean square of its features.

    y = x / sqrt(mean(|x|^2) + epsilon) * (gamma + gamma_offset) + beta, with the mean over `axis`.

    Args:
      x: floating-point or complex array of rank 1 or more.
      gamma: scale; has the sizes of `x` along `feature_axes` in ascending order, or the rank of
        `x` (broadcast), or rank 0.
      beta: offset; like `gamma`.
      axis: the axes pooled, in any order and sign.
      feature_axes: the axes that gamma and beta vary along. Default: those in `axis` (the last
        axis for a gamma or beta of rank 1 where `axis` has several).
      epsilon: added to the mean square.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      gamma_offset: added to gamma in float32 or wider; 1.0 is Gemma's rule, all in float32 and
        cast last.
      cast_before_gamma: round to the dtype of `x` before gamma is applied, which is Llama's rule.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) to pool over as well, as for
        features that are divided over devices.
      axis_index_groups: groups of indices of `axis_name` that pool together.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, in the shape of `x`.

    Raises:
      TypeError: `x` or `dtype` is of integers, or `mask` is not boolean.
      ValueError: an axis is out of range or given twice, gamma, beta or mask does not fit, or
        epsilon is negative.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> jaxnorm.rms_norm(jnp.array([6., 8., 0., 0.]), epsilon=39.0).tolist()
      [0.75, 1.0, 0.0, 0.0]

    Reference: Zhang & Sennrich 2019, Root Mean Square Layer Normalization, arXiv:1910.07467.
    """
    x = _axes.check_input(x)
    return normalize_features(
        x,
        gamma,
        beta,
        _axes.canonical_axes(axis, x.shape),
        feature_axes,
        epsilon,
        mask,
        (axis_name, axis_index_groups),
        dtype,
        gamma_offset=float(gamma_offset),
        center=False,
        cast_before_gamma=check_flag(cast_before_gamma, "cast_before_gamma"),
    )


def normalize_features(
    x: jax.Array,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    axes: tuple[int, ...],
    feature_axes: Axes | None,
    epsilon: float,
    mask: ArrayLike | None,
    mapped: tuple[str | Sequence[str] | None, AxisIndexGroups],
    dtype: DTypeLike | None,
    **options: Any,
) -> jax.Array:
    """Normalizes `x` over `axes`, both checked; `mapped` are axis_name and axis_index_groups."""
    gamma = _axes.expand_parameter(gamma, x, feature_axes, axes, "gamma")
    beta = _axes.expand_parameter(beta, x, feature_axes, axes, "beta")
    mask = _axes.expand_mask(mask, x)
    pool = pool_of(axes, *mapped)
    result = _axes.result_dtype(x, dtype)
    formula = Options(pool, _axes.check_epsilon(epsilon), result, **options)
    return normalize(x, gamma, beta, mask, formula)[0]
