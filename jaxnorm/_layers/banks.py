"""Banks: statistics or parameters with one row for each domain, on axis 0."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.mesh import spec_of, undivided, without_explicit_axes
from jaxnorm._core.moments import Moments
from jaxnorm._core.pool import Pool
from jaxnorm.functional._batch_core import Batch
from jaxnorm.functional._segments import check_segments, make_pool


def check_domain(domain: Any, number: int, x: jax.Array, batch_axis: int) -> jax.Array:
    """Returns `domain` as an array of integers: one for the batch, or one for each example."""
    value = jnp.asarray(domain)
    if value.ndim:
        return check_segments(value, number, x, batch_axis, "domain")
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"domain must hold integers, got dtype {value.dtype}.")
    if not isinstance(domain, jax.Array) and not 0 <= operator.index(domain) < number:
        raise ValueError(f"domain must lie in [0, {number}), as num_domains says, got {domain!r}.")
    return value


def row(bank: Moments, domain: jax.Array) -> Moments:
    """Returns the moments of one domain; a count that is no bank stays."""
    values = map(jnp.asarray, bank)  # NumPy's arrays take no traced domain
    return Moments(*(_row(value, domain) if value.ndim else value for value in values))


def as_bank(moments: Moments, domain: jax.Array, number: int) -> Moments:
    """Returns a bank that has `moments` in the row of `domain` and count 0 in the others."""

    def expand(moments, domain):
        count = jnp.expand_dims(jnp.broadcast_to(moments.count, moments.mean.shape), 0)
        mine = jnp.expand_dims(jnp.arange(number) == domain, tuple(range(1, count.ndim)))
        return Moments(moments.mean[None], moments.var[None], jnp.where(mine, count, 0))

    each: Any = PartitionSpec(None, *spec_of(moments.mean))
    return without_explicit_axes(expand, Moments(each, each, each))(moments, domain)


def _row(bank: jax.Array, domain: jax.Array) -> jax.Array:
    out = PartitionSpec(*spec_of(bank)[1:])
    return without_explicit_axes(lambda bank, domain: bank[domain], out)(bank, domain)


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
    x: jax.Array,
    axes: tuple[int, ...],
    feature_axes: Axes | None,
    batch: Batch,
    domain: jax.Array | None,
) -> jax.Array:
    """Returns the row of `domain` of a parameter bank, or at the rank of the input each example's.

    The parameter is that of the input `x` along `feature_axes`, or the axes that are
    not in `axes`.
    """
    if domain is not None:
        return _row(bank, domain)
    assert batch.segments is not None
    kept = _axes.other_axes(axes, x.ndim)

    def expand(value):
        return _axes.expand_parameter(value, x, feature_axes, kept, name)

    rows = jnp.squeeze(jax.vmap(expand)(undivided(bank, 0)), batch.axis + 1)
    ids, number = batch.segments

    def spread(rows, ids):
        pool = make_pool(Pool((batch.axis,)), ids, number, batch.axis)
        return pool.broadcast_to_input(jnp.moveaxis(rows, 0, batch.axis), x.shape)

    varies = [size != 1 for size in rows.shape[1:]]
    varies.insert(batch.axis, True)
    spec = zip(spec_of(x), varies, strict=True)
    out = PartitionSpec(*(names if varies else None for names, varies in spec))
    return without_explicit_axes(spread, out)(rows, ids)
