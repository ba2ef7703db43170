"""Batch norm with separate statistics for each domain or class in a mixed batch."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.moments import Moments
from jaxnorm.functional import _batch_core as core
from jaxnorm.functional._segments import check_segments


def segment_batch_norm(
    x: ArrayLike,
    segment_ids: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    num_segments: int,
    axis: Axes,
    batch_axis: int = 0,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-5,
    mask: ArrayLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: AxisIndexGroups = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, Moments]:
    """Normalizes each example by the statistics of the examples of its own segment.

    y_n = (x_n - mean_s) / sqrt(var_s + epsilon) * gamma + beta with s = segment_ids[n]: the
    examples of one domain or class share their statistics, wherever they stand in the batch.

    Args:
      x: floating-point or complex array of rank 1 or more.
      segment_ids: integers of shape (number of examples,), in [0, num_segments); an example with
        another id is left out as if masked.
      gamma: scale; has the sizes of `x` along `feature_axes` in ascending order, or the rank of
        `x` (broadcast; one for each domain is `gamma[segment_ids]` at that rank), or rank 0.
      beta: offset; like `gamma`.
      num_segments: how many segments there can be.
      axis: the axes pooled, `batch_axis` among them.
      batch_axis: the axis of the examples.
      feature_axes: the axes that gamma and beta vary along. Default: all that are not in `axis`
        (the last axis for a gamma or beta of rank 1).
      epsilon: added to the variance.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) to pool over as well.
      axis_index_groups: groups of indices of `axis_name` that pool together.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, and `Moments` with one row for each segment on axis 0; the count of a
      segment without examples is 0.

    Raises:
      TypeError: `x` or `dtype` is of integers, `segment_ids` is not, or `mask` is not boolean.
      ValueError: `segment_ids` has another shape, an axis is out of range or given twice, gamma,
        beta or mask does not fit, or epsilon is negative.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x, ids = jnp.array([1., 10., 3., 30.]), jnp.array([0, 1, 0, 1])
      >>> y, m = jaxnorm.segment_batch_norm(x, ids, num_segments=2, axis=0, epsilon=0.0)
      >>> y.tolist(), m.mean.tolist(), m.count.tolist()
      ([-1.0, -1.0, 1.0, 1.0], [2.0, 20.0], [2.0, 2.0])

    References: Chang et al. 2019, Domain-Specific Batch Normalization, arXiv:1906.03950; Xie et
    al. 2019, Adversarial Examples Improve Image Recognition (auxiliary batch norm),
    arXiv:1911.09665.
    """
    inputs, axes = core.check_inputs(x, gamma, beta, mask, axis, feature_axes)
    options = core.make_options(inputs.x, axes, epsilon, axis_name, axis_index_groups, dtype)
    position = core.check_batch_axis(batch_axis, inputs.x.shape, axes)
    ids = check_segments(segment_ids, num_segments, inputs.x, position, "segment_ids")
    batch = core.Batch(position, 1, (ids, num_segments))
    return core.normalize_by_batch(inputs, batch, None, options)
