"""Batch norm that brings the batch's statistics closer to the running ones."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.moments import Moments
from jaxnorm.functional import _batch_core as core
from jaxnorm.functional._corrections import Blend, Renorm
from jaxnorm.functional.average import check_fraction


def batch_renorm(
    x: ArrayLike,
    running: Moments,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    r_max: ArrayLike,
    d_max: ArrayLike,
    axis: Axes,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-5,
    mask: ArrayLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: AxisIndexGroups = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, Moments]:
    """Normalizes by the batch, corrected towards what the running moments would give.

    y = ((x - mean) / sigma * r + d) * gamma + beta, where sigma = sqrt(var + epsilon),

    - r = clip(sigma / sigma_running, 1 / r_max, r_max),
    - d = clip((mean - mean_running) / sigma_running, -d_max, d_max),

    and no gradient flows through r and d. With r_max=1 and d_max=0 this is batch norm; unclipped,
    the result is that of evaluation while the gradient is that of training. The paper raises
    r_max from 1 to 3 and d_max from 0 to 5 during training.

    Args:
      x: floating-point or complex array of rank 1 or more.
      running: running `Moments`, or a `(mean, var, count)` tuple; mean and variance have the shape
        of `x` without the axes in `axis`. The count is not used.
      gamma: scale; has the sizes of `x` along `feature_axes` in ascending order, or the rank of
        `x` (broadcast), or rank 0.
      beta: offset; like `gamma`.
      r_max: largest correction of the scale, at least 1; may be traced.
      d_max: largest correction of the mean, in running standard deviations; may be traced.
      axis: the axes pooled, in any order and sign.
      feature_axes: the axes that gamma and beta vary along. Default: all that are not in `axis`
        (the last axis for a gamma or beta of rank 1).
      epsilon: added to the variances.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) to pool over as well.
      axis_index_groups: groups of indices of `axis_name` that pool together.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, and the batch's own `Moments`, for `jaxnorm.update_moments`.

    Raises:
      TypeError: `x` or `dtype` is of integers, or `mask` is not boolean.
      ValueError: `r_max` is a number below 1 or `d_max` one below 0, an axis is out of range or
        given twice, running moments, gamma, beta or mask do not fit, or epsilon is negative.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([1., 5.])
      >>> running = jaxnorm.Moments(jnp.array(2.), jnp.array(1.), jnp.array(0.))
      >>> y, m = jaxnorm.batch_renorm(x, running, r_max=1.5, d_max=5.0, axis=0, epsilon=0.0)
      >>> y.tolist(), float(m.mean), float(m.var)
      ([-0.5, 2.5], 3.0, 4.0)

    Reference: Ioffe 2017, Batch Renormalization, arXiv:1702.03275.
    """
    correction = make_renorm(r_max, d_max)
    inputs, axes = core.check_inputs(x, gamma, beta, mask, axis, feature_axes)
    inputs = core.expand_running(running, inputs, axes, core.Batch())
    options = core.make_options(inputs.x, axes, epsilon, axis_name, axis_index_groups, dtype)
    return core.normalize_by_batch(inputs, core.Batch(), correction, options)


def blended_batch_norm(
    x: ArrayLike,
    running: Moments,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    weight: ArrayLike,
    axis: Axes,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-5,
    mask: ArrayLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: AxisIndexGroups = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, Moments]:
    """Normalizes by a mixture of the batch's and the running moments.

    y = (x - mean') / sqrt(var' + epsilon) * gamma + beta, with
    mean' = weight * mean + (1 - weight) * mean_running and var' likewise; see
    `jaxnorm.mix_moments`. Weight 1 is training's batch norm (prediction-time batch norm, when used
    at test time), weight 0 evaluation's.

    Args:
      x: floating-point or complex array of rank 1 or more.
      running: running `Moments`, or a `(mean, var, count)` tuple; mean and variance have the shape
        of `x` without the axes in `axis`. The count is not used.
      gamma: scale; has the sizes of `x` along `feature_axes` in ascending order, or the rank of
        `x` (broadcast), or rank 0.
      beta: offset; like `gamma`.
      weight: of the batch's moments, in [0, 1]; may be traced.
      axis: the axes pooled, in any order and sign.
      feature_axes: the axes that gamma and beta vary along. Default: all that are not in `axis`
        (the last axis for a gamma or beta of rank 1).
      epsilon: added to the variance.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) to pool over as well.
      axis_index_groups: groups of indices of `axis_name` that pool together.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, and the batch's own `Moments`.

    Raises:
      TypeError: `x` or `dtype` is of integers, or `mask` is not boolean.
      ValueError: `weight` is a number outside [0, 1], an axis is out of range or given twice,
        running moments, gamma, beta or mask do not fit, or epsilon is negative.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([1., 3.])
      >>> running = jaxnorm.Moments(jnp.array(0.), jnp.array(7.), jnp.array(0.))
      >>> y, m = jaxnorm.blended_batch_norm(x, running, weight=0.5, axis=0, epsilon=0.0)
      >>> y.tolist(), float(m.mean), float(m.var)
      ([0.0, 1.0], 2.0, 1.0)

    References: Nado et al. 2020, Evaluating Prediction-Time Batch Normalization, arXiv:2006.10963;
    Schneider et al. 2020, Improving Robustness against Common Corruptions, arXiv:2006.16971.
    """
    check_fraction(weight, "weight")
    inputs, axes = core.check_inputs(x, gamma, beta, mask, axis, feature_axes)
    inputs = core.expand_running(running, inputs, axes, core.Batch())
    options = core.make_options(inputs.x, axes, epsilon, axis_name, axis_index_groups, dtype)
    return core.normalize_by_batch(inputs, core.Batch(), Blend(weight), options)


def make_renorm(r_max: ArrayLike, d_max: ArrayLike) -> Renorm:
    """Returns the correction of batch renormalization, its limits checked where they are known."""
    for name, value, least in (("r_max", r_max, 1), ("d_max", d_max, 0)):
        if isinstance(value, (int, float)) and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value!r}.")
    return Renorm(r_max, d_max)
