"""Normalizations by the size of responses: p-norms, and mean squares over positions."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.formula import Options, apply_affine, inverse_root
from jaxnorm._core.mesh import spec_of, without_explicit_axes
from jaxnorm._core.normalize import normalize, statistics_of
from jaxnorm._core.pool import Pool, widen, zero_masked
from jaxnorm._core.residuals import recomputed, save
from jaxnorm.functional._arguments import (
    check_real,
    expand_channels,
    position_axes,
)
from jaxnorm.functional._length import Length, length_of


def lp_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    p: float = 2,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-12,
    mask: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Divides vectors by their p-norm.

    y = x / max(|x|_p, epsilon) * gamma, with |x|_p = sum(|x|^p)^(1/p) over `axis`. A vector of
    zeros stays zero, also with epsilon 0. With a gamma of rank 0, initially sqrt(n) for n elements,
    it is ScaleNorm.

    Args:
      x: floating-point or complex array of rank 1 or more.
      gamma: scale; has the sizes of `x` along `feature_axes` in ascending order, or the rank of
        `x` (broadcast), or rank 0.
      axis: the axes that the norm is taken over, in any order and sign.
      p: the order of the norm, at least 1; `math.inf` is the largest absolute value.
      feature_axes: the axes that gamma varies along. Default: those in `axis` (the last axis for a
        gamma of rank 1 where `axis` has several).
      epsilon: the smallest number that is divided by.
      mask: boolean, broadcasts against `x`; elements where it is False do not count and give 0.
      dtype: of the result; default: that of `x`.

    Returns:
      The vectors of length gamma, in the shape of `x`.

    Raises:
      TypeError: `x` or `dtype` is of integers, or `mask` is not boolean.
      ValueError: p is less than 1, an axis is out of range or given twice, gamma or mask does not
        fit, or epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[3., 4.], [0., 0.]])
      >>> jaxnorm.lp_norm(x).round(6).tolist()
      [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
      >>> jaxnorm.lp_norm(x, p=jnp.inf).tolist()
      [[0.75, 1.0], [0.0, 0.0]]

    Reference: Nguyen & Salazar 2019, Transformers without Tears (ScaleNorm), arXiv:1910.05895.
    """
    x = _axes.check_input(x)
    axes = _axes.canonical_axes(axis, x.shape)
    if not float(p) >= 1:
        raise ValueError(f"p must be at least 1, got {p!r}; use math.inf for the largest value.")
    gamma = _axes.expand_parameter(gamma, x, feature_axes, axes, "gamma")
    mask = _axes.expand_mask(mask, x)
    epsilon, dtype = _axes.check_epsilon(epsilon), _axes.result_dtype(x, dtype)
    return _lp_norm(x, gamma, mask, axes, float(p), epsilon, dtype)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6), inline=True)
def _lp_norm(x, gamma, mask, axes, p, epsilon, dtype):
    def compute(x, gamma, mask):
        @recomputed
        def divide(x, gamma):
            wide = widen(x, mask)
            length = Length(*map(save, length_of(wide, axes, p)))
            y = wide * _inverse(length, epsilon).astype(wide.dtype)
            return zero_masked(mask, apply_affine(y, gamma, None, 0.0)).astype(dtype)

        return divide(x, gamma)

    return without_explicit_axes(compute, spec_of(x))(x, gamma, mask)


def _inverse(length: Length, epsilon: float) -> jax.Array:
    """Returns 1 / max(length, epsilon), and 0 where that is infinite."""
    unit, rest = length
    # In units: a length beyond the largest number has an inverse, too.
    divisor = jnp.maximum(rest, epsilon / unit)
    positive = divisor > 0
    return jnp.where(positive, 1 / jnp.where(positive, divisor, 1), 0) / unit


def filter_response_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    tau: ArrayLike | None = None,
    axis: Axes | None = None,
    channel_axis: int = -1,
    epsilon: float = 1e-6,
    learned_epsilon: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Divides each channel of each example by the root mean square over its positions.

    y = x / sqrt(mean(|x|^2) + epsilon + |learned_epsilon|) * gamma + beta, with the mean over
    `axis`, and max(y, tau) if tau is given, the thresholded linear unit that the paper activates
    by. Batch norm without the batch, nor the mean.

    Args:
      x: floating-point array, or complex without tau, of rank 1 or more.
      gamma: scale; one value per channel, or the rank of `x` (broadcast), or rank 0.
      beta: offset; like `gamma`.
      tau: the smallest result; like `gamma`.
      axis: the axes pooled. Default: all but axis 0 and the channels; none of them after a dense
        layer, where a learned epsilon is needed.
      channel_axis: the axis of the channels.
      epsilon: added to the mean square.
      learned_epsilon: added to it as well, its absolute value; like `gamma`. The paper's starts at
        1e-4.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, in the shape of `x`.

    Raises:
      TypeError: `x` or `dtype` is of integers, `x` is complex and tau given, or `mask` is not
        boolean.
      ValueError: an axis is out of range, given twice or the channels', a parameter or mask does
        not fit, or epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[[6.], [-8.], [0.], [0.]]])
      >>> jaxnorm.filter_response_norm(x, epsilon=39.0, tau=-0.5).tolist()
      [[[0.75], [-0.5], [0.0], [0.0]]]

    Reference: Singh & Krishnan 2019, Filter Response Normalization Layer, arXiv:1911.09737.
    """
    x = _axes.check_input(x) if tau is None else check_real(x, "no complex number is the larger")
    channel = _axes.canonical_axis(channel_axis, x.shape, "channel_axis")
    axes = position_axes(axis, x.shape, channel, allow_empty=True)
    gamma, beta, tau, learned_epsilon = (
        expand_channels(parameter, x, channel, name)
        for parameter, name in (
            (gamma, "gamma"),
            (beta, "beta"),
            (tau, "tau"),
            (learned_epsilon, "learned_epsilon"),
        )
    )
    mask = _axes.expand_mask(mask, x)
    dtype = _axes.result_dtype(x, dtype)
    options = Options(Pool(axes), _axes.check_epsilon(epsilon), dtype, center=False)
    if tau is None and learned_epsilon is None:
        return normalize(x, gamma, beta, mask, options)[0]
    return _filter_response_norm(x, gamma, beta, tau, learned_epsilon, mask, options)


@functools.partial(jax.jit, static_argnums=6, inline=True)
def _filter_response_norm(x, gamma, beta, tau, learned, mask, options: Options):
    def compute(x, gamma, beta, tau, learned, mask):
        @recomputed
        def divide(x, gamma, beta, tau, learned):
            stats, _ = statistics_of(x, mask, options)
            radicand = stats.var + options.epsilon
            if learned is not None:
                radicand = radicand + jnp.abs(learned.astype(radicand.dtype))
            wide = widen(x, mask)
            y = apply_affine(
                wide * inverse_root(radicand, 0.0).astype(wide.dtype), gamma, beta, 0.0
            )
            y = y if tau is None else jnp.maximum(y, tau.astype(y.dtype))
            return zero_masked(mask, y).astype(options.dtype)

        return divide(x, gamma, beta, tau, learned)

    arrays = (x, gamma, beta, tau, learned, mask)
    return without_explicit_axes(compute, spec_of(x))(*arrays)


def global_response_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: Axes | None = None,
    channel_axis: int = -1,
    epsilon: float = 1e-6,
    mask: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Scales each channel by its size relative to the other channels'.

    y = gamma * x * N + beta + x, with N = G / (mean(G) + epsilon), G = sqrt(sum(|x|^2)) of each
    channel over `axis` and its mean over the channels. Channels compete: it keeps them from
    becoming alike. With gamma and beta that start at zero it starts as the identity.

    Args:
      x: floating-point or complex array of rank 2 or more.
      gamma: scale; one value per channel, or the rank of `x` (broadcast), or rank 0. Default: 1.
      beta: offset; like `gamma`.
      axis: the axes that G sums over. Default: all but axis 0 and the channels.
      channel_axis: the axis of the channels.
      epsilon: added to the mean of G.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0,
        and channels without any are left out of the mean of G.
      dtype: of the result; default: that of `x`.

    Returns:
      An array in the shape of `x`.

    Raises:
      TypeError: `x` or `dtype` is of integers, or `mask` is not boolean.
      ValueError: there is no axis to pool, an axis is out of range, given twice or the channels',
        gamma, beta or mask does not fit, or epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[[3., 0.], [4., 15.]]])
      >>> jaxnorm.global_response_norm(x, epsilon=0.0).tolist()
      [[[4.5, 0.0], [6.0, 37.5]]]

    Reference: Woo et al. 2023, ConvNeXt V2, arXiv:2301.00808.
    """
    x = _axes.check_input(x)
    channel = _axes.canonical_axis(channel_axis, x.shape, "channel_axis")
    axes = position_axes(axis, x.shape, channel)
    gamma = expand_channels(gamma, x, channel, "gamma")
    beta = expand_channels(beta, x, channel, "beta")
    mask = _axes.expand_mask(mask, x)
    epsilon, dtype = _axes.check_epsilon(epsilon), _axes.result_dtype(x, dtype)
    return _global_response_norm(x, gamma, beta, mask, axes, channel, epsilon, dtype)


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7), inline=True)
def _global_response_norm(x, gamma, beta, mask, axes, channel, epsilon, dtype):
    def compute(x, gamma, beta, mask):
        @recomputed
        def scale(x, gamma, beta):
            wide = widen(x, mask)
            unit, rest = length_of(wide, axes)
            # Relative to the largest channel, sums of huge lengths are finite.
            largest = jax.lax.stop_gradient(jnp.max(unit, channel, keepdims=True))
            size = rest * (unit / largest)
            mean = _channel_mean(size, mask, axes, channel)
            divisor = mean + epsilon / largest
            positive = divisor > 0
            relative = save(size / jnp.where(positive, divisor, 1))
            y = apply_affine(wide * relative.astype(wide.dtype), gamma, beta, 0.0) + wide
            return zero_masked(mask, y).astype(dtype)

        return scale(x, gamma, beta)

    return without_explicit_axes(compute, spec_of(x))(x, gamma, beta, mask)


def _channel_mean(size: jax.Array, mask, axes, channel: int) -> jax.Array:
    """Returns the mean over the channels that have any element."""
    if mask is None:
        return jnp.mean(size, channel, keepdims=True)
    held = jnp.broadcast_to(jnp.any(mask, axes, keepdims=True), size.shape)
    count = jnp.sum(held.astype(size.dtype), channel, keepdims=True)
    return jnp.sum(jnp.where(held, size, 0), channel, keepdims=True) / jnp.maximum(count, 1)
