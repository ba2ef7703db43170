"""A penalty on activation statistics: the approach that normalization replaced."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.mesh import without_explicit_axes
from jaxnorm._core.pool import abs2
from jaxnorm.functional.moments import moments


def statistics_penalty(
    x: ArrayLike,
    *,
    axis: Axes,
    mask: ArrayLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: AxisIndexGroups = None,
) -> jax.Array:
    """Measures how far the statistics of units are from mean 0 and variance 1.

    penalty = mean over the units of |mean|^2 + (var - 1)^2, with each unit's mean and biased
    variance over `axis`. Added to a loss, with a weight, it asks the network to keep its
    activations standardized, where `batch_norm` makes them so: the loss may pull the other way, and
    each step that it wins has to be taken back by the penalty.

    Args:
      x: floating-point or complex array of rank 1 or more.
      axis: the axes pooled, in any order and sign; the others are of units.
      mask: boolean, broadcasts against `x`; elements where it is False are left out, and so are
        units without any element.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) to pool over as well.
      axis_index_groups: groups of indices of `axis_name` that pool together.

    Returns:
      A scalar, real, in float32 or wider.

    Raises:
      TypeError: `x` has an integer dtype, or `mask` is not boolean.
      ValueError: an axis is out of range or given twice, or `mask` does not broadcast.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[-1., 2.], [1., 6.]])  # means 0 and 4, variances 1 and 4
      >>> float(jaxnorm.statistics_penalty(x, axis=0))
      12.5

    Reference: Goodfellow, Bengio & Courville 2016, Deep Learning, section 8.7.1, which tells of
    penalties and why batch normalization took their place.
    """
    mean, var, count = moments(
        x, axis, mask=mask, axis_name=axis_name, axis_index_groups=axis_index_groups
    )

    def penalty(mean, var, count):
        pooled = jnp.broadcast_to(count > 0, var.shape)
        total = jnp.sum(jnp.where(pooled, abs2(mean) + (var - 1) ** 2, 0))
        return total / jnp.maximum(jnp.sum(pooled.astype(var.dtype)), 1)

    return without_explicit_axes(penalty, PartitionSpec())(mean, var, count)
