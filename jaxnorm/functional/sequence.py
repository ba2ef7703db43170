"""Norms of sequences that see the past alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.formula import Options, apply_affine, inverse_root
from jaxnorm._core.mesh import spec_of, without_explicit_axes
from jaxnorm._core.moments import Moments
from jaxnorm._core.normalize import statistics_of
from jaxnorm._core.pool import Pool, abs2, compute_dtype, real_dtype, widen, zero_masked
from jaxnorm._core.residuals import recomputed, save
from jaxnorm._core.standardize import expand_moment
from jaxnorm.functional._merged import rest_of
from jaxnorm.functional._restored import as_moments
from jaxnorm.functional.merge import merge_moments


def cumulative_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: Axes,
    time_axis: int = 1,
    initial: Moments | None = None,
    epsilon: float = 1e-6,
    mask: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, Moments]:
    """Normalizes each step of a sequence by the statistics of all steps up to it.

    y_t = (x_t - mean_t) / sqrt(var_t + epsilon) * gamma + beta, with the mean and the biased
    variance over `axis` and all times up to t: of exactly those elements, by sums about the mean up
    to each time (Welford's), none of which cancels another. No step sees a later one, so that a
    stream can be normalized as it comes: give the moments that one chunk returned as `initial` of
    the next. Of a stream without end a float32 count stops growing in the end
    (`jaxnorm.merge_moments` says where), and the moments with it.

    Args:
      x: floating-point or complex array of rank 1 or more.
      gamma: scale; has the sizes of `x` along `axis` without the time, in ascending order (the last
        axis for a gamma of rank 1 where those are several), or the rank of `x` (broadcast), or
        rank 0.
      beta: offset; like `gamma`.
      axis: the axes pooled at each time; whether `time_axis` is among them does not matter.
      time_axis: the axis of the times.
      initial: the `Moments` of what came before, which have the shape of `x` without the axes
        pooled and the time. Default: nothing.
      epsilon: added to the variance.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, in the shape of `x`, and the `Moments` of all times, with `initial`.

    Raises:
      TypeError: `x` or `dtype` is of integers, or `mask` is not boolean.
      ValueError: an axis is out of range or given twice, gamma, beta, initial or mask does not fit,
        or epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[[1., 3.], [3., 1.], [-4., -4.]]])
      >>> y, m = jaxnorm.cumulative_norm(x, axis=-1, epsilon=0.0)
      >>> y[:, :2].tolist(), m.mean.tolist(), m.count.tolist()
      ([[[-1.0, 1.0], [1.0, -1.0]]], [0.0], [6.0])

    Reference: layer norm (Ba, Kiros & Hinton 2016, arXiv:1607.06450) of all that was seen so far;
    cumulative layer norm in Luo & Mesgarani 2018, Conv-TasNet, arXiv:1809.07454.
    """
    x = _axes.check_input(x)
    time = _axes.canonical_axis(time_axis, x.shape, "time_axis")
    axes = _axes.canonical_axes(axis, x.shape, allow_empty=True)
    axes = tuple(a for a in axes if a != time)
    gamma, beta = (
        _axes.expand_parameter(p, x, None, axes, name)
        for p, name in ((gamma, "gamma"), (beta, "beta"))
    )
    if initial is not None:
        initial = _expand_initial(initial, x, tuple(sorted((*axes, time))))
    mask = _axes.expand_mask(mask, x)
    epsilon, dtype = _axes.check_epsilon(epsilon), _axes.result_dtype(x, dtype)
    options = Options(Pool(axes), epsilon, dtype)
    return _cumulative_norm(x, gamma, beta, initial, mask, options, time)


def _expand_initial(initial, x, axes) -> Moments:
    """Returns earlier moments at the rank of `x`, in its dtype for statistics."""
    mean, var, count = map(jnp.asarray, as_moments(initial, "initial"))
    count = jnp.broadcast_to(count, var.shape)
    mean, var, count = (
        expand_moment(value, x.shape, axes, f"initial.{name}")
        for value, name in ((mean, "mean"), (var, "var"), (count, "count"))
    )
    real = real_dtype(x.dtype)
    return Moments(mean.astype(compute_dtype(x.dtype)), var.astype(real), count.astype(real))


@functools.partial(jax.jit, static_argnums=(5, 6), inline=True)
def _cumulative_norm(x, gamma, beta, initial, mask, options: Options, time: int):
    axes = tuple(sorted((*options.pool.axes, time)))

    def compute(x, gamma, beta, initial, mask):
        @recomputed
        def normalize(x, gamma, beta, initial):
            stats, count = statistics_of(x, mask, options)
            count = jnp.broadcast_to(count, stats.var.shape)
            start = _start(stats.shift, count, initial, time)
            steps = Moments(rest_of(stats, start), stats.var, count)
            past = _cumulate(steps, time)
            if initial is not None:
                past = merge_moments(initial._replace(mean=initial.mean - start), past)
            past = Moments(*map(save, past))
            rest = widen(x, mask) - start - past.mean
            y = rest * inverse_root(past.var, options.epsilon).astype(rest.dtype)
            y = zero_masked(mask, apply_affine(y, gamma, beta, 0.0)).astype(options.dtype)
            last = (lax.slice_in_dim(v, x.shape[time] - 1, None, axis=time) for v in past)
            last = Moments(*last)
            last = last._replace(mean=jnp.where(last.count > 0, last.mean + start, 0))
            return y, Moments(*(jnp.squeeze(v, axes) for v in last))

        return normalize(x, gamma, beta, initial)

    spec = spec_of(x)
    rest = jax.sharding.PartitionSpec(*(spec[a] for a in range(x.ndim) if a not in axes))
    out = (spec, Moments(rest, rest, rest))  # pyright: ignore[reportArgumentType]
    return without_explicit_axes(compute, out)(x, gamma, beta, initial, mask)


def _cumulate(steps: Moments, time: int) -> Moments:
    """Returns the moments of all steps up to each: as if they were merged, by three running sums.

    A step adds to the squares its own, and that of its distance from the mean before it.
    """
    mean, var, count = steps
    kind, real = mean.dtype, var.dtype
    mean = jnp.where(count > 0, mean, 0)
    total = jnp.cumsum(count, time)
    divisor = jnp.maximum(total, 1)
    past = jnp.cumsum(mean * count.astype(kind), time) / divisor.astype(kind)
    first = jnp.zeros_like(lax.slice_in_dim(past, 0, 1, axis=time))
    earlier = lax.slice_in_dim(past, 0, past.shape[time] - 1, axis=time)
    earlier = lax.concatenate([first, earlier], time)
    apart = abs2(mean - earlier) * (count * ((total - count) / divisor))
    squares = jnp.cumsum(var * count + apart, time, dtype=real)
    return Moments(past, squares / divisor, total)


def _start(shift, count, initial, time: int) -> jax.Array:
    """Returns a constant near the means: that of what came before, or of the first step.

    None from the future: what is not yet known must not change a bit.
    """
    held = count > 0
    is_first = held & (jnp.cumsum(held.astype(jnp.int32), axis=time) == 1)
    start = jnp.sum(jnp.where(is_first, shift, 0), time, keepdims=True)
    if initial is not None:
        start = jnp.where(initial.count > 0, initial.mean, start)
    return lax.stop_gradient(start)
