"""Instance norm with statistics from elsewhere: of a style, or mixed with the batch's."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core import moments as _moments
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.formula import Options, apply_affine, inverse_root, root
from jaxnorm._core.mesh import spec_of, without_explicit_axes
from jaxnorm._core.moments import Moments
from jaxnorm._core.normalize import normalize, statistics_of
from jaxnorm._core.pool import Pool, compute_dtype, pool_of, subtract, zero_masked
from jaxnorm._core.residuals import recomputed, save
from jaxnorm._core.split_moments import SplitMoments
from jaxnorm._core.standardize import expand_moment
from jaxnorm.functional._arguments import expand_channels, position_axes
from jaxnorm.functional._merged import merge_along, rest_of
from jaxnorm.functional._restored import as_moments
from jaxnorm.functional.group import refuse, report_one_value


def adaptive_instance_norm(
    x: ArrayLike,
    style: ArrayLike,
    *,
    axis: Axes | None = None,
    channel_axis: int = -1,
    epsilon: float = 1e-5,
    mask: ArrayLike | None = None,
    style_mask: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Gives each channel of each example the mean and the deviation of a style's.

    y = (x - mean(x)) / sqrt(var(x) + epsilon) * sqrt(var(style) + epsilon) + mean(style), with the
    means and the biased variances over `axis`.

    Args:
      x: floating-point or complex array of rank 1 or more, the content.
      style: an array like `x`, which can have other sizes along `axis`, and size 1 elsewhere.
      axis: the axes pooled. Default: all but axis 0 and the channels.
      channel_axis: the axis of the channels.
      epsilon: added to both variances.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      style_mask: boolean, broadcasts against `style`; which of its elements are pooled.
      dtype: of the result; default: that of `x`.

    Returns:
      The content in the style, in the shape of `x`.

    Raises:
      TypeError: `x`, `style` or `dtype` is of integers, or a mask is not boolean.
      ValueError: the style does not fit, there is no axis to pool, an axis is out of range, given
        twice or the channels', a mask does not fit, or epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x, style = jnp.array([[[1.], [3.]]]), jnp.array([[[10.], [10.], [14.], [14.]]])
      >>> jaxnorm.adaptive_instance_norm(x, style, epsilon=0.0).tolist()
      [[[10.0], [14.0]]]

    Reference: Huang & Belongie 2017, Arbitrary Style Transfer in Real-time with Adaptive Instance
    Normalization, arXiv:1703.06868.
    """
    x, style = _axes.check_input(x), _axes.check_input(style, "style")
    channel = _axes.canonical_axis(channel_axis, x.shape, "channel_axis")
    axes = position_axes(axis, x.shape, channel)
    sizes = zip(style.shape, x.shape, strict=False)
    fits = style.ndim == x.ndim and all(
        a in axes or s in (1, size) for a, (s, size) in enumerate(sizes)
    )
    if not fits:
        raise ValueError(
            f"style of shape {style.shape} does not fit an input of shape {x.shape}: it must have "
            f"that rank, with the input's sizes or 1 on all axes but those pooled, {axes}."
        )
    mask, style_mask = _axes.expand_mask(mask, x), _axes.expand_mask(style_mask, style)
    epsilon, pool = _axes.check_epsilon(epsilon), Pool(axes)
    if mask is None:
        report = functools.partial(refuse, "adaptive_instance_norm")
        report_one_value(report, pool.size(x.shape), x.shape, axes)
    mean, var, _ = _moments.pooled_moments(style, style_mask, pool)
    gamma, beta = (jnp.expand_dims(v, axes) for v in (root(var + epsilon), mean))
    return normalize(x, gamma, beta, mask, Options(pool, epsilon, _axes.result_dtype(x, dtype)))[0]


def switchable_norm(
    x: ArrayLike,
    mean_weights: ArrayLike,
    var_weights: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    batch_moments: Moments | None = None,
    channel_axis: int = -1,
    epsilon: float = 1e-5,
    mask: ArrayLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, Moments]:
    """Normalizes by a learned mixture of instance, layer and batch norm's statistics.

    y = (x - sum_k w_k mean_k) / sqrt(sum_k v_k var_k + epsilon) * gamma + beta, for k of instance,
    layer, batch, with w = softmax(mean_weights), v = softmax(var_weights) and biased variances. One
    pass over `x` finds the instances' statistics, which merged are the layers' and the batch's.

    Args:
      x: floating-point or complex array of rank 3 or more, the examples on axis 0.
      mean_weights: three numbers, in the order instance, layer, batch, before the softmax.
      var_weights: three numbers as well.
      gamma: scale; one value per channel, or the rank of `x` (broadcast), or rank 0.
      beta: offset; like `gamma`.
      batch_moments: the batch's statistics in evaluation, running ones: `Moments` with one value
        per channel. Default: the batch's own.
      channel_axis: the axis of the channels.
      epsilon: added to the variance.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) that the batch is pooled over as
        well.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, in the shape of `x`, and the batch's own `Moments`, for
      `jaxnorm.update_moments`.

    Raises:
      TypeError: `x` or `dtype` is of integers, or `mask` is not boolean.
      ValueError: weights have another shape, `x` has no positions, the axis is out of range, gamma,
        beta, moments or mask does not fit, or epsilon is negative.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x, one_third = jnp.array([[[1.], [3.]], [[1.], [3.]]]), jnp.zeros(3)
      >>> y, m = jaxnorm.switchable_norm(x, one_third, one_third, epsilon=0.0)
      >>> y.tolist(), m.mean.tolist()
      ([[[-1.0], [1.0]], [[-1.0], [1.0]]], [2.0])

    Reference: Luo, Ren, Peng, Zhang & Li 2018, Differentiable Learning-to-Normalize via Switchable
    Normalization, arXiv:1806.10779.
    """
    weights = [jnp.asarray(w) for w in (mean_weights, var_weights)]
    for name, value in zip(("mean_weights", "var_weights"), weights, strict=True):
        if value.shape != (3,):
            raise ValueError(
                f"{name} must have shape (3,), for instance, layer and batch, got {value.shape}."
            )
    return _mix(
        *(x, weights, gamma, beta, None, channel_axis, batch_moments, epsilon, mask),
        *(axis_name, dtype, _switch),
    )


def batch_instance_norm(
    x: ArrayLike,
    rho: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: Axes | None = None,
    channel_axis: int = -1,
    batch_moments: Moments | None = None,
    epsilon: float = 1e-5,
    mask: ArrayLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, Moments]:
    """Mixes the results of batch norm and of instance norm.

    y = (rho * BN(x) + (1 - rho) * IN(x)) * gamma + beta, with rho limited to [0, 1], and the
    instance's statistics over `axis`, the batch's over axis 0 as well.

    Args:
      x: floating-point or complex array of rank 3 or more, the examples on axis 0.
      rho: the share of batch norm; one value per channel, or the rank of `x` (broadcast), or rank
        0. The paper starts at 1, and keeps it in [0, 1] as here, by clipping.
      gamma: scale; like `rho`.
      beta: offset; like `rho`.
      axis: the axes pooled. Default: all but axis 0 and the channels.
      channel_axis: the axis of the channels.
      batch_moments: the batch's statistics in evaluation, running ones: `Moments` without axis 0
        and `axis`. Default: the batch's own.
      epsilon: added to both variances.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) that the batch is pooled over as
        well.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, in the shape of `x`, and the batch's own `Moments`, for
      `jaxnorm.update_moments`.

    Raises:
      TypeError: `x` or `dtype` is of integers, or `mask` is not boolean.
      ValueError: `x` has no positions, an axis is out of range, given twice, the channels' or the
        first, a parameter, moments or mask does not fit, or epsilon is negative.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[[-4.], [-2.]], [[2.], [4.]]])
      >>> y, m = jaxnorm.batch_instance_norm(x, 0.0, epsilon=0.0)
      >>> y.tolist(), m.var.tolist()
      ([[[-1.0], [1.0]], [[-1.0], [1.0]]], [10.0])

    Reference: Nam & Kim 2018, Batch-Instance Normalization for Adaptively Style-Invariant Neural
    Networks, arXiv:1805.07925.
    """
    return _mix(
        *(x, rho, gamma, beta, axis, channel_axis, batch_moments, epsilon, mask),
        *(axis_name, dtype, _blend),
    )


def _mix(
    x, how, gamma, beta, axis, channel_axis, given, epsilon, mask, axis_name, dtype, formula
) -> tuple[jax.Array, Moments]:
    x = _axes.check_input(x)
    channel = _axes.canonical_axis(channel_axis, x.shape, "channel_axis")
    axes = position_axes(axis, x.shape, channel)
    if 0 in axes or channel == 0:
        raise ValueError(
            f"axis 0 of the input of shape {x.shape} holds the examples; it is neither the "
            f"channels' (channel_axis={channel_axis!r}) nor the positions' (axis={axis!r})."
        )
    gamma, beta = (
        expand_channels(value, x, channel, name)
        for value, name in ((gamma, "gamma"), (beta, "beta"))
    )
    if formula is _blend:
        how = expand_channels(how, x, channel, "rho")
    if given is not None:
        given = as_moments(given, "batch_moments")
        pair = zip(given[:2], ("batch_moments.mean", "batch_moments.var"), strict=True)
        given = tuple(expand_moment(value, x.shape, (0, *axes), name) for value, name in pair)
    mask = _axes.expand_mask(mask, x)
    pool = pool_of(axes, axis_name, None)
    options = Options(pool, _axes.check_epsilon(epsilon), _axes.result_dtype(x, dtype))
    return _mixed(x, how, gamma, beta, given, mask, options, channel, formula)


@functools.partial(jax.jit, static_argnums=(6, 7, 8), inline=True)
def _mixed(x, how, gamma, beta, given, mask, options: Options, channel: int, formula):
    pool = options.pool

    def compute(x, how, gamma, beta, given, mask):
        @recomputed
        def normalize_by_mixture(x, how, gamma, beta, given):
            # The instances' statistics are each device's own.
            own = options._replace(pool=Pool(pool.axes))
            stats, count = statistics_of(x, mask, own)
            count = jnp.broadcast_to(count, stats.var.shape)
            batch, total = merge_along(stats, count, (0,), pool.names)
            batch = SplitMoments(*map(save, batch))
            used = batch if given is None else _centered(given, x.dtype)
            centered = zero_masked(mask, subtract(x, mask, own.pool, stats.shift))
            y = formula(centered, how, stats, count, used, channel, options.epsilon)
            y = zero_masked(mask, apply_affine(y, gamma, beta, 0.0)).astype(options.dtype)
            return y, _moments.to_moments(batch, total, (0, *pool.axes))

        return normalize_by_mixture(x, how, gamma, beta, given)

    spec = spec_of(x)
    rest = jax.sharding.PartitionSpec(*(spec[a] for a in range(1, x.ndim) if a not in pool.axes))
    out = (spec, Moments(rest, rest, rest))  # pyright: ignore[reportArgumentType]
    return without_explicit_axes(compute, out)(x, how, gamma, beta, given, mask)


def _centered(moments, dtype) -> SplitMoments:
    """Returns running statistics in the form of a batch's."""
    mean, var = moments
    wide = compute_dtype(dtype)
    return SplitMoments(mean.astype(wide), None, var.astype(jnp.finfo(wide).dtype))


def _switch(centered, weights, stats, count, batch, channel, epsilon):
    """Normalizes x, less its instance's shift, by the three statistics mixed."""
    layer, _ = merge_along(stats, count, (channel,))
    real = stats.var.dtype
    means, variances = (jax.nn.softmax(w.astype(real)) for w in weights)
    # All means less the instance's shift, which x has lost already.
    rests = [rest_of(s, stats.shift) for s in (stats, layer, batch)]
    offset = sum(w.astype(r.dtype) * r for w, r in zip(means, rests, strict=True))
    var = sum(w * s.var for w, s in zip(variances, (stats, layer, batch), strict=True))
    offset, var = save(offset), save(var)
    return (centered - offset) * inverse_root(var, epsilon).astype(centered.dtype)


def _blend(centered, rho, stats, count, batch, channel, epsilon):
    """Normalizes x, less its instance's shift, by both statistics, and mixes the results."""
    del count, channel
    share = jnp.clip(rho.astype(stats.var.dtype), 0, 1)
    parts = []
    for weight, s in ((share, batch), (1 - share, stats)):
        scale = (weight * inverse_root(s.var, epsilon)).astype(centered.dtype)
        parts.append((centered - save(rest_of(s, stats.shift))) * scale)
    return parts[0] + parts[1]
