"""Arguments that several families share, checked and brought to the rank of the input."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes

# Why those joined to an activation are not for complex numbers.
REAL_ACTIVATION = "its activation is that of real numbers"


def check_real(x: ArrayLike, reason: str, name: str = "x") -> jax.Array:
    """Returns `x` as a real array of rank 1 or more."""
    value = _axes.check_input(x, name)
    if jnp.iscomplexobj(value):
        raise TypeError(
            f"{name} must have a real floating-point dtype, got {value.dtype}: {reason}; "
            "treat real and imaginary parts as two arrays."
        )
    return value


def position_axes(
    axis: Axes | None, shape: tuple[int, ...], channel: int, *, allow_empty: bool = False
) -> tuple[int, ...]:
    """Returns the axes of positions: those in `axis`, or all but the first and the channels'."""
    if axis is None:
        axes = tuple(a for a in range(1, len(shape)) if a != channel)
        if not axes and not allow_empty:
            raise ValueError(
                f"an input of shape {shape} has no axis besides the batch and the channels to "
                "pool over; give it positions, or pass axis."
            )
        return axes
    axes = _axes.canonical_axes(axis, shape, allow_empty=allow_empty)
    if channel in axes:
        raise ValueError(
            f"axis={axis!r} contains the channel axis {channel} of the input of shape {shape}, "
            "whose channels are kept apart; leave it out, or pass another channel_axis."
        )
    return axes


def expand_channels(parameter: ArrayLike | None, x: jax.Array, channel: int, name: str):
    """Returns a parameter with one value per channel at the rank of the input; None stays None."""
    return _axes.expand_parameter(parameter, x, None, (channel,), name)
