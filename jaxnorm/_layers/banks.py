"""Banks: statistics or parameters with one row for each domain, on axis 0."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.moments import Moments
from jaxnorm._core.pool import Pool
from jaxnorm.functional._batch_core import Batch
from jaxnorm.functional._segments import SegmentPool, check_segments


def check_domain(domain: Any, number: int, examples: int) -> jax.Array:
    """Returns `domain` as an array of integers: one for the batch, or one for each example."""
    value = jnp.asarray(domain)
    if value.ndim:
        return check_segments(value, number, examples, "domain")
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"domain must hold integers, got dtype {value.dtype}.")
    if not isinstance(domain, jax.Array) and not 0 <= operator.index(domain) < number:
        raise ValueError(f"domain must lie in [0, {number}), as num_domains says, got {domain!r}.")
    return value


def row(bank: Moments, domain: jax.Array) -> Moments:
    """Returns the moments of one domain; a count that is no bank stays."""
    return Moments(*(value[domain] if np.ndim(value) else value for value in bank))


def as_bank(moments: Moments, domain: jax.Array, number: int) -> Moments:
    """Returns a bank that has `moments` in the row of `domain` and count 0 in the others."""
    count = jnp.expand_dims(jnp.broadcast_to(moments.count, moments.mean.shape), 0)
    mine = jnp.expand_dims(jnp.arange(number) == domain, tuple(range(1, count.ndim)))
    return Moments(moments.mean[None], moments.var[None], jnp.where(mine, count, 0))


def check_bank(bank: ArrayLike, name: str, number: int) -> jax.Array:
    """Returns a parameter that has one row for each of `number` domains."""
    value = jnp.asarray(bank)
    if value.shape[:1] != (number,):
        raise ValueError(
            f"{name} of shape {value.shape} does not have a row for each of the num_domains="
            f"{number} domains on axis 0; give it one, or leave out affine_per_domain."
        )
    return value


def parameter(
    bank: jax.Array,
    name: str,
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    feature_axes: Axes | None,
    batch: Batch,
    domain: jax.Array | None,
) -> jax.Array:
    """Returns the row of `domain` of a parameter bank, or at the rank of the input each example's.

    The parameter is that of an input of shape `shape` along `feature_axes`, or the axes that are
    not in `axes`.
    """
    if domain is not None:
        return bank[domain]
    assert batch.segments is not None
    kept = _axes.other_axes(axes, len(shape))

    def expand(value):
        return _axes.expand_parameter(value, shape, feature_axes, kept, name)

    rows = jnp.squeeze(jax.vmap(expand)(bank), batch.axis + 1)
    pool = SegmentPool(Pool((batch.axis,)), *batch.segments, batch.axis)
    return pool.spread(jnp.moveaxis(rows, 0, batch.axis), shape)
