"""Normalization by the input's own statistics, as primitives that know their derivatives.

y = (x - mean) / sqrt(var + epsilon) * gamma + beta, with the mean and the variance over a pool.
All arrays have the rank of `x`, with size 1 where they do not vary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad

from jaxnorm._core import moments as _moments
from jaxnorm._core.derivatives import cotangents, tangent
from jaxnorm._core.formula import Options, result
from jaxnorm._core.moments import Centered, Moments
from jaxnorm._core.plan import PORTABLE, Plan
from jaxnorm._core.pool import Pool, compute_dtype, real_dtype, reduced_shape, renumber
from jaxnorm._core.primitive import Operation, Shape


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


def statistics(x, mask, options: Options, plan: Plan = PORTABLE) -> tuple[Centered, jax.Array]:
    """Returns the statistics of each pool and the count."""
    find = _moments.centered_moments if options.center else _moments.mean_square
    return find(x, mask, options.pool, plan)


def forward(x, gamma, beta, mask, *, options: Options, plan: Plan, keeps_statistics: bool):
    """Returns y and the statistics: shift, offset and var."""

    def finish(x, stats):
        return (result(x, gamma, beta, mask, stats, options, plan), *stats)

    def finish_in_one_loop(x, stats):
        # XLA on CPU cannot return the statistics from this loop too. Nothing is likely to need
        # them; where something does, they are those of what looks like another array.
        (again,) = plan.next_pass(x)
        return (_in_one_loop(again, gamma, beta, options, plan), *stats)

    if not keeps_statistics:
        if mask is None and (plan.fuse_moments if options.center else plan.fuse_rows):
            stats = _find_statistics(x, mask, options, plan._replace(separate=False))
            return finish_in_one_loop(x, stats)
        if _has_quick_sums(x, mask, options, plan):
            exact = finish_in_one_loop if mask is None and plan.fuse_rows else finish
            return _moments.use_quick_moments(finish, x, mask, options.pool, plan, exact)
        if plan.fuse_rows:
            # Each row is read once: a sample would be another pass.
            plan = plan._replace(sample=False)
    stats = _find_statistics(x, mask, options, plan)
    x, gamma, beta, mask, *parts = plan.next_pass(x, gamma, beta, mask, *plan.unshared(*stats))
    return (result(x, gamma, beta, mask, Centered(*parts), options, plan), *stats)


def _in_one_loop(x, gamma, beta, options: Options, plan: Plan) -> jax.Array:
    """Returns y, which XLA on CPU computes row by row, the statistics of a row and their use."""
    pool, plan = options.pool, plan._replace(separate=False)
    if options.center:
        # This loop cannot slice, and is slower with a first element that is given to it.
        stats = _moments.moments_from(pool.largest(x), x, pool, plan)
    else:
        stats, _ = _moments.mean_square(x, None, pool, plan)
    return result(x, gamma, beta, None, stats, options, plan)


def _has_quick_sums(x, mask, options: Options, plan: Plan) -> bool:
    """Whether to try sums of x and x^2 first.

    In slices, sums about an element are as fast, but where it has to be spread over channels.
    """
    pool = options.pool
    as_fast = plan.slices and mask is None and pool.groups is None and pool.is_sliced(x.shape)
    return options.center and plan.separate and plan.one_device and not as_fast


def _find_statistics(x, mask, options: Options, plan: Plan) -> Centered:
    pool = options.pool
    if _has_quick_sums(x, mask, options, plan):
        return _moments.use_quick_moments(lambda x, stats: stats, x, mask, pool, plan)
    if options.center and plan.one_device and mask is None:
        return _moments.moments_from(pool.first(x), x, pool, plan)
    return statistics(x, mask, options, plan)[0]


def _statistics_shape(x, options: Options) -> tuple[Shape | None, Shape | None, Shape]:
    shape = options.pool.statistic_shape(x.shape)
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
        None if gamma_axes is None else Shape(reduced_shape(main.shape, gamma_axes), wide),
        None if beta_axes is None else Shape(reduced_shape(main.shape, beta_axes), wide),
    )


def _renumber(params: dict[str, Any], number: Callable[[int], Sequence[int]]) -> dict[str, Any]:
    options = params["options"]
    params = {**params, "options": options._replace(pool=options.pool.renumber(number))}
    for name in ("gamma_axes", "beta_axes"):
        if params.get(name) is not None:
            params[name] = renumber(params[name], number)
    return params


def _role(params: dict[str, Any], axis: int) -> Any:
    """Returns what a computation does with an axis; neighbours with one role are like one axis.

    The channels that groups are made of stay as they are: None.
    """
    pool = params["options"].pool
    if pool.groups is not None and axis == pool.groups[0]:
        return None
    sums = (params.get("gamma_axes") or (), params.get("beta_axes") or ())
    return (axis in pool.axes, *(axis in axes for axes in sums))


def _sums(params: dict[str, Any]) -> list[tuple[int, ...]]:
    """Returns the axes of each sum: that of the statistics first."""
    given = (params.get("gamma_axes"), params.get("beta_axes"))
    return [params["options"].pool.axes, *(axes for axes in given if axes is not None)]


_define = functools.partial(Operation, renumber=_renumber, role=_role, sums=_sums)
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
    *fixed, dy, doffset, dvar = operands
    ct_x, ct_gamma, ct_beta = given
    results = _tangent(*fixed, ct_x, ct_gamma, ct_beta, options=options)
    wanted = zip((dy, doffset, dvar), results, strict=True)
    return (*(None for _ in fixed), *(r if ad.is_undefined_primal(o) else None for o, r in wanted))
