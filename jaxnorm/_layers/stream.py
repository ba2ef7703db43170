"""The moments of a stream so far, as the state of a layer that sees it piece by piece."""

from __future__ import annotations

import functools

import jax.numpy as jnp

from jaxnorm._core.axes import DTypeLike
from jaxnorm._core.moments import Moments
from jaxnorm._core.pool import compute_dtype, real_dtype
from jaxnorm._layers.layer import Context, FirstState, State


def first_stream(shape: tuple[int, ...], dtype: DTypeLike) -> FirstState:
    """Returns the moments of nothing, of shape `shape`."""
    kinds = zip(Moments._fields, (compute_dtype(dtype), *(real_dtype(dtype),) * 2), strict=True)
    return {name: functools.partial(jnp.zeros, shape, kind) for name, kind in kinds}


def stream_of(state: State) -> Moments:
    return Moments(*(state[name] for name in Moments._fields))


def moved_stream(moments: Moments, context: Context) -> State | None:
    """Returns the state after a piece, which must be possible to keep."""
    if context.initializing:
        return None
    if not context.mutable:
        raise ValueError(
            f"{context.label} decodes: it keeps the moments of the stream in the collection cache, "
            'which is not mutable; call apply(..., mutable=["cache"]) and keep the updates it '
            "returns."
        )
    return moments._asdict()
