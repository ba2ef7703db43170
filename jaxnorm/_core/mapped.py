"""Statistics by everyday operations, which know complex numbers and sums over mapped axes.

Their derivative is written out, so that they may be found behind a condition, and so that devices
exchange no more for it than two sums of each pool.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._core import collectives
from jaxnorm._core.formula import Options, full_gamma, inverse_root
from jaxnorm._core.mesh import varying
from jaxnorm._core.plain import is_plain
from jaxnorm._core.plan import MAPPED, PORTABLE
from jaxnorm._core.pool import subtract, widen, zero_masked
from jaxnorm._core.residuals import save
from jaxnorm._core.split_moments import SplitMoments
from jaxnorm._core.statistics import compute_statistics


def mapped_statistics(x, mask, shift_hint, options: Options) -> tuple[SplitMoments, jax.Array]:
    """Returns the statistics of each pool, and the count."""
    function = _find if is_plain() else _found
    *stats, count = function(x, mask, shift_hint, options)
    return SplitMoments(*stats), count


def _find(x, mask, shift_hint, options: Options):
    """Returns shift, offset, var and the count.

    Over mapped axes quick sums save a collective: the condition is the same on all devices, but
    where groups of them pool apart. `near` must be the same there too, as its type tells.
    """
    names, plan = options.pool.names, PORTABLE
    if names and options.pool.index_groups is None:
        plan = MAPPED
        if shift_hint is not None and not varying(x) - varying(shift_hint) >= set(names):
            shift_hint = None
    stats, count = compute_statistics(
        x, mask, options.pool, shift_hint, plan, center=options.center
    )
    return (*stats, count)


_found = jax.custom_jvp(_find, nondiff_argnums=(3,))


@_found.defjvp
def _found_jvp(options: Options, primals, tangents):
    """The tangents of offset and var are P(dx) and 2 P(Re((x - mean)* dx)), P the pool's mean."""
    x, mask, shift_hint = primals
    shift, offset, var, count = (save(v) for v in _found(x, mask, shift_hint, options))
    pool, dx = options.pool, widen(tangents[0], mask)
    rest = zero_masked(mask, subtract(x, mask, pool, shift, offset))
    product = (rest.conj() * dx).real if jnp.iscomplexobj(rest) else rest * dx
    sums = (pool.sum(product), pool.sum(dx)) if options.center else (pool.sum(product),)
    if pool.names:
        sums = collectives.psum(sums, pool.names, pool.index_groups)
    dvar, *doffset = (s / jnp.maximum(count, 1).astype(s.dtype) for s in sums)
    dshift = None if shift is None else jnp.zeros_like(shift)
    tangents = (dshift, doffset[0] if doffset else None, 2 * dvar, jnp.zeros_like(count))
    return (shift, offset, var, count), tangents


def fuse_beta_collective(gamma, beta, stats: SplitMoments, options: Options):
    """Returns beta and the statistics, for derivatives that devices exchange once.

    The cotangent of the offset is that of beta times -scale. So the offset is held fixed, and its
    derivative goes the way of beta's; the values stay.
    """
    pool = options.pool
    if not pool.names or pool.groups is not None or beta is None or stats.offset is None:
        return beta, stats
    if pool.varies_within(gamma) or pool.varies_within(beta):
        return beta, stats
    beta = beta.astype(stats.offset.dtype)
    offset, fixed = lax.stop_gradient((stats.offset, beta))
    scale = inverse_root(stats.var, options.epsilon).astype(beta.dtype)
    scale = scale * full_gamma(gamma, options.gamma_offset, beta.dtype)
    rest = (beta - fixed) - (stats.offset - offset) * scale
    return fixed + rest, stats._replace(offset=offset)
