"""Norms of the nodes of graphs: each graph of a batch is a segment of the nodes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, DTypeLike
from jaxnorm._core.formula import Options, inverse_root
from jaxnorm._core.mesh import spec_of, without_explicit_axes
from jaxnorm._core.normalize import statistics_of
from jaxnorm._core.pool import Pool, abs2, subtract, zero_masked
from jaxnorm._core.residuals import recomputed
from jaxnorm._core.split_moments import SplitMoments
from jaxnorm.functional._segments import (
    affine_of_segments,
    check_segments,
    find_statistics,
    make_pool,
    number_by_rows,
)


def graph_norm(
    x: ArrayLike,
    segment_ids: ArrayLike,
    *,
    num_segments: int,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    epsilon: float = 1e-5,
    mask: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Normalizes each feature over the nodes of a graph, less a learned share of its mean.

    o = x - alpha * mean and y = o / sqrt(mean(|o|^2) + epsilon) * gamma + beta, with both means
    over the nodes of the graph. How large a mean is tells of a graph's structure: the network
    learns how much of it to keep.

    Args:
      x: floating-point or complex array of rank 1 or more, the nodes on axis 0.
      segment_ids: integers of shape (number of nodes,), in [0, num_segments): the graph of each
        node. A node with another number is left out as if masked.
      num_segments: how many graphs there can be.
      alpha: the share; has the sizes of `x` along all axes but the first, or the rank of `x`
        (broadcast), or rank 0. Default: 1.
      gamma: scale; like `alpha`.
      beta: offset; like `alpha`.
      epsilon: added to the mean square.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, in the shape of `x`.

    Raises:
      TypeError: `x` or `dtype` is of integers, `segment_ids` is not, or `mask` is not boolean.
      ValueError: `segment_ids` has another shape, a parameter or mask does not fit, or epsilon is
        negative.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x, graphs = jnp.array([1., 10., 3., 30.]), jnp.array([0, 1, 0, 1])
      >>> jaxnorm.graph_norm(x, graphs, num_segments=2, epsilon=0.0).tolist()
      [-1.0, -1.0, 1.0, 1.0]

    Reference: Cai, Luo, Xu, He, Liu & Wang 2020, GraphNorm, arXiv:2009.03294.
    """
    x = _axes.check_input(x)
    ids = check_segments(segment_ids, num_segments, x, 0, "segment_ids")
    features = tuple(range(1, x.ndim))
    alpha, gamma, beta = (
        _axes.expand_parameter(p, x, None, features, name)
        for p, name in ((alpha, "alpha"), (gamma, "gamma"), (beta, "beta"))
    )
    mask = _axes.expand_mask(mask, x)
    epsilon, dtype = _axes.check_epsilon(epsilon), _axes.result_dtype(x, dtype)
    return _graph_norm(x, ids, alpha, gamma, beta, mask, int(num_segments), epsilon, dtype)


@functools.partial(jax.jit, static_argnums=(6, 7, 8), inline=True)
def _graph_norm(x, ids, alpha, gamma, beta, mask, number, epsilon, dtype):
    @recomputed
    def compute(x, ids, alpha, gamma, beta, mask):
        pool, mask = _nodes(x, ids, mask, number)
        stats = _statistics(x, mask, pool, dtype)
        var, left = stats.var, None
        if alpha is not None:
            # What is left of the mean: exact where alpha is near 1.
            mean = _mean(stats)
            left = (1 - alpha.astype(mean.dtype)) * mean
            var = var + abs2(left)
        scale = inverse_root(var, epsilon)
        bias = None if left is None else left * scale.astype(left.dtype)
        y = affine_of_segments(x, mask, pool, stats, scale, bias, gamma, beta)
        return y.astype(dtype)

    return without_explicit_axes(compute, spec_of(x))(x, ids, alpha, gamma, beta, mask)


def pair_norm(
    x: ArrayLike,
    segment_ids: ArrayLike | None = None,
    *,
    num_segments: int = 1,
    scale: float = 1.0,
    epsilon: float = 1e-5,
    mask: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Keeps the distances between the nodes of a graph from shrinking, layer by layer.

    y = scale * c / sqrt(mean(sum(|c|^2)) + epsilon) with c = x - mean(x), the means over the nodes
    of the graph and the sum over the features: the total squared distance of all pairs of nodes
    becomes constant.

    Args:
      x: floating-point or complex array of rank 1 or more, the nodes on axis 0.
      segment_ids: integers of shape (number of nodes,), in [0, num_segments): the graph of each
        node. A node with another number is left out as if masked. Default: all are one graph's.
      num_segments: how many graphs there can be.
      scale: of the result.
      epsilon: added to the mean square.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, in the shape of `x`.

    Raises:
      TypeError: `x` or `dtype` is of integers, `segment_ids` is not, or `mask` is not boolean.
      ValueError: `segment_ids` has another shape, the mask does not fit, or epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[1.], [3.], [1.], [3.]])
      >>> jaxnorm.pair_norm(x, scale=2.0, epsilon=0.0).tolist()
      [[-2.0], [2.0], [-2.0], [2.0]]

    Reference: Zhao & Akoglu 2019, PairNorm: Tackling Oversmoothing in GNNs, arXiv:1909.12223.
    """
    x = _axes.check_input(x)
    ids = None
    if segment_ids is not None:
        ids = check_segments(segment_ids, num_segments, x, 0, "segment_ids")
    mask = _axes.expand_mask(mask, x)
    epsilon, dtype = _axes.check_epsilon(epsilon), _axes.result_dtype(x, dtype)
    return _pair_norm(x, ids, scale, mask, int(num_segments), epsilon, dtype)


@functools.partial(jax.jit, static_argnums=(4, 5, 6), inline=True)
def _pair_norm(x, ids, scale, mask, number, epsilon, dtype):
    @recomputed
    def compute(x, ids, scale, mask):
        pool, mask = _nodes(x, ids, mask, number)
        stats = _statistics(x, mask, pool, dtype)
        rest = zero_masked(mask, subtract(x, mask, pool, stats.shift, stats.offset))
        var = jnp.sum(stats.var, tuple(range(1, x.ndim)), keepdims=True)
        inverse = inverse_root(var, epsilon)
        inverse = inverse * jnp.asarray(scale, inverse.dtype)
        y = rest * pool.broadcast_to_input(inverse, x.shape).astype(rest.dtype)
        return zero_masked(mask, y).astype(dtype)

    return without_explicit_axes(compute, spec_of(x))(x, ids, scale, mask)


def _nodes(x, ids, mask, number) -> tuple[Any, jax.Array | None]:
    """Returns the pool of each graph, and the mask of the elements that are in one."""
    if ids is None:
        return Pool((0,)), mask
    ids, number, _ = number_by_rows(ids, number)
    pool = make_pool(Pool((0,)), ids, number, 0)
    held = pool.holds(x.ndim)
    return pool, held if mask is None else mask & held


def _statistics(x, mask, pool, dtype) -> SplitMoments:
    if isinstance(pool, Pool):
        return statistics_of(x, mask, Options(pool, 0.0, dtype))[0]
    return find_statistics(x, mask, pool)[0]


def _mean(stats: SplitMoments) -> jax.Array:
    return stats.shift if stats.offset is None else stats.shift + stats.offset
