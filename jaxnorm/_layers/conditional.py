"""Scale and shift from a condition: where they lie along the axes of the input."""

from __future__ import annotations

import jax

from jaxnorm._core.pool import compute_dtype


def spread_condition(projected: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns what was made of a condition at the rank of an input of shape `shape`.

    The condition's axes but the last are the input's first ones, of its sizes or 1.
    """
    lead, rank = projected.shape[:-1], len(shape)
    fits = len(lead) < rank and all(c in (1, s) for c, s in zip(lead, shape, strict=False))
    if not fits:
        raise ValueError(
            f"a condition of shape {(*lead, '...')} does not fit an input of shape {shape}: its "
            "axes but the last must be the input's first ones, the batch's and maybe some of the "
            "positions', with their sizes or 1."
        )
    between = (1,) * (rank - 1 - len(lead))
    return projected.reshape(*lead, *between, projected.shape[-1])


def scale_and_shift(parts: jax.Array, features: int) -> tuple[jax.Array, ...]:
    """Returns gamma = 1 + scale, beta and what else there is, from blocks of `features` values."""
    wide = parts.astype(compute_dtype(parts.dtype))
    blocks = [wide[..., i : i + features] for i in range(0, wide.shape[-1], features)]
    return (1 + blocks[0], *blocks[1:])


def resize_map(segmentation: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns a map with the positions of an input of shape `shape`, by nearest values."""
    if segmentation.ndim != len(shape) or segmentation.shape[0] != shape[0]:
        raise ValueError(
            f"segmentation of shape {segmentation.shape} does not fit an input of shape {shape}: "
            "it must have that rank and its batch, and positions and channels of its own."
        )
    sizes = (shape[0], *shape[1:-1], segmentation.shape[-1])
    return jax.image.resize(segmentation, sizes, "nearest")
