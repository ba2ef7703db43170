"""The tangent and the cotangents of a normalization by the input's own statistics.

They are written out, so that nothing but `x`, the parameters and the statistics is kept for them,
and each is computed in as few passes over memory as it can be. All arrays have the rank of `x`,
with size 1 where they do not vary.
"""

from __future__ import annotations

import functools
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxnorm._core import moments as _moments
from jaxnorm._core.formula import Options, full_gamma, inverse_root, normalized
from jaxnorm._core.moments import Centered
from jaxnorm._core.plan import Plan
from jaxnorm._core.pool import compute_dtype, keep, reduced_shape, subtract, sum_axes, widen


class Inputs(NamedTuple):
    """The arrays of full size that cotangents are computed from."""

    x: jax.Array
    mask: jax.Array | None
    dy: jax.Array | None


def tangent(x, gamma, mask, shift, offset, var, dx, dgamma, dbeta, *, options: Options, plan: Plan):
    """Returns the tangents of y, offset and var; linear in dx, dgamma and dbeta.

    With P the mean over the pool and x_hat the normalized x,
    dy = (dx - P(dx) - x_hat P(x_hat dx)) / sqrt(var + epsilon) * gamma + x_hat * dgamma + dbeta,
    doffset = P(dx) and dvar = 2 P((x - mean) dx); without centering, no P(dx).
    """
    pool = options.pool
    x_hat = normalized(x, mask, Centered(shift, offset, var), options)
    dy, doffset, dvar = jnp.zeros_like(x_hat), None, None
    if dx is not None:
        spread = functools.partial(pool.spread, shape=dx.shape)
        dx = widen(dx, mask)
        count = jnp.maximum(_moments.local_count(x, mask, pool, plan), 1)
        inv = inverse_root(var, options.epsilon)
        correlation = pool.sum(x_hat * dx, plan.of_products()) / count
        dvar = 2 * correlation / _nonzero(inv)
        dy = dx - x_hat * spread(correlation)
        if options.center:
            doffset = pool.sum(dx, plan) / count
            dy = dy - spread(doffset)
        dy = dy * spread(inv) * full_gamma(gamma, options.gamma_offset, dy.dtype)
    if dgamma is not None:
        dy = dy + x_hat * dgamma.astype(x_hat.dtype)
    if dbeta is not None:
        dy = dy + dbeta.astype(x_hat.dtype)
    return keep(mask, dy).astype(options.dtype), doffset, dvar


def _nonzero(inv: jax.Array) -> jax.Array:
    """Returns `inv` with 1 where it is 0: there x - mean = x_hat / inv is 0."""
    return jnp.where(inv > 0, inv, 1)


def cotangents(
    x,
    gamma,
    mask,
    shift,
    offset,
    var,
    dy,
    doffset,
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
    dx = (u - P(u) - x_hat P(x_hat u)) / sqrt(var + epsilon) + (doffset + 2 (x - mean) dvar) / n,
    dgamma = sum(dy x_hat) over `gamma_axes` and dbeta = sum(dy) over `beta_axes` (None: not
    wanted), both in float32 or wider.
    """
    pool, stats = options.pool, Centered(shift, offset, var)
    wide = compute_dtype(x.dtype)
    count = jnp.maximum(_moments.local_count(x, mask, pool, plan), 1)
    original = Inputs(x, mask, dy)
    if mask is not None and plan.separate:
        # For all sums at once: XLA on CPU has no fast loops that select and sum.
        x, dy = plan.next_pass(keep(mask, x), None if dy is None else keep(mask, dy))
        mask = None

    # Where gamma has one value along the pooled axes, sums over these serve all three.
    columns = not pool.is_by_rows(gamma)

    def shifted(x, mask, stats):
        return subtract(x, mask, pool, stats.shift)

    def centered(x, mask, stats):
        return subtract(x, mask, pool, stats.shift, stats.offset)

    def x_hat(x, mask, stats):
        return normalized(x, mask, stats, options)

    def summed(axes, times):
        """Sums dy or its product over axes, in a pass of its own."""
        nonlocal x, mask, dy
        # Each pass starts from the last one's copy: XLA would merge two equal barriers.
        x, mask, dy, *parts = plan.next_pass(x, mask, dy, *stats)
        terms = widen(dy, mask)
        if times is None:
            return sum_axes(terms, axes, plan)
        parts = plan.unshared(*parts) if columns else parts
        return sum_axes(terms * times(x, mask, Centered(*parts)), axes, plan.of_products())

    dgamma = dbeta = linear = cross = None
    if dy is None:
        if gamma_axes is not None:
            dgamma = jnp.zeros(reduced_shape(x.shape, gamma_axes), wide)
        if beta_axes is not None:
            dbeta = jnp.zeros(reduced_shape(x.shape, beta_axes), wide)
    else:
        if columns:
            wanted = want_x or gamma_axes is not None
            if options.center and (wanted or beta_axes is not None):
                linear = summed(pool.axes, None)
            if wanted:
                near = plan.separate or _waits_for_no_mean(plan)
                cross = summed(pool.axes, shifted if near else centered)
                if near and linear is not None:
                    # The shift lies so near the mean that what is left of it can be taken from the
                    # sum. That of a small input on CPU is its first element.
                    cross = cross - pool.spread(stats.offset, dy.shape) * linear
                inv = inverse_root(stats.var, options.epsilon, plan)
                cross = cross * pool.spread(inv, dy.shape)
        if gamma_axes is not None:
            if cross is None:
                dgamma = summed(gamma_axes, x_hat)
            else:
                dgamma = sum_axes(cross, [a for a in gamma_axes if a not in pool.axes], plan)
        if beta_axes is not None:
            if linear is None or not _contains(beta_axes, pool.axes, dy.shape):
                dbeta = summed(beta_axes, None)
            else:
                dbeta = sum_axes(linear, [a for a in beta_axes if a not in pool.axes], plan)
    dx = None
    if want_x:
        given = gamma, stats, doffset, dvar, count
        if columns:
            dx = _cotangent_by_columns(*original, *given, cross, linear, options, plan)
        else:
            dx = _cotangent_by_rows(original, Inputs(x, mask, dy), *given, options, plan)
        dx = keep(original.mask, dx).astype(x.dtype)
    return dx, dgamma, dbeta


def _waits_for_no_mean(plan: Plan) -> bool:
    """Whether sums of the backward pass are of x - shift, and not of x - mean.

    XLA on GPU takes them in one kernel with the sums of the forward pass then, if it sees both.
    """
    return not plan.separate and not plan.one_device


def _contains(outer, inner, shape) -> bool:
    return all(a in outer or shape[a] == 1 for a in inner)


def _cotangent_by_rows(
    original: Inputs,
    selected: Inputs,
    gamma,
    stats: Centered,
    doffset,
    dvar,
    count,
    options: Options,
    plan: Plan,
):
    """Returns the cotangent of x, from sums over the pools taken here, of `selected`."""
    pool = options.pool
    x, mask, dy = selected
    wide = compute_dtype(x.dtype)
    x, gamma, mask, dy, *parts = plan.next_pass(x, gamma, mask, dy, *stats)
    stats = Centered(*parts)
    spread = functools.partial(pool.spread, shape=x.shape)
    inv = inverse_root(stats.var, options.epsilon)
    x_hat = normalized(x, mask, stats, options)
    dx = jnp.zeros_like(x_hat)
    if dy is not None:
        u = widen(dy, mask) * full_gamma(gamma, options.gamma_offset, wide)
        early, linear = _waits_for_no_mean(plan), None
        terms = subtract(x, mask, pool, stats.shift) if early else x_hat
        cross = pool.sum(u * terms, plan.of_products())
        x, gamma, mask, dy, cross, *parts = plan.next_pass(x, gamma, mask, dy, cross, *stats)
        u = widen(dy, mask) * full_gamma(gamma, options.gamma_offset, wide)
        if options.center:
            linear = pool.sum(u, plan.of_products())
        if early:
            if linear is not None:
                cross = cross - cast(jax.Array, stats.offset) * linear
            cross = cross * inv
        if original.mask is not None:
            x, mask, dy = original
        x, gamma, mask, dy, cross, linear, *parts = plan.next_pass(
            x, gamma, mask, dy, cross, linear, *parts
        )
        u = widen(dy, mask) * full_gamma(gamma, options.gamma_offset, wide)
        x_hat = normalized(x, mask, Centered(*parts), options)
        dx = u - x_hat * spread(cross / count)
        if linear is not None:
            dx = dx - spread(linear / count)
        dx = dx * spread(inv)
    if doffset is not None:
        dx = dx + spread(doffset / count)
    if dvar is not None:
        dx = dx + x_hat * spread(2 * dvar / (_nonzero(inv) * count))
    return dx


def _cotangent_by_columns(
    x,
    mask,
    dy,
    gamma,
    stats: Centered,
    doffset,
    dvar,
    count,
    cross,
    linear,
    options: Options,
    plan: Plan,
):
    """Returns the cotangent of x as scale * dy + slope * (x - shift) + level.

    All but dy and x - shift is known per channel, from the sums `cross` and `linear`.
    """
    pool, wide = options.pool, compute_dtype(x.dtype)
    spread = functools.partial(pool.spread, shape=x.shape)
    scale, slope, level = None, jnp.zeros((), wide), jnp.zeros((), wide)
    if dy is not None:
        within = pool._replace(axes=())
        gamma = full_gamma(gamma, options.gamma_offset, wide)
        inv = inverse_root(stats.var, options.epsilon, plan)
        scale = spread(inv) * gamma
        slope = -inv * inv * within.sum(cross * gamma) / count
        if options.center:
            level = -inv * within.sum(linear * gamma) / count
    if dvar is not None:
        slope = slope + 2 * dvar / count
    if options.center:
        # In terms of x - shift instead of x - mean.
        level = level - slope * cast(jax.Array, stats.offset)
        if doffset is not None:
            level = level + doffset / count
    if slope.ndim:
        slope = spread(slope)
    level = spread(level) if options.center else None
    x, mask, dy, shift, scale, slope, level = plan.next_pass(
        x, mask, dy, *plan.unshared(stats.shift), scale, slope, level
    )
    dx = subtract(x, mask, pool, shift) * slope
    if dy is not None:
        dx = dx + widen(dy, mask) * scale
    return dx if level is None else dx + level
