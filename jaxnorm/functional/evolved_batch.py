"""EvoNorm-B: norms of the batch joined to an activation, as evolution found them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.formula import Options, apply_affine, root
from jaxnorm._core.mesh import spec_of, without_explicit_axes
from jaxnorm._core.moments import Moments
from jaxnorm._core.normalize import normalize, statistics_of
from jaxnorm._core.pool import Pool, pool_of, widen, zero_masked
from jaxnorm._core.residuals import recomputed
from jaxnorm._core.standardize import expand_moment
from jaxnorm.functional._arguments import REAL_ACTIVATION, check_real

Kind = Literal["b0", "b1", "b2"]


def evo_norm_b0(
    x: ArrayLike,
    v: ArrayLike | None = None,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: Axes,
    var: ArrayLike | None = None,
    epsilon: float = 1e-5,
    mask: ArrayLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, Moments]:
    """Divides by the batch's standard deviation, or by each example's and the input, if larger.

    y = x / max(sqrt(var_b + epsilon), v * x + sqrt(var_i + epsilon)) * gamma + beta, with the
    biased variance over `axis` of the batch, and that of each example, over `axis` but its first,
    which is the batch's. It replaces batch norm and the activation after it.

    Args:
      x: floating-point array of rank 2 or more.
      v: slope; has the sizes of `x` along the axes that are not in `axis`, in ascending order, or
        the rank of `x` (broadcast), or rank 0. Default: 1.
      gamma: scale; like `v`.
      beta: offset; like `v`.
      axis: the axes pooled: the batch's, and those of the positions.
      var: the running variance, in evaluation; the shape of `x` without the axes in `axis`.
        Default: the batch's own.
      epsilon: added to the variances.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) that the batch is pooled over as
        well.
      dtype: of the result; default: that of `x`.

    Returns:
      An array in the shape of `x`, and the batch's own `Moments`, for `jaxnorm.update_moments`.

    Raises:
      TypeError: `x` or `dtype` is of integers, `x` is complex, or `mask` is not boolean.
      ValueError: an axis is out of range or given twice, there is only one, v, gamma, beta, var or
        mask does not fit, or epsilon is negative.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[[-2.], [2.]], [[-2.], [2.]]])
      >>> y, m = jaxnorm.evo_norm_b0(x, axis=(0, 1), epsilon=0.0)
      >>> y.tolist(), m.var.tolist()
      ([[[-1.0], [0.5]], [[-1.0], [0.5]]], [4.0])

    Reference: Liu, Brock, Simonyan & Le 2020, Evolving Normalization-Activation Layers,
    arXiv:2004.02967.
    """
    slope = 1.0 if v is None else v
    return _by_batch("b0", x, slope, gamma, beta, axis, var, epsilon, mask, axis_name, dtype)


def evo_norm_b1(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: Axes,
    var: ArrayLike | None = None,
    epsilon: float = 1e-5,
    mask: ArrayLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, Moments]:
    """Divides by the batch's standard deviation, or by (x + 1) times each example's size.

    y = x / max(sqrt(var_b + epsilon), (x + 1) * sqrt(mean_i(x^2) + epsilon)) * gamma + beta; see
    `jaxnorm.evo_norm_b0`.

    Args:
      x: floating-point array of rank 2 or more.
      gamma: scale; has the sizes of `x` along the axes that are not in `axis`, in ascending order,
        or the rank of `x` (broadcast), or rank 0.
      beta: offset; like `gamma`.
      axis: the axes pooled: the batch's, and those of the positions.
      var: the running variance, in evaluation; the shape of `x` without the axes in `axis`.
        Default: the batch's own.
      epsilon: added to the variance and to the mean square.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) that the batch is pooled over as
        well.
      dtype: of the result; default: that of `x`.

    Returns:
      An array in the shape of `x`, and the batch's own `Moments`, for `jaxnorm.update_moments`.

    Raises:
      TypeError: `x` or `dtype` is of integers, `x` is complex, or `mask` is not boolean.
      ValueError: an axis is out of range or given twice, there is only one, gamma, beta, var or
        mask does not fit, or epsilon is negative.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[[-2.], [2.]]])
      >>> y, _ = jaxnorm.evo_norm_b1(x, axis=(0, 1), epsilon=0.0)
      >>> y.round(3).tolist()
      [[[-1.0], [0.3330000042915344]]]

    Reference: Liu, Brock, Simonyan & Le 2020, Evolving Normalization-Activation Layers,
    arXiv:2004.02967.
    """
    return _by_batch("b1", x, None, gamma, beta, axis, var, epsilon, mask, axis_name, dtype)


def evo_norm_b2(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: Axes,
    var: ArrayLike | None = None,
    epsilon: float = 1e-5,
    mask: ArrayLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, Moments]:
    """Divides by the batch's standard deviation, or by each example's size less the input.

    y = x / max(sqrt(var_b + epsilon), sqrt(mean_i(x^2) + epsilon) - x) * gamma + beta; see
    `jaxnorm.evo_norm_b0`.

    Args:
      x: floating-point array of rank 2 or more.
      gamma: scale; has the sizes of `x` along the axes that are not in `axis`, in ascending order,
        or the rank of `x` (broadcast), or rank 0.
      beta: offset; like `gamma`.
      axis: the axes pooled: the batch's, and those of the positions.
      var: the running variance, in evaluation; the shape of `x` without the axes in `axis`.
        Default: the batch's own.
      epsilon: added to the variance and to the mean square.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) that the batch is pooled over as
        well.
      dtype: of the result; default: that of `x`.

    Returns:
      An array in the shape of `x`, and the batch's own `Moments`, for `jaxnorm.update_moments`.

    Raises:
      TypeError: `x` or `dtype` is of integers, `x` is complex, or `mask` is not boolean.
      ValueError: an axis is out of range or given twice, there is only one, gamma, beta, var or
        mask does not fit, or epsilon is negative.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[[-2.], [2.]]])
      >>> y, _ = jaxnorm.evo_norm_b2(x, axis=(0, 1), epsilon=0.0)
      >>> y.round(3).tolist()
      [[[-0.5], [1.0]]]

    Reference: Liu, Brock, Simonyan & Le 2020, Evolving Normalization-Activation Layers,
    arXiv:2004.02967.
    """
    return _by_batch("b2", x, None, gamma, beta, axis, var, epsilon, mask, axis_name, dtype)


def _by_batch(kind: Kind, x, v, gamma, beta, axis, var, epsilon, mask, axis_name, dtype):
    x = check_real(x, REAL_ACTIVATION)
    axes = _axes.canonical_axes(axis, x.shape)
    if len(axes) < 2:
        raise ValueError(
            f"axis={axis!r} must hold the batch's axis and those of the positions of the input of "
            f"shape {x.shape}: each example has a variance of its own."
        )
    kept = _axes.other_axes(axes, x.ndim)
    v, gamma, beta = (
        _axes.expand_parameter(p, x, None, kept, name)
        for p, name in ((v, "v"), (gamma, "gamma"), (beta, "beta"))
    )
    var = None if var is None else expand_moment(var, x.shape, axes, "var")
    mask = _axes.expand_mask(mask, x)
    pool = pool_of(axes, axis_name, None)
    options = Options(pool, _axes.check_epsilon(epsilon), _axes.result_dtype(x, dtype))
    _, moments = normalize(x, None, None, mask, options)
    if var is None:
        var = jnp.expand_dims(moments.var, axes)
    return _divide(x, v, gamma, beta, var, mask, options, kind), moments


@functools.partial(jax.jit, static_argnums=(6, 7), inline=True)
def _divide(x, v, gamma, beta, var, mask, options: Options, kind: Kind):
    def compute(x, v, gamma, beta, var, mask):
        own = options._replace(pool=Pool(options.pool.axes[1:]), center=kind == "b0")

        @recomputed
        def divide(x, v, gamma, beta, var):
            stats, _ = statistics_of(x, mask, own)
            wide = widen(x, mask)
            batch = root(var.astype(wide.dtype) + options.epsilon)
            size = root(stats.var + options.epsilon)
            match kind:
                case "b0":
                    other = wide * v.astype(wide.dtype) + size
                case "b1":
                    other = (wide + 1) * size
                case "b2":
                    other = size - wide
            divisor = jnp.maximum(batch, other)
            positive = divisor > 0
            y = jnp.where(positive, wide / jnp.where(positive, divisor, 1), 0)
            return zero_masked(mask, apply_affine(y, gamma, beta, 0.0)).astype(options.dtype)

        return divide(x, v, gamma, beta, var)

    arrays = (x, v, gamma, beta, var, mask)
    return without_explicit_axes(compute, spec_of(x))(*arrays)
