"""The tangent and the cotangents of a normalization by the input's own statistics.

They are written out, so that nothing but `x`, the parameters and the statistics is kept for them.
All arrays have the rank of `x`, with size 1 where they do not vary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._core.formula import Options, full_gamma, inverse_root, normalized
from jaxnorm._core.plan import Plan
from jaxnorm._core.pool import compute_dtype, reduced_shape, widen, zero_masked
from jaxnorm._core.split_moments import SplitMoments
from jaxnorm._core.statistics import local_count
from jaxnorm._core.sums import sum_axes


def tangent(x, gamma, mask, shift, offset, var, dx, dgamma, dbeta, *, options: Options, plan: Plan):
    """Returns the tangents of y, the mean and var; linear in dx, dgamma and dbeta.

    With P the mean over the pool and x_hat the normalized x,
    dy = (dx - P(dx) - x_hat P(x_hat dx)) / sqrt(var + epsilon) * gamma + x_hat * dgamma + dbeta,
    dmean = P(dx) and dvar = 2 P((x - mean) dx); without centering, no P(dx).
    """
    pool = options.pool
    x_hat = normalized(x, mask, SplitMoments(shift, offset, var), options)
    dy, dmean, dvar = jnp.zeros_like(x_hat), None, None
    if dx is not None:
        dx = widen(dx, mask)
        count = jnp.maximum(local_count(x, mask, pool, plan), 1)
        inv = inverse_root(var, options.epsilon)
        correlation = pool.sum(x_hat * dx, plan) / count
        dvar = 2 * correlation / _nonzero(inv)
        dy = dx - x_hat * pool.broadcast_to_input(correlation, dx.shape)
        if options.center:
            dmean = pool.sum(dx, plan) / count
            dy = dy - pool.broadcast_to_input(dmean, dx.shape)
        dy = (
            dy
            * pool.broadcast_to_input(inv, dx.shape)
            * full_gamma(gamma, options.gamma_offset, dy.dtype)
        )
    if dgamma is not None:
        dy = dy + x_hat * dgamma.astype(x_hat.dtype)
    if dbeta is not None:
        dy = dy + dbeta.astype(x_hat.dtype)
    return zero_masked(mask, dy).astype(options.dtype), dmean, dvar


def cotangents(
    x,
    gamma,
    mask,
    shift,
    offset,
    var,
    dy,
    dmean,
    dvar,
    *,
    options: Options,
    plan: Plan,
    gamma_axes: tuple[int, ...] | None,
    beta_axes: tuple[int, ...] | None,
    want_x: bool,
):
    """Returns the cotangents of x, gamma and beta: the transpose of `tangent`.

    With P the mean over the pool and u = dy * gamma,
    dx = (u - P(u) - x_hat P(x_hat u)) / sqrt(var + epsilon) + (dmean + 2 (x - mean) dvar) / n,
    dgamma = sum(dy x_hat) over `gamma_axes` and dbeta = sum(dy) over `beta_axes` (None: not
    wanted), both in float32 or wider.
    """
    pool, wide = options.pool, compute_dtype(x.dtype)
    gamma = full_gamma(gamma, options.gamma_offset, wide)
    count = jnp.maximum(local_count(x, mask, pool, plan), 1)
    dgamma = None if gamma_axes is None else jnp.zeros(reduced_shape(x.shape, gamma_axes), wide)
    dbeta = None if beta_axes is None else jnp.zeros(reduced_shape(x.shape, beta_axes), wide)
    level = slope = jnp.zeros((), wide)
    arrays, stats = (x, mask, dy), SplitMoments(shift, offset, var)

    def next_pass(*others):
        """Returns dy, x_hat and the others for another pass over the arrays."""
        nonlocal arrays, stats
        # From the last pass's arrays: XLA would merge two barriers of the same ones.
        arrays, (stats, *others) = plan.next_pass(arrays, (stats, *others))
        x, mask, dy = arrays
        dy = None if dy is None else widen(dy, mask)
        return dy, normalized(x, mask, stats, options), *others

    def sums(axes, gamma, next_pass=next_pass):
        """Returns the sums of gamma * dy (None: of dy) and of that times x_hat over `axes`."""

        def weighted(dy: Any, gamma: Any) -> Any:
            return dy if gamma is None else gamma * dy

        dy, _, factor = next_pass(gamma)
        linear = sum_axes(weighted(dy, factor), axes, plan)
        dy, x_hat, factor = next_pass(gamma)
        return linear, sum_axes(weighted(dy, factor) * x_hat, axes, plan)

    pass_of_pool = next_pass
    if plan.is_one_kernel(pool, x.shape):
        once = next_pass(gamma)
        gamma = once[2]

        def pass_of_pool(*others):
            return *once[:2], *others

    within = pool._replace(axes=())  # the groups' channels
    if dy is not None and pool.varies_within(gamma):
        level, slope = (within.sum(s, plan) for s in sums(pool.axes, gamma, pass_of_pool))
    elif dy is not None:
        # Gamma has one value for all that is summed: two sums serve all three cotangents.
        linear, cross = sums(pool.axes, None, pass_of_pool)
        factor: Any = gamma
        level, slope = (within.sum(factor * s, plan) for s in (linear, cross))
        if gamma_axes is not None:
            dgamma = sum_axes(cross, gamma_axes, plan)
        if beta_axes is not None and _contains(beta_axes, pool.axes, x.shape):
            dbeta = sum_axes(linear, beta_axes, plan)
        elif beta_axes is not None:
            dbeta, _ = sums(beta_axes, None)
    dx = None
    if want_x:
        # What multiplies x_hat and what is added, for each pool.
        inv = inverse_root(stats.var, options.epsilon)
        slope, level = -slope * inv / count, -level * inv / count
        if dvar is not None:
            slope = slope + 2 * dvar / (_nonzero(inv) * count)
        if dmean is not None:
            level = level + dmean / count
        wide_dy, x_hat, slope, level, gamma = pass_of_pool(slope, level, gamma)
        dx = x_hat * pool.broadcast_to_input(slope, x.shape)
        if wide_dy is not None:
            dx = dx + wide_dy * (pool.broadcast_to_input(inv, x.shape) * gamma)
        if options.center:
            dx = dx + pool.broadcast_to_input(level, x.shape)
        dx = zero_masked(mask, dx).astype(x.dtype)
    if dy is not None and pool.varies_within(gamma):
        if gamma_axes is not None:
            _, dgamma = sums(gamma_axes, None)
        if beta_axes is not None:
            dbeta, _ = sums(beta_axes, None)
    return dx, dgamma, dbeta


def _nonzero(inv: jax.Array) -> jax.Array:
    """Returns `inv` with 1 where it is 0: there x - mean = x_hat / inv is 0."""
    return jnp.where(inv > 0, inv, 1)


def _contains(outer, inner, shape) -> bool:
    return all(a in outer or shape[a] == 1 for a in inner)
