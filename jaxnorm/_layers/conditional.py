"""Scale and shift from a condition or a map, as layers around a norm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike
from jaxnorm._core.pool import compute_dtype, real_dtype
from jaxnorm._layers.layer import Layer

Norm = Callable[..., jax.Array]  # of the input, gamma, beta and other options of its call


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveNormLayer(Layer):
    """The options of `jaxnorm.linen.AdaptiveNorm`."""

    use_shift: bool
    gate: bool
    activation: Callable[[jax.Array], jax.Array] | None

    @property
    def given(self) -> tuple[str, ...]:
        """The parameters that the condition takes the place of."""
        return ("gamma", "beta") if self.use_shift else ("gamma",)

    def outputs(self, features: int) -> int:
        """Returns how many values the dense layer makes for `features` of the input."""
        return (1 + self.use_shift + self.gate) * features

    def apply(
        self,
        x: ArrayLike,
        condition: ArrayLike,
        dense: Callable[[jax.Array], jax.Array],
        norm: Norm,
        options: Mapping[str, Any],
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Normalizes `x`; returns a gate too, if there is one."""
        x, condition = _axes.check_input(x), _axes.check_input(condition, "condition")
        if self.activation is not None:
            condition = self.activation(condition)
        spread = _spread_condition(dense(condition), x.shape)
        gamma, *rest = _scale_and_shift(spread, x.shape[-1])
        shift = {"beta": rest.pop(0)} if self.use_shift else {}
        y = norm(x, gamma=gamma, **shift, **options)
        return (y, rest[0]) if self.gate else y


@dataclasses.dataclass(frozen=True, kw_only=True)
class SPADELayer(Layer):
    """The options of `jaxnorm.linen.SPADE`."""

    hidden: int
    kernel_size: int
    activation: Callable[[jax.Array], jax.Array]

    def channels(self, inputs: int, features: int) -> dict[str, tuple[int, int]]:
        """Returns how many channels each convolution takes and makes.

        The map has `inputs`, the input of the norm has `features`.
        """
        last = (self.hidden, features)
        return {"hidden_map": (inputs, self.hidden), "scale": last, "shift": last}

    def window(self, positions: int) -> tuple[int, ...]:
        """Returns the size of the kernels, for so many axes of positions."""
        return (self.kernel_size,) * positions

    def apply(
        self,
        x: ArrayLike,
        segmentation: ArrayLike,
        convolve: Callable[[str, jax.Array], jax.Array],
        norm: Norm,
        options: Mapping[str, Any],
    ) -> jax.Array:
        """Normalizes `x`; `convolve` is told the name of a convolution and its input."""
        x, segmentation = _axes.check_input(x), _axes.check_input(segmentation, "segmentation")
        hidden = self.activation(convolve("hidden_map", _resize_map(segmentation, x.shape)))
        scale, shift = (convolve(name, hidden) for name in ("scale", "shift"))
        (gamma,) = _scale_and_shift(scale, x.shape[-1])
        return norm(x, gamma=gamma, beta=shift, **options)


def _spread_condition(projected: jax.Array, shape: tuple[int, ...]) -> jax.Array:
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


def _scale_and_shift(parts: jax.Array, features: int) -> tuple[jax.Array, ...]:
    """Returns gamma = 1 + scale, beta and what else there is, from blocks of `features` values."""
    wide = parts.astype(compute_dtype(parts.dtype))
    blocks = [wide[..., i : i + features] for i in range(0, wide.shape[-1], features)]
    return (1 + blocks[0], *blocks[1:])


def _resize_map(segmentation: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns a map with the positions of an input of shape `shape`, by nearest values."""
    if segmentation.ndim != len(shape) or segmentation.shape[0] != shape[0]:
        raise ValueError(
            f"segmentation of shape {segmentation.shape} does not fit an input of shape {shape}: "
            "it must have that rank and its batch, and positions and channels of its own."
        )
    for axis in range(1, len(shape) - 1):
        if segmentation.shape[axis] != shape[axis]:
            segmentation = _resize_axis(segmentation, axis, shape[axis])
    return segmentation


def _resize_axis(segmentation: jax.Array, axis: int, size: int) -> jax.Array:
    """Returns a map with `size` positions along an axis, floor(i * old / size) for position i.

    That is the rule of torch's F.interpolate(mode="nearest") in the authors' code. It divides
    first, in float32 (float64 for such maps), which for a few sizes, such as 28 to 46, gives
    another position than whole numbers would. `jax.image.resize` looks from the middle of each
    position instead, as "nearest-exact" does.
    """
    old = segmentation.shape[axis]
    # NumPy divides in the compiler's place, whose rounding may be another; but not symbolic sizes.
    xp = np if isinstance(old, int) and isinstance(size, int) else jnp
    real = real_dtype(segmentation.dtype)
    step = xp.asarray(old, real) / xp.asarray(size, real)
    positions = xp.floor(xp.arange(size).astype(real) * step).astype(np.int32)
    return jnp.take(segmentation, xp.minimum(positions, old - 1), axis)
