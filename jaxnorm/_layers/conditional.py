"""Scale and shift from a condition or a map, around a norm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, DTypeLike
from jaxnorm._core.pool import compute_dtype, real_dtype
from jaxnorm._layers.layer import Initializer, Layer
from jaxnorm._layers.options import options


@options
class _OverNorm(Layer):
    norm: Callable[..., jax.Array] = dataclasses.field(kw_only=False)
    """a module of the same kind that takes gamma and beta in the call, and has none of its own."""
    param_dtype: DTypeLike = jnp.float32
    """dtype of the parameters."""


@options
class AdaptiveNorm(_OverNorm):
    """Scale and shift from a condition: norm(x) * (1 + scale) + shift.

    A dense layer makes scale and shift, and with `gate` a gate for the branch that follows, in this
    order, from the condition; it starts at zero, so that the norm starts without either. With layer
    norm it is AdaLN and AdaLN-Zero, with group norm AdaGN; RMS norm does without the shift.

    Reference: Peebles & Xie 2022, Scalable Diffusion Models with Transformers, arXiv:2212.09748.
    """

    use_shift: bool = True
    """whether there is a shift."""
    gate: bool = False
    """whether to return a gate beside the result."""
    activation: Callable[[jax.Array], jax.Array] | None = None
    """of the condition, before the dense layer; such as `jax.nn.silu` in AdaLN-Zero."""
    kernel_init: Initializer = initializers.zeros
    """initializer of the dense layer's kernel."""
    bias_init: Initializer = initializers.zeros
    """initializer of its bias."""

    def _project(self, condition: jax.Array, size: int) -> jax.Array:
        """Returns what the dense layer makes of a condition. Modules have it."""
        raise NotImplementedError

    def _outputs(self, features: int) -> int:
        """Returns how many values the dense layer makes for `features` of the input."""
        return (1 + self.use_shift + self.gate) * features

    def __call__(
        self, x: ArrayLike, condition: ArrayLike, **options
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Normalizes `x`, features last.

        The condition is [*batch, features], or has some of the positions of `x` before its features
        as well. `options` go to the norm: a mask, or whether to evaluate.
        """
        x, condition = _axes.check_input(x), _axes.check_input(condition, "condition")
        features = x.shape[-1]
        if self.activation is not None:
            condition = self.activation(condition)
        parts = _spread_condition(self._project(condition, self._outputs(features)), x.shape)
        gamma, *rest = _scale_and_shift(parts, features)
        shift = {"beta": rest.pop(0)} if self.use_shift else {}
        y = self.norm(x, gamma=gamma, **shift, **options)
        return (y, rest[0]) if self.gate else y


@options
class SPADE(_OverNorm):
    """Scale and shift for each position from a map: norm(x) * (1 + scale) + shift.

    A convolution, an activation and two more convolutions make scale and shift from the map,
    resized to the positions of `x` by its nearest values: position i of n takes floor(i * m / n) of
    m, as F.interpolate(mode="nearest") of PyTorch in the authors' code, and not as
    `jax.image.resize`. The paper has batch norm.

    Reference: Park, Liu, Wang & Zhu 2019, Semantic Image Synthesis with Spatially-Adaptive
    Normalization, arXiv:1903.07291.
    """

    hidden: int = 128
    """channels of the first convolution."""
    kernel_size: int = 3
    """of all three."""
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu
    """after the first convolution."""

    def _convolve(self, name: str, value: jax.Array, channels: int) -> jax.Array:
        """Returns the convolution called `name`, with so many `channels`. Modules have it."""
        raise NotImplementedError

    def _window(self, positions: int) -> tuple[int, ...]:
        """Returns the size of the kernels, for so many axes of positions."""
        return (self.kernel_size,) * positions

    def __call__(self, x: ArrayLike, segmentation: ArrayLike, **options) -> jax.Array:
        """Normalizes `x`, [batch, *positions, channels]; `options` go to the norm."""
        x, segmentation = _axes.check_input(x), _axes.check_input(segmentation, "segmentation")
        resized = _resize_map(segmentation, x.shape)
        hidden = self.activation(self._convolve("hidden_map", resized, self.hidden))
        scale, shift = (self._convolve(n, hidden, x.shape[-1]) for n in ("scale", "shift"))
        (gamma,) = _scale_and_shift(scale, x.shape[-1])
        return self.norm(x, gamma=gamma, beta=shift, **options)


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
