"""Normalization by the input's own statistics, as primitives that know their derivatives.

y = (x - mean) / sqrt(var + epsilon) * gamma + beta, with the mean and the variance over a pool.
All arrays have the rank of `x`, with size 1 where they do not vary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad

from jaxnorm._core import moments as _moments
from jaxnorm._core.derivatives import cotangents, tangent
from jaxnorm._core.formula import Options, result
from jaxnorm._core.mapped import fuse_beta_collective, mapped_statistics
from jaxnorm._core.mesh import is_manual, spec_of, without_explicit_axes
from jaxnorm._core.moments import Moments
from jaxnorm._core.plain import is_plain
from jaxnorm._core.plan import Plan
from jaxnorm._core.pool import Pool, compute_dtype, real_dtype, reduced_shape
from jaxnorm._core.primitive import Operation, Shape
from jaxnorm._core.residuals import recomputed, save
from jaxnorm._core.rows import SMALLEST_SCALED_EPSILON, rows_in_one_kernel
from jaxnorm._core.split_moments import SplitMoments, is_narrow
from jaxnorm._core.statistics import compute_statistics, local_count


@functools.partial(jax.jit, static_argnames="options", inline=True)
def normalize(x, gamma, beta, mask, options: Options, shift_hint=None) -> tuple[jax.Array, Moments]:
    """Normalizes `x` by its own statistics over `options.pool`.

    gamma, beta and mask have the rank of `x`, and so has `near`, with size 1 along the pooled axes:
    any value gives the same result, one near the means the fastest. Returns the result and the
    moments, the reduced axes removed; without `options.center` the moments have mean 0, and var is
    the mean square.
    """
    pool = options.pool
    if x.size == 0:
        return x.astype(options.dtype), _moments.empty_moments(x, pool)
    way = _by_primitives if has_primitives(x, pool) else _recomputed
    compute = functools.partial(way, options=options)
    return without_explicit_axes(compute, (spec_of(x), _moments.moments_specs(x, mask, pool)))(
        x, gamma, beta, mask, shift_hint
    )


def has_primitives(x, pool: Pool) -> bool:
    """Whether primitives can compute it.

    Not inside `plain()`. They know neither complex numbers, nor sums over mapped axes, nor types
    that say along which axes of a mesh an array varies.
    """
    return not (is_plain() or pool.names or jnp.iscomplexobj(x) or is_manual(x))


def statistics_of(x, mask, options: Options, shift_hint=None) -> tuple[SplitMoments, jax.Array]:
    """Returns the statistics of each pool, marked to be kept, and the count."""
    if not has_primitives(x, options.pool):
        return mapped_statistics(x, mask, shift_hint, options)
    # The compiler drops y, which nothing uses. With a wide result the mean has two parts.
    options = options._replace(dtype=compute_dtype(x.dtype))
    _, *stats = _forward(x, None, None, mask, shift_hint, options=options, statistics_unused=False)
    return SplitMoments(*map(save, stats)), local_count(x, mask, options.pool)


def _by_primitives(x, gamma, beta, mask, shift_hint, options: Options) -> tuple[jax.Array, Moments]:
    """Normalizes by primitives that keep only the statistics beside the input."""
    y, *stats = _forward(x, gamma, beta, mask, shift_hint, options=options, statistics_unused=True)
    count = local_count(x, mask, options.pool)
    return y, _moments.to_moments(SplitMoments(*stats), count, options.pool.axes)


def _recomputed(x, gamma, beta, mask, shift_hint, options: Options) -> tuple[jax.Array, Moments]:
    """Normalizes by JAX's own derivatives, computing all but the statistics again for them."""

    @recomputed
    def compute(x, gamma, beta):
        stats, count = statistics_of(x, mask, options, shift_hint)
        bias, given = fuse_beta_collective(gamma, beta, stats, options)
        if is_narrow(x.dtype, options.dtype):
            given = given.with_one_mean()
        y = result(x, gamma, bias, mask, given, options)
        return y, _moments.to_moments(stats, count, options.pool.axes)

    return compute(x, gamma, beta)


def forward(
    x, gamma, beta, mask, shift_hint, *, options: Options, plan: Plan, statistics_unused: bool
):
    """Returns y and the statistics: shift, offset and var. If `alone`, nothing else needs those.

    In half precision the shift is the mean and there is no offset.
    """
    pool = options.pool
    plan = plan.of_pool(pool, x.shape, statistics_unused)
    if mask is None and plan.is_one_kernel(pool, x.shape, statistics_unused):
        if options.center and statistics_unused and options.epsilon >= SMALLEST_SCALED_EPSILON:
            return rows_in_one_kernel(x, gamma, beta, options, plan)
        if not options.center:
            plan = plan._replace(barrier=None)
    one_mean = is_narrow(x.dtype, options.dtype)
    stats, _ = compute_statistics(
        x, mask, pool, shift_hint, plan, center=options.center, one_mean=one_mean
    )
    (x, mask), again = plan.next_pass((x, mask), stats)
    return (result(x, gamma, beta, mask, again, options), *stats)


def _statistics_shapes(x, options: Options) -> tuple[Shape | None, Shape | None, Shape]:
    shape = options.pool.statistic_shape(x.shape)
    mean = Shape(shape, compute_dtype(x.dtype)) if options.center else None
    offset = None if is_narrow(x.dtype, options.dtype) else mean
    return mean, offset, Shape(shape, real_dtype(x.dtype))


def _forward_shapes(x, gamma, beta, mask, shift_hint, *, options, statistics_unused):
    return (Shape(x.shape, options.dtype), *_statistics_shapes(x, options))


def _tangent_shapes(x, gamma, mask, shift, offset, var, dx, dgamma, dbeta, *, options):
    batched_operand = x if dx is None else dx
    dmean, _, dvar = _statistics_shapes(batched_operand, options)
    y = Shape(batched_operand.shape, options.dtype)
    return (y, None, None) if dx is None else (y, dmean, dvar)


def _cotangent_shapes(
    x, gamma, mask, shift, offset, var, dy, dmean, dvar, *, options, gamma_axes, beta_axes, want_x
):
    batched_operand = x if dy is None else dy
    wide = compute_dtype(x.dtype)
    return (
        Shape(batched_operand.shape, x.dtype) if want_x else None,
        None
        if gamma_axes is None
        else Shape(reduced_shape(batched_operand.shape, gamma_axes), wide),
        None if beta_axes is None else Shape(reduced_shape(batched_operand.shape, beta_axes), wide),
    )


def _renumber(params: dict[str, Any], number: Callable[[int], int]) -> dict[str, Any]:
    options = params["options"]
    params = {**params, "options": options._replace(pool=options.pool.renumber(number))}
    for name in ("gamma_axes", "beta_axes"):
        if params.get(name) is not None:
            params[name] = tuple(dict.fromkeys(map(number, params[name])))
    return params


def _kinds(rank: int, *, options: Options, gamma_axes=None, beta_axes=None, **params):
    """Returns for each axis whether it is pooled, summed over for gamma and beta, or grouped."""
    del params
    pool = options.pool
    channel = () if pool.groups is None else pool.groups[:1]
    sets = pool.axes, gamma_axes or (), beta_axes or (), channel
    return [tuple(axis in axes for axes in sets) for axis in range(rank)]


_forward = Operation("normalize", forward, _forward_shapes, _renumber, (0,), _kinds)
_tangent = Operation("normalize_tangent", tangent, _tangent_shapes, _renumber, (6, 0), _kinds)
_cotangents = Operation(
    "normalize_cotangents", cotangents, _cotangent_shapes, _renumber, (6, 0), _kinds
)


@_forward.def_jvp
def _forward_jvp(operands, tangents, *, options, statistics_unused):
    del statistics_unused  # the derivatives need the statistics
    x, gamma, _, mask, _ = operands
    dx, dgamma, dbeta, _, _ = tangents
    y, *stats = _forward(*operands, options=options, statistics_unused=False)
    stats = [save(s) for s in stats]  # or `jax.checkpoint` would find them again
    dy, dmean, dvar = _tangent(x, gamma, mask, *stats, dx, dgamma, dbeta, options=options)
    # The derivative of shift + offset: of the last of the two that there is.
    dmeans = (dmean, None) if stats[1] is None else (None, dmean)
    return (y, *stats), (dy, *dmeans, dvar)


@_tangent.def_transpose
def _tangent_transpose(given, operands, *, options):
    *fixed, dx, dgamma, dbeta = operands
    dy = given[0]
    shape = fixed[0].shape if dy is None else dy.shape

    def summed(parameter):
        if not ad.is_undefined_primal(parameter):
            return None
        sizes = parameter.aval.shape
        return tuple(a for a, s in enumerate(sizes) if s != shape[a])

    ct_x, ct_gamma, ct_beta = _cotangents(
        *fixed,
        *given,
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
def _cotangents_transpose(given, operands, *, options, gamma_axes, beta_axes, want_x):
    *fixed, dy, dmean, dvar = operands
    ct_x, ct_gamma, ct_beta = given
    results = _tangent(*fixed, ct_x, ct_gamma, ct_beta, options=options)
    wanted = zip((dy, dmean, dvar), results, strict=True)
    return (*(None for _ in fixed), *(r if ad.is_undefined_primal(o) else None for o, r in wanted))
