"""Mean, variance and count of the elements pooled."""

from __future__ import annotations

from collections.abc import Sequence

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.moments import Moments, pooled_moments
from jaxnorm._core.pool import pool_of


def moments(
    x: ArrayLike,
    axis: Axes,
    *,
    mask: ArrayLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: AxisIndexGroups = None,
) -> Moments:
    """Computes the mean, the biased variance and the count of `x` over `axis`.

    mean = sum(x) / count and var = sum(|x - mean|^2) / count. The sums are taken of the remainder
    after a shift that lies close to the mean, never of x^2, so they stay exact for inputs whose
    mean is large beside their spread. Where a sum overflows, the mean is finite and not exact.

    Args:
      x: floating-point or complex array of rank 1 or more.
      axis: the axes reduced over, in any order and sign.
      mask: boolean, broadcasts against `x`; elements where it is False are left out.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) to pool over as well.
      axis_index_groups: groups of indices of `axis_name` that pool together.

    Returns:
      `Moments` in float32 or wider, without the reduced axes. With no element to pool, zeros.

    Raises:
      TypeError: `x` has an integer dtype, or `mask` is not boolean.
      ValueError: an axis is out of range or given twice, or `mask` does not broadcast.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> m = jaxnorm.moments(jnp.array([[1., 2., 3.], [4., 6., 8.]]), axis=1)
      >>> m.mean.tolist(), m.count.tolist()
      ([2.0, 6.0], 3.0)
    """
    x = _axes.check_input(x)
    axes = _axes.canonical_axes(axis, x.shape)
    mask = _axes.expand_mask(mask, x)
    pool = pool_of(axes, axis_name, axis_index_groups)
    return pooled_moments(x, mask, pool)
