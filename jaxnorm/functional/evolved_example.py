"""EvoNorm-S: norms of one example joined to an activation, as evolution found them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, DTypeLike
from jaxnorm._core.formula import Options, apply_affine, inverse_root
from jaxnorm._core.mesh import spec_of, without_explicit_axes
from jaxnorm._core.normalize import statistics_of
from jaxnorm._core.pool import Pool, widen, zero_masked
from jaxnorm._core.residuals import recomputed
from jaxnorm.functional._arguments import REAL_ACTIVATION, check_real, expand_channels
from jaxnorm.functional.group import count_groups


def evo_norm_s0(
    x: ArrayLike,
    v: ArrayLike | None = None,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    num_groups: int = 32,
    channel_axis: int = -1,
    epsilon: float = 1e-5,
    mask: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Divides an activation by the standard deviation of groups of channels.

    y = x * sigmoid(v * x) / sqrt(var + epsilon) * gamma + beta, with the biased variance over all
    but axis 0 and within groups of neighbouring channels, as in group norm. It replaces group norm
    and the activation after it.

    Args:
      x: floating-point array of rank 1 or more.
      v: slope of the sigmoid; one value per channel, or the rank of `x` (broadcast), or rank 0.
        Default: 1, which is SiLU.
      gamma: scale; like `v`.
      beta: offset; like `v`.
      num_groups: into how many groups the channels are divided; must divide them.
      channel_axis: the axis of the channels.
      epsilon: added to the variance.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      dtype: of the result; default: that of `x`.

    Returns:
      An array in the shape of `x`.

    Raises:
      TypeError: `x` or `dtype` is of integers, `x` is complex, or `mask` is not boolean.
      ValueError: the groups do not divide the channels, the axis is out of range, a parameter or
        mask does not fit, or epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[1., 3.]])
      >>> jaxnorm.evo_norm_s0(x, 0.0, num_groups=1, epsilon=0.0).tolist()
      [[0.5, 1.5]]

    Reference: Liu, Brock, Simonyan & Le 2020, Evolving Normalization-Activation Layers,
    arXiv:2004.02967.
    """
    options = _group_options(x, num_groups, channel_axis, epsilon, dtype, center=True)
    return _by_groups(x, v, gamma, beta, channel_axis, mask, options)


def evo_norm_s1(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    num_groups: int = 32,
    channel_axis: int = -1,
    epsilon: float = 1e-5,
    mask: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Divides SiLU by the standard deviation of groups of channels.

    y = x * sigmoid(x) / sqrt(var + epsilon) * gamma + beta: `jaxnorm.evo_norm_s0` without v.

    Args:
      x: floating-point array of rank 1 or more.
      gamma: scale; one value per channel, or the rank of `x` (broadcast), or rank 0.
      beta: offset; like `gamma`.
      num_groups: into how many groups the channels are divided; must divide them.
      channel_axis: the axis of the channels.
      epsilon: added to the variance.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      dtype: of the result; default: that of `x`.

    Returns:
      An array in the shape of `x`.

    Raises:
      TypeError: `x` or `dtype` is of integers, `x` is complex, or `mask` is not boolean.
      ValueError: the groups do not divide the channels, the axis is out of range, gamma, beta or
        mask does not fit, or epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[-100., 100.]])
      >>> jaxnorm.evo_norm_s1(x, num_groups=1, epsilon=0.0).tolist()
      [[-0.0, 1.0]]

    Reference: Liu, Brock, Simonyan & Le 2020, Evolving Normalization-Activation Layers,
    arXiv:2004.02967.
    """
    options = _group_options(x, num_groups, channel_axis, epsilon, dtype, center=True)
    return _by_groups(x, None, gamma, beta, channel_axis, mask, options)


def evo_norm_s2(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    num_groups: int = 32,
    channel_axis: int = -1,
    epsilon: float = 1e-5,
    mask: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Divides SiLU by the root mean square of groups of channels.

    y = x * sigmoid(x) / sqrt(mean(x^2) + epsilon) * gamma + beta, with the mean over all but axis 0
    and within groups of neighbouring channels.

    Args:
      x: floating-point array of rank 1 or more.
      gamma: scale; one value per channel, or the rank of `x` (broadcast), or rank 0.
      beta: offset; like `gamma`.
      num_groups: into how many groups the channels are divided; must divide them.
      channel_axis: the axis of the channels.
      epsilon: added to the mean square.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      dtype: of the result; default: that of `x`.

    Returns:
      An array in the shape of `x`.

    Raises:
      TypeError: `x` or `dtype` is of integers, `x` is complex, or `mask` is not boolean.
      ValueError: the groups do not divide the channels, the axis is out of range, gamma, beta or
        mask does not fit, or epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[100., 100.]])
      >>> jaxnorm.evo_norm_s2(x, num_groups=1, epsilon=0.0).tolist()
      [[1.0, 1.0]]

    Reference: Liu, Brock, Simonyan & Le 2020, Evolving Normalization-Activation Layers,
    arXiv:2004.02967.
    """
    options = _group_options(x, num_groups, channel_axis, epsilon, dtype, center=False)
    return _by_groups(x, None, gamma, beta, channel_axis, mask, options)


def _group_options(x, num_groups, channel_axis, epsilon, dtype, *, center) -> Options:
    x = check_real(x, REAL_ACTIVATION)
    channel = _axes.canonical_axis(channel_axis, x.shape, "channel_axis")
    groups = count_groups(num_groups, None, x.shape, channel)
    positions = tuple(a for a in range(1, x.ndim) if a != channel)
    epsilon, dtype = _axes.check_epsilon(epsilon), _axes.result_dtype(x, dtype)
    return Options(Pool(positions, (channel, groups)), epsilon, dtype, center=center)


def _by_groups(x, v, gamma, beta, channel_axis, mask, options: Options):
    x = jnp.asarray(x)
    channel = _axes.canonical_axis(channel_axis, x.shape, "channel_axis")
    v, gamma, beta = (
        expand_channels(parameter, x, channel, name)
        for parameter, name in ((v, "v"), (gamma, "gamma"), (beta, "beta"))
    )
    return _activate(x, v, gamma, beta, _axes.expand_mask(mask, x), options)


@functools.partial(jax.jit, static_argnums=5, inline=True)
def _activate(x, v, gamma, beta, mask, options: Options):
    def compute(x, v, gamma, beta, mask):
        @recomputed
        def divide(x, v, gamma, beta):
            stats, _ = statistics_of(x, mask, options)
            scale = options.pool.broadcast_to_input(
                inverse_root(stats.var, options.epsilon), x.shape
            )
            wide = widen(x, mask)
            inner = wide if v is None else wide * v.astype(wide.dtype)
            y = apply_affine(wide * jax.nn.sigmoid(inner) * scale, gamma, beta, 0.0)
            return zero_masked(mask, y).astype(options.dtype)

        return divide(x, v, gamma, beta)

    return without_explicit_axes(compute, spec_of(x))(x, v, gamma, beta, mask)
