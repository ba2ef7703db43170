"""Normalizations by the responses nearby: in neighbouring channels, or around each position."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.flags import check_flag
from jaxnorm._core.formula import apply_affine, inverse_root
from jaxnorm._core.mesh import spec_of, without_explicit_axes
from jaxnorm._core.plan import PORTABLE
from jaxnorm._core.pool import Pool, abs2, real_dtype, subtract, widen, zero_masked
from jaxnorm._core.residuals import recomputed
from jaxnorm._core.statistics import mean_of
from jaxnorm.functional._window import window_count, window_sum


def local_response_norm(
    x: ArrayLike,
    *,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    channel_axis: int = -1,
    average: bool = True,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Divides each response by the size of those at its place in neighbouring channels.

    y = x / (k + alpha * mean(|x|^2)) ** beta, with the mean over a window of `size` channels,
    size // 2 before and (size - 1) // 2 after; outside there are zeros, which count.

    Libraries differ in the window's lopsidedness where `size` is even (here PyTorch's; ONNX's is
    the other way round) and in `average` (TensorFlow and the paper: False). With its backward pass
    it takes as long as thirty copies of the input on CPU, as the formula by hand does: a power and
    four sums over windows; layer norm takes ten.

    Args:
      x: floating-point or complex array of rank 1 or more.
      size: channels in a window.
      alpha: what the mean or the sum is multiplied by.
      beta: the exponent.
      k: what the response itself is divided by.
      channel_axis: the axis of the channels.
      average: whether to take the mean over the window, or else the sum.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, in the shape of `x`.

    Raises:
      TypeError: `x` or `dtype` is of integers.
      ValueError: the size is not positive, or the axis is out of range.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([1., 0., 1.])
      >>> jaxnorm.local_response_norm(x, size=3, alpha=3.0, beta=1.0).tolist()
      [0.5, 0.0, 0.5]

    Reference: Krizhevsky, Sutskever & Hinton 2012, ImageNet Classification with Deep Convolutional
    Neural Networks; as one of the divisive normalizations in Ren et al. 2016, arXiv:1611.04520.
    """
    x = _axes.check_input(x)
    channel = _axes.canonical_axis(channel_axis, x.shape, "channel_axis")
    if _axes.check_int(size, "size") < 1:
        raise ValueError(f"size must be at least 1, got {size!r}.")
    scale = float(alpha) / int(size) if check_flag(average, "average") else float(alpha)
    dtype = _axes.result_dtype(x, dtype)
    return _local_response_norm(x, channel, int(size), scale, float(beta), float(k), dtype)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5, 6), inline=True)
def _local_response_norm(x, channel, size, alpha, beta, k, dtype):
    @recomputed
    def compute(x):
        wide = widen(x, None)
        total = window_sum(abs2(wide), {channel: (size // 2, (size - 1) // 2)})
        base = k + alpha * total
        positive = base > 0
        scale = jnp.where(positive, jnp.where(positive, base, 1) ** -beta, 0)
        return (wide * scale.astype(wide.dtype)).astype(dtype)

    return without_explicit_axes(compute, spec_of(x))(x)


def divisive_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: Axes,
    window: int | Sequence[int],
    sigma: ArrayLike = 1.0,
    center: bool = True,
    mask: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Normalizes each element by those in a window around it.

    v = x - mean(x) and y = v / sqrt(sigma^2 + mean(|v|^2)) * gamma + beta, each mean over the
    window around the element, in which only elements inside the array count. Over the positions of
    an image it is local contrast normalization; over channels, layer norm with a short reach.

    Sums are taken along one axis after the other, so that the cost grows little with the window:
    over two axes of an image, with the backward pass on CPU, 40 copies of the input for a window of
    15 and 50 for 31. On the way are up to six arrays of the input's size, nine for prime windows.

    Args:
      x: floating-point or complex array of rank 1 or more.
      gamma: scale; one value for each place on the last axis, or the rank of `x` (broadcast), or
        rank 0.
      beta: offset; like `gamma`.
      axis: the axes that windows extend along.
      window: how long they are, an odd number; one for each axis in the order of `axis`, or one for
        all.
      sigma: what keeps weak responses small; a number, or an array like `gamma`, which may be
        learned.
      center: whether to subtract the mean.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, in the shape of `x`.

    Raises:
      TypeError: `x` or `dtype` is of integers, or `mask` is not boolean.
      ValueError: a window is even or there are more or fewer than axes, an axis is out of range or
        given twice, or gamma, beta, sigma or mask does not fit.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([1., 1., 4., 1., 1.])
      >>> y = jaxnorm.divisive_norm(x, axis=0, window=3)
      >>> y.round(3).tolist()
      [0.0, -0.612000048160553, 1.15500009059906, -0.612000048160553, 0.0]

    References: Ren, Liao, Urtasun, Sinz & Zemel 2016, Normalizing the Normalizers,
    arXiv:1611.04520; Jarrett, Kavukcuoglu, Ranzato & LeCun 2009, What is the Best Multi-Stage
    Architecture for Object Recognition (local contrast normalization).
    """
    x = _axes.check_input(x)
    reach = _check_windows(axis, window, x.shape)
    last = (x.ndim - 1,)
    gamma = _axes.expand_parameter(gamma, x, None, last, "gamma")
    beta = _axes.expand_parameter(beta, x, None, last, "beta")
    sigma = _axes.expand_parameter(sigma, x, None, last, "sigma")
    mask = _axes.expand_mask(mask, x)
    dtype = _axes.result_dtype(x, dtype)
    return _divisive_norm(x, gamma, beta, sigma, mask, reach, check_flag(center, "center"), dtype)


def _check_windows(axis, window, shape) -> tuple[tuple[int, int], ...]:
    """Returns pairs of an axis and how far the window reaches to either side along it."""
    axes = _axes.canonical_axes(axis, shape)
    given = tuple(axis) if isinstance(axis, Sequence) else (axis,)
    windows = tuple(window) if isinstance(window, Sequence) else (window,) * len(axes)
    if len(windows) != len(axes):
        raise ValueError(
            f"window={window!r} has {len(windows)} sizes for axis={axis!r}; give one for each axis "
            "in that order, or a single one for all."
        )
    sizes = [_axes.check_int(size, "window") for size in windows]
    if any(size < 1 or size % 2 == 0 for size in sizes):
        raise ValueError(f"window={window!r} must be odd and positive: it has a middle.")
    pairs = zip(given, sizes, strict=True)
    return tuple(sorted((a % len(shape), size // 2) for a, size in pairs))


@functools.partial(jax.jit, static_argnums=(5, 6, 7), inline=True)
def _divisive_norm(x, gamma, beta, sigma, mask, reach, center, dtype):
    def compute(x, gamma, beta, sigma, mask):
        windows = {axis: (side, side) for axis, side in reach}
        real = real_dtype(x.dtype)

        @recomputed
        def divide(x, gamma, beta, sigma):
            count = jnp.maximum(window_count(mask, x.shape, windows, real), 1)

            def mean(v):
                return window_sum(zero_masked(mask, v), windows) / count.astype(v.dtype)

            rest = widen(x, mask)
            if center:
                # Less the mean over all the axes first: sums of small numbers are exact.
                pool = Pool(tuple(windows))
                shift = jax.lax.stop_gradient(mean_of(x, mask, pool, PORTABLE)[0])
                rest = zero_masked(mask, subtract(x, mask, pool, shift))
                rest = zero_masked(mask, rest - mean(rest))
            var = mean(abs2(rest)) + jnp.square(sigma.astype(real))
            y = rest * inverse_root(var, 0.0).astype(rest.dtype)
            return zero_masked(mask, apply_affine(y, gamma, beta, 0.0)).astype(dtype)

        return divide(x, gamma, beta, sigma)

    arrays = (x, gamma, beta, sigma, mask)
    return without_explicit_axes(compute, spec_of(x))(*arrays)
