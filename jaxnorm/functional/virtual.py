"""Batch norm over virtual batches: equal parts of the batch, each by its own statistics."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import jax

from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.moments import Moments
from jaxnorm.functional import _batch_core as core


def ghost_batch_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    num_virtual_batches: int,
    axis: Axes,
    batch_axis: int = 0,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-5,
    mask: ArrayLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, Moments]:
    """Normalizes each of `num_virtual_batches` consecutive parts of the batch by itself.

    y = (x - mean_i) / sqrt(var_i + epsilon) * gamma + beta for the examples of part i. The parts
    are the same, and so is the result, on one device, in a sharded jit on any number of them, and
    in shard_map with `axis_name`. Where each device holds whole parts nothing is communicated to
    normalize; where it does not, only sums are.

    Args:
      x: floating-point or complex array of rank 1 or more.
      gamma: scale; has the sizes of `x` along `feature_axes` in ascending order, or the rank of
        `x` (broadcast), or rank 0.
      beta: offset; like `gamma`.
      num_virtual_batches: into how many parts the batch is divided, over all devices together.
      axis: the axes pooled, `batch_axis` among them.
      batch_axis: the axis of the examples.
      feature_axes: the axes that gamma and beta vary along. Default: all that are not in `axis`
        (the last axis for a gamma or beta of rank 1).
      epsilon: added to the variance.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) that the batch is spread over, in
        the order of their indices.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, and the `Moments` of the whole batch: the parts' combined by the law
      of total variance, for `jaxnorm.update_moments`.

    Raises:
      TypeError: `x` or `dtype` is of integers, or `mask` is not boolean.
      ValueError: the parts do not divide the batch or fit the devices, an axis is out of range or
        given twice, gamma, beta or mask does not fit, or epsilon is negative.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([1., 3., 10., 30.])
      >>> y, m = jaxnorm.ghost_batch_norm(x, num_virtual_batches=2, axis=0, epsilon=0.0)
      >>> y.tolist(), float(m.mean), float(m.var)
      ([-1.0, 1.0, -1.0, 1.0], 11.0, 131.5)

    Reference: Hoffer, Hubara & Soudry 2017, Train longer, generalize better, arXiv:1705.08741.
    """
    inputs, axes = core.check_inputs(x, gamma, beta, mask, axis, feature_axes)
    options = core.make_options(inputs.x, axes, epsilon, axis_name, None, dtype)
    number = check_virtual(num_virtual_batches)
    batch = core.Batch(core.check_batch_axis(batch_axis, inputs.x.shape, axes), number)
    return core.normalize_by_batch(inputs, batch, None, options)


def check_virtual(number: int) -> int:
    """Returns the number of virtual batches as an int of at least 1."""
    value = operator.index(number)
    if value < 1:
        raise ValueError(f"num_virtual_batches must be at least 1, got {number!r}.")
    return value
