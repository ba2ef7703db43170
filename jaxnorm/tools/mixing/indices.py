"""How operations that take indices carry labels on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.tools.mixing.labels import Joined, everything


def dynamic_slice(params, labels, known, shapes) -> list[Joined]:
    """Takes a part that begins where numbers say."""
    operand, starts = Joined.of(labels[0]), known[1:]
    sizes, shape = shapes[0], labels[0].shape
    unknown = [a for a, s in enumerate(starts) if s is None and sizes[a] < shape[a]]
    operand = operand.over(unknown, keep=True)
    for axis, start in enumerate(starts):
        if axis not in unknown and start is not None:
            first = int(np.clip(start, 0, shape[axis] - sizes[axis]))
            cut = range(first, first + sizes[axis])
            operand = operand.map(lambda v, a=axis, c=cut: np.take(v, c, a))
    operand = operand.map(lambda v: np.broadcast_to(v, sizes))
    (at,) = everything(labels[1:], [sizes]) if labels[1:] else (operand,)
    return [operand | at]


def dynamic_update_slice(params, labels, known, shapes) -> list[Joined]:
    """Replaces a part that begins where numbers say."""
    starts = known[2:]
    if any(start is None for start in starts):
        return everything(labels, shapes)
    result, shape = labels[0].copy(), labels[1].shape
    firsts = (
        int(np.clip(start, 0, whole - part))
        for start, whole, part in zip(starts, result.shape, shape, strict=True)
    )
    result[tuple(slice(f, f + size) for f, size in zip(firsts, shape, strict=True))] = labels[1]
    return [Joined.of(result)]


def gather(params, labels, known, shapes) -> list[Joined]:
    """Takes parts."""
    dims, shape = params["dimension_numbers"], shapes[0]
    operand, indices = Joined.of(labels[0]), known[1]
    columns = len(dims.start_index_map)
    if indices is None:
        indices = np.ma.masked_all(labels[1].shape, np.int32)
    missing = [np.ma.getmaskarray(indices)[..., c].any() for c in range(columns)]
    # What is taken by an unknown index may be any of them.
    unknown = [dims.start_index_map[c] for c in range(columns) if missing[c]]
    whole = labels[0].shape
    operand = operand.over(unknown, keep=True).map(lambda v: np.broadcast_to(v, whole))
    filled = np.where(np.array(missing), 0, np.ma.filled(indices, 0))

    def take(value):
        return np.asarray(
            jax.lax.gather(
                jnp.asarray(value),
                jnp.asarray(filled),
                dims,
                params["slice_sizes"],
                mode=jax.lax.GatherScatterMode.CLIP,
            )
        )

    at = Joined.of(labels[1]).over(-1)
    batch = [a for a in range(len(shape)) if a not in dims.offset_dims]

    def place(value):
        sizes = [1] * len(shape)
        for size, axis in zip(value.shape, batch, strict=True):
            sizes[axis] = size
        return np.broadcast_to(value.reshape(sizes), shape)

    return [operand.map(take) | at.map(place)]


def scatter(eqn, labels, known, shapes) -> list[Joined]:
    """Adds to parts, or replaces them."""
    indices, params = known[1], eqn.params
    if indices is None or np.ma.is_masked(indices) or len(shapes) > 1:
        return everything(labels, shapes)
    options = {"dimension_numbers": params["dimension_numbers"], "mode": params["mode"]}

    def scattered(function, operand, updates):
        return np.asarray(function(*map(jnp.asarray, (operand, indices, updates)), **options))

    first, last = Joined.of(labels[0]), Joined.of(labels[2])
    if eqn.primitive.name == "scatter":
        return [Joined.of(scattered(jax.lax.scatter, labels[0], labels[2]))]
    low = scattered(jax.lax.scatter_min, first.low, last.low)
    return [Joined(low, scattered(jax.lax.scatter_max, first.high, last.high))]
