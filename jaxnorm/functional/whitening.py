"""Whitening: each unit with mean 0 and variance 1, and no linear relationship between units."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._core import axes as _axes
from jaxnorm._core import collectives, residuals, statistics
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.flags import check_flag
from jaxnorm._core.formula import apply_affine
from jaxnorm._core.mesh import broadcast_spec, placed, spec_of, without_explicit_axes
from jaxnorm._core.plan import PORTABLE
from jaxnorm._core.pool import Pool, compute_dtype, pool_of, snap, widen, zero_masked
from jaxnorm.functional._layout import Layout, check_arrays, check_layout
from jaxnorm.functional._matrix_root import inverse_root, inverse_root_by_iteration
from jaxnorm.functional._restored import as_statistics

Method = Literal["zca", "iterative"]


class Whitening(NamedTuple):
    """The affine map that whitens: projection @ (x - mean), within each group of units.

    Functions that take it also take a mapping of its parts by name, as it comes back from a
    checkpoint that is read without a target.

    Attributes:
      mean: the mean; the axes pooled are removed.
      projection: [..., num_groups, n, n] for n units per group, Hermitian; before those come the
        axes that are neither pooled nor of units.
      count: how many examples were pooled; broadcasts against `mean`.
    """

    mean: jax.Array
    projection: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


def whiten(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: Axes,
    feature_axes: Axes = -1,
    num_groups: int = 1,
    method: Method = "zca",
    num_iterations: int = 15,
    epsilon: float = 1e-5,
    mask: ArrayLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: AxisIndexGroups = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, Whitening]:
    """Gives the units mean 0 and the identity as covariance: no linear relationship is left.

    y = (covariance + epsilon I)^(-1/2) (x - mean) * gamma + beta, where x is the vector of the
    units of a group, and the mean and the biased covariance are over `axis`. Of all maps that
    whiten, this one (ZCA) changes x the least. Axes that are in neither `axis` nor
    `feature_axes` have statistics of their own at each index. It needs more examples than units
    per group to remove all correlation; with fewer, the output is as white as they allow. What
    costs is the root of a matrix for each group, which grows with the cube of its units and not
    with the examples: many groups of few units are cheap.

    Args:
      x: floating-point or complex array of rank 2 or more.
      gamma: scale; has the sizes of `x` along `feature_axes` in ascending order, or the rank of
        `x` (broadcast), or rank 0.
      beta: offset; like `gamma`.
      axis: the axes pooled, in any order and sign: those of the examples.
      feature_axes: the axes of the units, in any order and sign.
      num_groups: into how many groups of neighbouring units they are divided, each whitened by
        itself; with one unit per group this is `batch_norm`.
      method: "zca", by eigenvalues, exact; or "iterative", by Newton's iteration, which is made
        of matrix products only and much faster on GPU and TPU.
      num_iterations: of the iterative method. 15 whiten to 1e-3 where the least eigenvalue of the
        covariance is 1e-4 of their sum, or more; the 5 of its paper whiten in part, on purpose.
      epsilon: added to the variances.
      mask: boolean, broadcasts against `x`, the same for all units; examples where it is False are
        not pooled and give 0.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) to pool over as well.
      axis_index_groups: groups of indices of `axis_name` that pool together.
      dtype: of the result; default: that of `x`.

    Returns:
      The whitened array, in the shape of `x`, and the batch's `Whitening` in float32 or wider, for
      running averages and `decorrelate`.

    Raises:
      TypeError: `x` or `dtype` is of integers, or `mask` is not boolean.
      ValueError: an axis is out of range, given twice, or in both `axis` and `feature_axes`; the
        groups do not divide the units; `method` is unknown; `num_iterations` or `epsilon` is
        negative; gamma, beta or mask does not fit.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[2., 0.], [-2., 0.], [0., 3.], [0., -3.]])
      >>> y, w = jaxnorm.whiten(x, axis=0, epsilon=0.0)
      >>> (y.T @ y / 4).round(5).tolist()
      [[1.0, 0.0], [0.0, 1.0]]

    References: Huang, Yang, Lang & Deng 2018, Decorrelated Batch Normalization, arXiv:1804.08450;
    iterative: Huang, Zhou, Zhu, Liu & Shao 2019, Iterative Normalization, arXiv:1904.03441.
    """
    x = _axes.check_input(x)
    layout = check_layout(x.shape, axis, feature_axes, num_groups)
    if method not in ("zca", "iterative"):
        raise ValueError(f'method must be "zca" or "iterative", got {method!r}.')
    steps = operator.index(num_iterations)
    if steps < 0:
        raise ValueError(f"num_iterations must be at least 0, got {num_iterations!r}.")
    gamma, beta, mask = check_arrays(x, layout, gamma, beta, mask)
    pool = pool_of(layout.pooled, axis_name, axis_index_groups)
    epsilon, dtype = _axes.check_epsilon(epsilon), _axes.result_dtype(x, dtype)
    return _whiten(
        x, gamma, beta, mask, layout, pool, steps if method == "iterative" else None, epsilon, dtype
    )


def decorrelate(
    x: ArrayLike,
    whitening: Whitening,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: Axes,
    feature_axes: Axes = -1,
    mask: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Whitens `x` by a given mean and projection: projection @ (x - mean) * gamma + beta.

    To `whiten` it is what `standardize` is to `batch_norm`: the statistics can be running ones.

    Args:
      x: floating-point or complex array of rank 2 or more.
      whitening: a `Whitening` or a `(mean, projection, count)` tuple, as `whiten` returns it. The
        count is not used.
      gamma: scale; has the sizes of `x` along `feature_axes` in ascending order, or the rank of
        `x` (broadcast), or rank 0.
      beta: offset; like `gamma`.
      axis: the axes that were pooled.
      feature_axes: the axes of the units.
      mask: boolean, broadcasts against `x`, the same for all units; examples where it is False
        give 0.
      dtype: of the result; default: that of `x`.

    Returns:
      The result, in the shape of `x`.

    Raises:
      TypeError: `x` or `dtype` is of integers, or `mask` is not boolean.
      ValueError: an axis is out of range, given twice, or in both `axis` and `feature_axes`; the
        mean, the projection, gamma, beta or mask does not fit.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[2., 0.], [-2., 0.], [0., 3.], [0., -3.]])
      >>> y, w = jaxnorm.whiten(x, axis=0)
      >>> bool(jnp.allclose(jaxnorm.decorrelate(x, w, axis=0), y, atol=1e-5))
      True

    Reference: Huang, Yang, Lang & Deng 2018, Decorrelated Batch Normalization, arXiv:1804.08450.
    """
    x = _axes.check_input(x)
    mean, projection = map(jnp.asarray, as_statistics(Whitening, whitening, "whitening")[:2])
    groups = projection.shape[-3] if projection.ndim >= 3 else 1
    layout = check_layout(x.shape, axis, feature_axes, groups)
    expected = layout.shapes(x.shape)
    for value, shape, name in zip(
        (mean, projection), expected, ("mean", "projection"), strict=True
    ):
        if value.shape != shape:
            raise ValueError(
                f"whitening.{name} of shape {value.shape} does not fit an input of shape {x.shape} "
                f"pooled over axes {layout.axes}, with units on axes {layout.features}: expected "
                f"{shape}."
            )
    gamma, beta, mask = check_arrays(x, layout, gamma, beta, mask)
    places = layout.specs(spec_of(x), masked=False)
    mean, projection = map(placed, (mean, projection), places)
    return _decorrelate(
        x, mean, projection, gamma, beta, mask, layout, _axes.result_dtype(x, dtype)
    )


def update_whitening(
    running: Whitening, batch: Whitening, *, momentum: float, unbiased: bool = True
) -> Whitening:
    """Moves a running mean and projection towards those of a batch.

    new = momentum * running + (1 - momentum) * batch, for both. With `unbiased`, the batch's
    projection is first multiplied by sqrt((m - 1) / m), m = `batch.count`: it then divides by the
    unbiased covariance, as the running variance of `update_moments` is unbiased.

    Args:
      running: the running statistics; their dtypes are kept.
      batch: the batch's, as `whiten` returns them; where the count is 0 nothing changes.
      momentum: the decay of the old value, in [0, 1].
      unbiased: whether the running projection goes by the unbiased covariance.

    Returns:
      The new running `Whitening`; `count` is the number of examples seen.

    Raises:
      ValueError: `momentum` is a number outside [0, 1].

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> start = jaxnorm.Whitening(jnp.zeros(2), jnp.eye(2)[None], jnp.zeros(()))
      >>> _, batch = jaxnorm.whiten(jnp.array([[2., 0.], [4., 6.], [0., 3.]]), axis=0)
      >>> new = jaxnorm.update_whitening(start, batch, momentum=0.5)
      >>> new.mean.tolist(), new.projection.shape, float(new.count)
      ([1.0, 1.5], (1, 2, 2), 3.0)

    Reference: Huang, Yang, Lang & Deng 2018, Decorrelated Batch Normalization, arXiv:1804.08450.
    """
    if isinstance(momentum, (int, float)) and not 0 <= momentum <= 1:
        raise ValueError(f"momentum must lie in [0, 1], got {momentum!r}.")
    given = ((running, "running"), (batch, "batch"))
    running, batch = (
        Whitening(*map(jnp.asarray, as_statistics(Whitening, w, name))) for w, name in given
    )
    new = Whitening._make(map(broadcast_spec, batch, running))
    update = functools.partial(_update, unbiased=check_flag(unbiased, "unbiased"))
    return without_explicit_axes(update, new)(running, batch, momentum)


def _update(running: Whitening, batch: Whitening, momentum, unbiased: bool) -> Whitening:
    count, projection = batch.count, batch.projection
    by_group = count.reshape(*projection.shape[:-3], 1, 1, 1) if count.ndim else count
    if unbiased:
        factor = jnp.sqrt(jnp.maximum(by_group - 1, 1) / jnp.maximum(by_group, 1))
        projection = projection * factor.astype(projection.dtype)

    def move(old, new, count):
        wide = compute_dtype(old.dtype)
        moved = momentum * old.astype(wide) + (1 - momentum) * new.astype(wide)
        return jnp.where(count > 0, moved, old.astype(wide)).astype(old.dtype)

    return Whitening(
        move(running.mean, batch.mean, count),
        move(running.projection, projection, by_group),
        running.count + count.astype(running.count.dtype),
    )


def _project(projection: jax.Array, centered: jax.Array, layout: Layout) -> jax.Array:
    kept, every = layout.subscripts()
    subscripts = f"{kept}gij,{every}gj->{every}gi"
    return jnp.einsum(subscripts, projection, centered, precision=lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7, 8), inline=True)
def _whiten(x, gamma, beta, mask, layout: Layout, pool: Pool, steps, epsilon, dtype):
    @residuals.recomputed
    def compute(x, gamma, beta, mask):
        rows = layout.to_rows(x)
        kept = None if mask is None else layout.mask_to_rows(mask, x.shape)
        shift, count = statistics.mean_of(rows, kept, pool, PORTABLE)
        if count.ndim:
            count = count[..., :1, :1]  # all units of an example count, or none
        centered = zero_masked(kept, widen(rows, kept) - shift)
        offset, covariance = _covariance(centered, count, layout, pool)
        if steps is None:
            projection = inverse_root(covariance, epsilon)
        else:
            covariance = residuals.save(covariance)
            projection = inverse_root_by_iteration(covariance, epsilon, steps)
            projection = residuals.save(projection)
        y = layout.from_rows(_project(projection, centered - offset, layout), x.shape)
        y = zero_masked(mask, apply_affine(y, gamma, beta, 0.0)).astype(dtype)
        mean = jnp.squeeze(layout.from_rows(shift + offset, x.shape), layout.axes)
        if count.ndim:
            count = jnp.squeeze(layout.from_rows(count, x.shape), layout.axes)
        return y, Whitening(mean, projection, count)

    out = (spec_of(x), Whitening(*layout.specs(spec_of(x), mask is not None)))
    return without_explicit_axes(compute, out)(x, gamma, beta, mask)


def _covariance(centered, count, layout: Layout, pool: Pool) -> tuple[jax.Array, jax.Array]:
    """Returns the mean of what is left after the shift, and the biased covariance."""
    first = pool.sum(centered, PORTABLE)
    if centered.shape[-1] == 1:
        # Groups of a single unit: a plain sum is more accurate than a product of vectors.
        second = jnp.squeeze(pool.sum(centered * centered.conj(), PORTABLE), layout.pooled)
        second = second[..., None]
    else:
        second = _products(centered, layout)
    if pool.names:
        first, second = collectives.psum((first, second), pool.names, pool.index_groups)
    divisor = jnp.maximum(count, 1).astype(first.dtype)
    offset = residuals.save(snap(first / divisor))
    mean = jnp.squeeze(offset, layout.pooled)
    square = mean[..., :, None] * mean[..., None, :].conj()
    if divisor.ndim:
        divisor = jnp.squeeze(divisor, layout.pooled)[..., None]
    return offset, second / divisor - square


def _products(centered: jax.Array, layout: Layout) -> jax.Array:
    """Returns the sum of x x^H over the pool, of blocks of examples first.

    XLA on CPU may add up all examples in one sequence, whose rounding errors grow with its length.
    The number of blocks is a power of two, so that they divide over devices as the examples do.
    """
    kept, every = layout.subscripts()
    position, shape = layout.pooled[0], centered.shape
    size, blocks = shape[position], 1
    # A symbolic size has no blocks.
    while isinstance(size, int) and size % (2 * blocks) == 0 and size // (2 * blocks) >= 1024:
        blocks *= 2
    split = centered.reshape(*shape[:position], blocks, size // blocks, *shape[position + 1 :])
    products = jnp.einsum(
        f"{kept}Z{every[position:]}gi,{kept}Z{every[position:]}gj->{kept}Zgij",
        split,
        split.conj(),
        precision=lax.Precision.HIGHEST,
    )
    return jnp.sum(products, position)


@functools.partial(jax.jit, static_argnums=(6, 7), inline=True)
def _decorrelate(x, mean, projection, gamma, beta, mask, layout: Layout, dtype):
    @residuals.recomputed
    def compute(x, mean, projection, gamma, beta, mask):
        wide = compute_dtype(x.dtype)
        full = jnp.expand_dims(mean.astype(wide), layout.axes)
        centered = layout.to_rows(zero_masked(mask, widen(x, mask) - full))
        y = layout.from_rows(_project(projection.astype(wide), centered, layout), x.shape)
        return zero_masked(mask, apply_affine(y, gamma, beta, 0.0)).astype(dtype)

    place = without_explicit_axes(compute, spec_of(x))
    return place(x, mean, projection, gamma, beta, mask)
