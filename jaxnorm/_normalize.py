"""Normalization by the input's own statistics: the result, its tangent, its cotangents.

y = (x - mean) / sqrt(var + epsilon) * gamma + beta, with the mean and the variance over a pool.
The tangent and the cotangents are written out, so that nothing but `x`, the parameters and the
statistics is kept for them, and each is computed in as few passes over memory as it can be.
All arrays have the rank of `x`, with size 1 where they do not vary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad

from jaxnorm import _moments
from jaxnorm._moments import Centered, Moments
from jaxnorm._plan import Plan
from jaxnorm._pool import Pool, compute_dtype, real_dtype, renumber, sum_axes, widen
from jaxnorm._primitives import Operation, Shape


class Options(NamedTuple):
    """What a normalization needs to know at trace time."""

    pool: Pool
    epsilon: float
    dtype: jnp.dtype
    center: bool = True
    gamma_offset: float = 0.0
    cast_before_gamma: bool = False


@functools.partial(jax.jit, static_argnames="options", inline=True)
def normalize(x, gamma, beta, mask, options: Options) -> tuple[jax.Array, Moments]:
    """Normalizes `x` by its own statistics over `options.pool`.

    gamma, beta and mask have the rank of `x`. Returns the result and the moments, the reduced
    axes removed; without `options.center` the moments have mean 0, and var is the mean square.
    """
    pool = options.pool
    if x.size == 0:
        return x.astype(options.dtype), _moments.empty_moments(x, pool)
    if _is_local(x, gamma, beta, mask, pool):
        y, *stats = _forward(x, gamma, beta, mask, options=options, keeps_statistics=False)
        stats, count = Centered(*stats), _moments.local_count(x, mask, pool)
    else:
        y, stats, count = _recomputed(x, gamma, beta, mask, options)
    return y, _moments.to_moments(stats, count, pool.axes)


def _is_local(x, gamma, beta, mask, pool: Pool) -> bool:
    """Whether the primitives serve: real input, no named axes, no types that name a mesh.

    Inside `jax.shard_map` and with explicit sharding, the types of arrays say how they lie on
    the mesh, and JAX derives those of the results only through its own operations.
    """
    if pool.names or jnp.iscomplexobj(x):
        return False
    auto = jax.sharding.AxisType.Auto
    return all(
        kind == auto
        for value in (x, gamma, beta, mask)
        if value is not None
        for kind in jax.typeof(value).sharding.mesh.axis_types
    )


def _recomputed(x, gamma, beta, mask, options: Options):
    """Normalizes by JAX's own derivatives, computing all but the statistics again for them."""

    @functools.partial(jax.checkpoint, policy=_moments.save_only_statistics)
    def compute(x, gamma, beta):
        stats, count = statistics(x, mask, options)
        stats = Centered(*map(_moments.save, stats))
        return result(x, gamma, beta, mask, stats, options), stats, count

    return compute(x, gamma, beta)


def statistics(x, mask, options: Options) -> tuple[Centered, jax.Array]:
    """Returns the statistics of each pool and the count."""
    find = _moments.centered_moments if options.center else _moments.mean_square
    return find(x, mask, options.pool)


def inverse_root(var: jax.Array, epsilon: float) -> jax.Array:
    """Returns 1 / sqrt(var + epsilon), and 0 with gradient 0 where that is infinite."""
    radicand = var + epsilon
    if epsilon > 0:
        return lax.rsqrt(radicand)
    positive = radicand > 0
    return jnp.where(positive, lax.rsqrt(jnp.where(positive, radicand, 1)), 0)


def full_gamma(gamma, gamma_offset: float, dtype) -> jax.Array:
    """Returns gamma + gamma_offset in `dtype`; 1 without either."""
    if gamma is None:
        return jnp.asarray(gamma_offset or 1, dtype)
    return gamma.astype(dtype) + gamma_offset if gamma_offset else gamma.astype(dtype)


def apply_affine(y, gamma, beta, gamma_offset: float, round_to=None) -> jax.Array:
    """Returns y * (gamma + gamma_offset) + beta, in the dtype of `y`.

    `round_to` is a narrower dtype that `y` is rounded to before gamma is applied.
    """
    if round_to is not None and round_to != y.dtype:
        # A cast there and back would be removed by XLA, which may keep excess precision.
        info = jnp.finfo(round_to)
        y = lax.reduce_precision(y, info.nexp, info.nmant)
    if gamma is not None or gamma_offset:
        y = y * full_gamma(gamma, gamma_offset, y.dtype)
    return y if beta is None else y + beta.astype(y.dtype)


def keep(mask, x) -> jax.Array:
    """Returns `x` with zeros in the masked slots."""
    return x if mask is None else jnp.where(mask, x, 0)


def normalized(x, mask, stats: Centered, options: Options) -> jax.Array:
    """Returns x_hat = (x - mean) / sqrt(var + epsilon), in float32 or wider."""
    centered = _centered(x, mask, stats, options)
    inv = options.pool.spread(inverse_root(stats.var, options.epsilon), x.shape)
    return keep(mask, centered * inv.astype(centered.dtype))


def result(x, gamma, beta, mask, stats: Centered, options: Options) -> jax.Array:
    """Returns y for given statistics."""
    y = normalized(x, mask, stats, options)
    round_to = x.dtype if options.cast_before_gamma else None
    y = apply_affine(y, gamma, beta, options.gamma_offset, round_to)
    return keep(mask, y).astype(options.dtype)


def forward(x, gamma, beta, mask, *, options: Options, plan: Plan, keeps_statistics: bool):
    """Returns y and the statistics: shift, offset and var."""
    pool = options.pool
    stats = saved = _find_statistics(x, mask, options, plan)
    if plan.separate and plan.fuse_rows and _takes_rows(gamma, pool) and not keeps_statistics:
        # XLA on CPU can find the statistics of rows and use them in one loop, but not return
        # them from it as well; nothing is likely to need them.
        x, mask = plan.next_pass(*plan.next_pass(x, mask))
        stats = _find_statistics(x, mask, options, plan._replace(separate=False))
    elif plan.separate:
        x, gamma, beta, mask, *parts = plan.next_pass(x, gamma, beta, mask, *stats)
        stats = Centered(*parts)
    return (result(x, gamma, beta, mask, stats, options), *saved)


def _find_statistics(x, mask, options: Options, plan: Plan) -> Centered:
    pool = options.pool
    if not options.center:
        return _moments.mean_square(x, mask, pool, plan)[0]
    if mask is not None or not plan.one_device:
        return _moments.centered_moments(x, mask, pool, plan)[0]
    if plan.separate:
        return _moments.quick_moments(x, pool, plan)
    element = pool.largest(x) if plan.fuse_rows else pool.first(x)
    return _moments.moments_from(element, x, pool, plan)


def _takes_rows(gamma, pool: Pool) -> bool:
    """Whether gamma takes several values along the pooled axes, or only groups are pooled."""
    return not pool.axes or _varies_within(gamma, pool)


def _varies_within(parameter, pool: Pool) -> bool:
    """Whether gamma or beta takes several values along the pooled axes."""
    return parameter is not None and any(parameter.shape[a] != 1 for a in pool.axes)


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
        correlation = pool.sum(x_hat * dx, plan) / count
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

    def summed(axes, times):
        """Sums dy or its product over axes, in a pass of its own."""
        nonlocal x, mask, dy
        # Each pass starts from the last one's copy: XLA would merge two equal barriers.
        x, mask, dy, *parts = plan.next_pass(x, mask, dy, *stats)
        terms = widen(dy, mask)
        if times is not None:
            terms = terms * times(x, mask, Centered(*parts), options)
        return sum_axes(terms, axes, plan)

    dgamma = dbeta = linear = cross = None
    # Where gamma has one value along the pooled axes, sums over these serve all three.
    columns = bool(pool.axes) and not _varies_within(gamma, pool)
    if dy is None:
        if gamma_axes is not None:
            dgamma = jnp.zeros(_reduced_shape(x.shape, gamma_axes), wide)
        if beta_axes is not None:
            dbeta = jnp.zeros(_reduced_shape(x.shape, beta_axes), wide)
    else:
        if columns:
            wanted = want_x or gamma_axes is not None
            if options.center and (wanted or beta_axes is not None):
                linear = summed(pool.axes, None)
            if wanted:
                cross = summed(pool.axes, _shifted if plan.separate else _centered)
                if plan.separate and linear is not None:
                    # The shift of a large input lies so near the mean that what is left of it can
                    # be taken from the sum. That of a small one is its first element.
                    cross = cross - pool.spread(stats.offset, dy.shape) * linear
                inv = inverse_root(stats.var, options.epsilon)
                cross = cross * pool.spread(inv, dy.shape)
        if gamma_axes is not None:
            if cross is None:
                dgamma = summed(gamma_axes, normalized)
            else:
                dgamma = sum_axes(cross, [a for a in gamma_axes if a not in pool.axes], plan)
        if beta_axes is not None:
            if linear is None or not _contains(beta_axes, pool.axes, dy.shape):
                dbeta = summed(beta_axes, None)
            else:
                dbeta = sum_axes(linear, [a for a in beta_axes if a not in pool.axes], plan)
    dx = None
    if want_x:
        find = _cotangent_by_columns if columns else _cotangent_by_rows
        dx = find(x, gamma, mask, stats, dy, doffset, dvar, cross, linear, options, plan)
        dx = keep(mask, dx).astype(x.dtype)
    return dx, dgamma, dbeta


def _contains(outer, inner, shape) -> bool:
    return all(a in outer or shape[a] == 1 for a in inner)


def _centered(x, mask, stats: Centered, options: Options) -> jax.Array:
    """Returns x - shift - offset, without those that are None, in float32 or wider."""
    wide = widen(x, mask)
    for part in (stats.shift, stats.offset):
        if part is not None:
            wide = wide - options.pool.spread(part, x.shape)
    return wide


def _shifted(x, mask, stats: Centered, options: Options) -> jax.Array:
    """Returns x - shift, whose products with dy need one subtraction less than those of x_hat."""
    return _centered(x, mask, stats._replace(offset=None), options)


def _cotangent_by_rows(
    x, gamma, mask, stats: Centered, dy, doffset, dvar, cross, linear, options: Options, plan: Plan
):
    """Returns the cotangent of x, from sums over the pools taken here."""
    del cross, linear
    pool, wide = options.pool, compute_dtype(x.dtype)
    count = jnp.maximum(_moments.local_count(x, mask, pool, plan), 1)
    x, gamma, mask, dy, *parts = plan.next_pass(x, gamma, mask, dy, *stats)
    stats = Centered(*parts)
    spread = functools.partial(pool.spread, shape=x.shape)
    inv = inverse_root(stats.var, options.epsilon)
    x_hat = normalized(x, mask, stats, options)
    dx = jnp.zeros_like(x_hat)
    if dy is not None:
        u = widen(dy, mask) * full_gamma(gamma, options.gamma_offset, wide)
        cross, linear = pool.sum(u * x_hat, plan), None
        if not plan.fuse_rows:
            x, gamma, mask, dy, cross, *parts = plan.next_pass(x, gamma, mask, dy, cross, *stats)
            u = widen(dy, mask) * full_gamma(gamma, options.gamma_offset, wide)
        if options.center:
            linear = pool.sum(u, plan)
        if not plan.fuse_rows:
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
    x, gamma, mask, stats: Centered, dy, doffset, dvar, cross, linear, options: Options, plan: Plan
):
    """Returns the cotangent of x as scale * dy + slope * (x - shift) + level.

    All but dy and x - shift is known per channel, from the sums `cross` and `linear`.
    """
    pool, wide = options.pool, compute_dtype(x.dtype)
    spread = functools.partial(pool.spread, shape=x.shape)
    count = jnp.maximum(_moments.local_count(x, mask, pool, plan), 1)
    scale, slope, level = None, jnp.zeros((), wide), jnp.zeros((), wide)
    if dy is not None:
        within = pool._replace(axes=())
        gamma = full_gamma(gamma, options.gamma_offset, wide)
        inv = inverse_root(stats.var, options.epsilon)
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
        x, mask, dy, stats.shift, scale, slope, level
    )
    dx = _shifted(x, mask, stats._replace(shift=shift), options) * slope
    if dy is not None:
        dx = dx + widen(dy, mask) * scale
    return dx if level is None else dx + level


def _reduced_shape(shape, axes) -> tuple[int, ...]:
    return tuple(1 if a in axes else s for a, s in enumerate(shape))


def _statistics_shape(x, options: Options) -> tuple[Shape | None, Shape | None, Shape]:
    shape = _reduced_shape(x.shape, options.pool.axes)
    if options.pool.groups is not None:
        channel, parts = options.pool.groups
        shape = (*shape[:channel], parts, *shape[channel + 1 :])
    mean = Shape(shape, compute_dtype(x.dtype)) if options.center else None
    return mean, mean, Shape(shape, real_dtype(x.dtype))


def _forward_shapes(x, gamma, beta, mask, *, options, keeps_statistics):
    return (Shape(x.shape, options.dtype), *_statistics_shape(x, options))


def _tangent_shapes(x, gamma, mask, shift, offset, var, dx, dgamma, dbeta, *, options):
    main = x if dx is None else dx
    _, doffset, dvar = _statistics_shape(main, options)
    y = Shape(main.shape, options.dtype)
    return (y, None, None) if dx is None else (y, doffset, dvar)


def _cotangent_shapes(
    x, gamma, mask, shift, offset, var, dy, doffset, dvar, *, options, gamma_axes, beta_axes, want_x
):
    main = x if dy is None else dy
    wide = compute_dtype(x.dtype)
    return (
        Shape(main.shape, x.dtype) if want_x else None,
        None if gamma_axes is None else Shape(_reduced_shape(main.shape, gamma_axes), wide),
        None if beta_axes is None else Shape(_reduced_shape(main.shape, beta_axes), wide),
    )


def _renumber(params: dict[str, Any], number: Callable[[int], int]) -> dict[str, Any]:
    options = params["options"]
    params = {**params, "options": options._replace(pool=options.pool.renumber(number))}
    for name in ("gamma_axes", "beta_axes"):
        if params.get(name) is not None:
            params[name] = renumber(params[name], number)
    return params


def _role(params: dict[str, Any], axis: int) -> Any:
    """Returns what a computation does with an axis; neighbours with one role are like one axis."""
    pool = params["options"].pool
    if pool.groups is not None and axis == pool.groups[0]:
        return "channels"
    sums = (params.get("gamma_axes") or (), params.get("beta_axes") or ())
    return (axis in pool.axes, *(axis in axes for axes in sums))


_define = functools.partial(Operation, renumber=_renumber, role=_role)
_forward = _define("normalize", forward, _forward_shapes, main=(0,))
_tangent = _define("normalize_tangent", tangent, _tangent_shapes, main=(6, 0))
_cotangents = _define("normalize_cotangents", cotangents, _cotangent_shapes, main=(6, 0))


@_forward.def_jvp
def _forward_jvp(operands, tangents, *, options, keeps_statistics):
    del keeps_statistics  # the derivatives need them
    x, gamma, beta, mask = operands
    dx, dgamma, dbeta, _ = tangents
    y, *stats = _forward(x, gamma, beta, mask, options=options, keeps_statistics=True)
    dy, doffset, dvar = _tangent(x, gamma, mask, *stats, dx, dgamma, dbeta, options=options)
    return (y, *stats), (dy, None, doffset, dvar)


@_tangent.def_transpose
def _tangent_transpose(cotangents, operands, *, options):
    *fixed, dx, dgamma, dbeta = operands
    dy = cotangents[0]
    shape = fixed[0].shape if dy is None else dy.shape

    def summed(parameter):
        if not ad.is_undefined_primal(parameter):
            return None
        sizes = parameter.aval.shape
        return tuple(a for a, s in enumerate(sizes) if s != shape[a])

    ct_x, ct_gamma, ct_beta = _cotangents(
        *fixed,
        *cotangents,
        options=options,
        gamma_axes=summed(dgamma),
        beta_axes=summed(dbeta),
        want_x=ad.is_undefined_primal(dx),
    )
    if ct_gamma is not None:
        ct_gamma = ct_gamma.astype(dgamma.aval.dtype)
    if ct_beta is not None:
        ct_beta = ct_beta.astype(dbeta.aval.dtype)
    return (*(None for _ in fixed), ct_x, ct_gamma, ct_beta)


@_cotangents.def_transpose
def _cotangents_transpose(cotangents, operands, *, options, gamma_axes, beta_axes, want_x):
    *fixed, dy, doffset, dvar = operands
    ct_x, ct_gamma, ct_beta = cotangents
    results = _tangent(*fixed, ct_x, ct_gamma, ct_beta, options=options)
    wanted = zip((dy, doffset, dvar), results, strict=True)
    return (*(None for _ in fixed), *(r if ad.is_undefined_primal(o) else None for o, r in wanted))
