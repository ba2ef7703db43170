"""y = (x - mean) / sqrt(var + epsilon) * gamma + beta, for given statistics.

All arrays have the rank of `x`, with size 1 where they do not vary.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._core.plain import is_plain
from jaxnorm._core.pool import Pool, subtract, unit_axes, zero_masked
from jaxnorm._core.split_moments import SplitMoments


class Options(NamedTuple):
    """What a normalization needs to know at trace time."""

    pool: Pool
    epsilon: float
    dtype: jnp.dtype
    center: bool = True
    gamma_offset: float = 0.0
    cast_before_gamma: bool = False


def inverse_root(var: jax.Array, epsilon: float) -> jax.Array:
    """Returns 1 / sqrt(var + epsilon), and 0 with gradient 0 where that is infinite."""
    ones = unit_axes(var.shape)
    radicand = jnp.squeeze(var, ones) + epsilon
    if epsilon > 0:
        return jnp.expand_dims(lax.rsqrt(radicand), ones)
    positive = radicand > 0
    inv = jnp.where(positive, lax.rsqrt(jnp.where(positive, radicand, 1)), 0)
    return jnp.expand_dims(inv, ones)


def root(radicand: jax.Array) -> jax.Array:
    """Returns the root, with gradient 0 where it is 0."""
    positive = radicand > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, radicand, 1)), 0)


def full_gamma(gamma, gamma_offset: float, dtype) -> jax.Array:
    """Returns gamma + gamma_offset in `dtype`; 1 without either."""
    if gamma is None:
        return jnp.asarray(gamma_offset or 1, dtype)
    return gamma.astype(dtype) + gamma_offset if gamma_offset else gamma.astype(dtype)


def apply_affine(y, gamma, beta, gamma_offset: float, round_to=None) -> jax.Array:
    """Returns y * (gamma + gamma_offset) + beta, in the dtype of `y`.

    `round_to` is a narrower dtype that `y` is rounded to before gamma is applied.
    """
    if round_to is not None and is_plain():
        y = y.astype(round_to).astype(y.dtype)
    elif round_to is not None and round_to != y.dtype:
        # A cast there and back would be removed by XLA, which may keep excess precision.
        info = jnp.finfo(round_to)
        y = lax.reduce_precision(y, info.nexp, info.nmant)
    if gamma is not None or gamma_offset:
        y = y * full_gamma(gamma, gamma_offset, y.dtype)
    return y if beta is None else y + beta.astype(y.dtype)


def normalized(x, mask, stats: SplitMoments, options: Options) -> jax.Array:
    """Returns x_hat = (x - mean) / sqrt(var + epsilon), in float32 or wider."""
    centered = subtract(x, mask, options.pool, stats.shift, stats.offset)
    inv = options.pool.broadcast_to_input(inverse_root(stats.var, options.epsilon), x.shape)
    return zero_masked(mask, centered * inv.astype(centered.dtype))


def result(x, gamma, beta, mask, stats: SplitMoments, options: Options) -> jax.Array:
    """Returns y for given statistics."""
    if options.cast_before_gamma:
        y = normalized(x, mask, stats, options)
        y = apply_affine(y, gamma, beta, options.gamma_offset, x.dtype)
    else:
        centered = subtract(x, mask, options.pool, stats.shift, stats.offset)
        inv = options.pool.broadcast_to_input(inverse_root(stats.var, options.epsilon), x.shape)
        scale = inv.astype(centered.dtype)
        if gamma is not None or options.gamma_offset:
            # Gamma first: where it varies as the statistics do, one product for each of them.
            scale = scale * full_gamma(gamma, options.gamma_offset, centered.dtype)
        y = apply_affine(centered * scale, None, beta, 0.0)
    return zero_masked(mask, y).astype(options.dtype)
