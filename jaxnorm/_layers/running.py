"""The running moments of a batch norm: what they start at, and what a batch makes of them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._core.axes import DTypeLike
from jaxnorm._core.moments import Moments
from jaxnorm._core.pool import compute_dtype, real_dtype
from jaxnorm._layers.call import State, StateInit
from jaxnorm.functional.average import update_moments
from jaxnorm.functional.merge import merge_moments

# Where these are in a state, batches are merged into them, and the running moments rest.
ACCUMULATORS = ("accumulated_mean", "accumulated_var", "accumulated_count")


def init_moments(shape: tuple[int, ...], dtype: DTypeLike, *, counts: bool) -> StateInit:
    """Returns what running moments of inputs of `dtype` start at."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    mean, var = compute_dtype(dtype), real_dtype(dtype)
    first = {
        "mean": functools.partial(jnp.zeros, shape, mean),
        "var": functools.partial(jnp.ones, shape, var),
    }
    if counts:
        first["count"] = functools.partial(jnp.zeros, shape, var)
    return first


def init_accumulators(shape: tuple[int, ...], dtype: DTypeLike) -> StateInit:
    """Returns what the accumulators beside running moments of that shape start at."""
    mean, var = compute_dtype(dtype), real_dtype(dtype)
    makers = (functools.partial(jnp.zeros, shape, kind) for kind in (mean, var, var))
    return dict(zip(ACCUMULATORS, makers, strict=True))


def moments_of(state: State) -> Moments:
    """Returns the running moments; their count is the number of updates, or 0 if none is kept."""
    var = state["var"]
    return Moments(state["mean"], var, state.get("count", jnp.zeros((), var.dtype)))


def track(state: State, batch: Moments, update: bool | jax.Array, **options: Any) -> State:
    """Returns the state that has been updated by a batch, or has accumulated it."""
    if isinstance(update, jax.Array):
        # Moments of no elements change nothing.
        batch = batch._replace(count=jnp.where(update, batch.count, 0))
    if ACCUMULATORS[0] in state:
        return accumulated(state, batch)
    new = update_moments(moments_of(state), batch, **options)
    return {name: value for name, value in new._asdict().items() if name in state}


def accumulated(state: State, batch: Moments) -> State:
    """Returns the accumulators of a state, a batch merged into them."""
    old = Moments(*(state[name] for name in ACCUMULATORS))
    batch = Moments(*(b.astype(a.dtype) for a, b in zip(old, batch, strict=True)))
    merged = merge_moments(old, batch)
    return {
        name: jnp.broadcast_to(value, state[name].shape)
        for name, value in zip(ACCUMULATORS, merged, strict=True)
    }
