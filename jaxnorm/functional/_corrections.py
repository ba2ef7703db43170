"""How running statistics change those of the batch, before they normalize."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._core.axes import ArrayLike
from jaxnorm._core.formula import inverse_root
from jaxnorm._core.moments import Moments
from jaxnorm._core.split_moments import SplitMoments


class Blend(NamedTuple):
    """A weighted mean of the batch's and the running statistics."""

    weight: ArrayLike  # of the batch's

    def apply(
        self, stats: SplitMoments, running: Moments, epsilon: float
    ) -> tuple[SplitMoments, Any, Any]:
        """Returns the statistics that normalize, and what then scales and shifts the result."""
        del epsilon
        real, kind = stats.var.dtype, stats.shift.dtype
        w = jnp.asarray(self.weight, real)
        offset = (1 - w).astype(kind) * (running.mean.astype(kind) - stats.shift)
        if stats.offset is not None:
            offset = w.astype(kind) * stats.offset + offset
        var = w * stats.var + (1 - w) * running.var.astype(real)
        return SplitMoments(stats.shift, offset, var), None, None


class Renorm(NamedTuple):
    """Batch renormalization: x_hat * r + d, with constants r and d that undo the batch's noise."""

    r_max: ArrayLike
    d_max: ArrayLike

    def apply(
        self, stats: SplitMoments, running: Moments, epsilon: float
    ) -> tuple[SplitMoments, Any, Any]:
        """Returns the statistics that normalize, and what then scales and shifts the result."""
        real, kind = stats.var.dtype, stats.shift.dtype
        r_max, d_max = (jnp.asarray(v, real) for v in (self.r_max, self.d_max))
        inverse = inverse_root(running.var.astype(real), epsilon)
        r = jnp.sqrt(stats.var + epsilon) * inverse
        d = stats.shift - running.mean.astype(kind)
        d = (d if stats.offset is None else d + stats.offset) * inverse.astype(kind)
        d = _clip(d, d_max)
        r, d = lax.stop_gradient((jnp.clip(r, 1 / r_max, r_max), d))
        return stats, r, d


def _clip(d: jax.Array, largest: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(d):
        size = jnp.abs(d)
        return d * (jnp.minimum(size, largest) / jnp.where(size > 0, size, 1)).astype(d.dtype)
    return jnp.clip(d, -largest, largest)


Correction = Blend | Renorm
