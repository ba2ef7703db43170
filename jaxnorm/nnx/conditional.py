"""Norms whose scale and shift come from a condition, as Flax NNX modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import InitVar
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._core.axes import ArrayLike, DTypeLike
from jaxnorm._layers.conditional import AdaptiveNormLayer, SPADELayer
from jaxnorm._layers.layer import Layer
from jaxnorm.nnx._base import Affine, AffineModule, Initializer, module


@module
class _OverNorm(nnx.Module):
    technique: ClassVar[type[Layer]]

    norm: nnx.Module = dataclasses.field(kw_only=False)
    in_features: int = dataclasses.field(kw_only=False)
    param_dtype: DTypeLike = jnp.float32
    rngs: InitVar[nnx.Rngs | None] = None

    @property
    def options(self) -> Any:
        """What the fields say, as `technique` takes it."""
        return self.technique.of(self)

    def _adopt(self, rngs: nnx.Rngs | None, *names: str) -> tuple[int, nnx.Rngs]:
        """Takes the parameters of those names from the norm; returns its features, and the keys."""
        label = type(self).__name__
        if not isinstance(self.norm, AffineModule | Affine):
            raise TypeError(
                f"{label} needs a module of jaxnorm.nnx that takes gamma and beta in the call, "
                f"such as jaxnorm.nnx.LayerNorm(4), got {self.norm!r}."
            )
        if rngs is None:
            raise ValueError(f"{label} has layers of its own and needs rngs=nnx.Rngs(0).")
        self.norm._leave_to_calls(*names)
        sizes = self.norm._sizes if isinstance(self.norm, Affine) else self.norm.sizes
        return sizes[-1], rngs


@module
class AdaptiveNorm(_OverNorm):
    """Scale and shift from a condition: norm(x) * (1 + scale) + shift.

    A dense layer makes scale and shift, and with `gate` a gate for the branch that follows, in this
    order, from the condition; it starts at zero, so that the norm starts without either. With layer
    norm it is AdaLN and AdaLN-Zero, with group norm AdaGN; RMS norm does without the shift. The
    options that are not listed are those of `jaxnorm.linen.AdaptiveNorm`.

    Attributes:
      norm: a module of `jaxnorm.nnx` that takes gamma and beta in the call; it gives up its own.
      in_features: size of the condition.
      rngs: keys, for the dense layer.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> from flax import nnx
      >>> x, condition = jnp.array([[[1., 3.]]]), jnp.array([[5., 6., 7.]])
      >>> norm = jnx.AdaptiveNorm(jnx.LayerNorm(2, epsilon=0.0), 3, gate=True, rngs=nnx.Rngs(0))
      >>> y, gate = norm(x, condition)
      >>> y.tolist(), gate.tolist(), norm.condition.kernel.shape
      ([[[-1.0, 1.0]]], [[[0.0, 0.0]]], (3, 6))

    Reference: Peebles & Xie 2022, Scalable Diffusion Models with Transformers, arXiv:2212.09748.
    """

    technique = AdaptiveNormLayer

    use_shift: bool = True
    gate: bool = False
    activation: Callable[[jax.Array], jax.Array] | None = None
    kernel_init: InitVar[Initializer] = nnx.initializers.zeros
    bias_init: InitVar[Initializer] = nnx.initializers.zeros

    def __post_init__(
        self, rngs: nnx.Rngs | None, kernel_init: Initializer, bias_init: Initializer
    ) -> None:
        layer = self.options
        features, keys = self._adopt(rngs, *layer.given)
        self.condition = nnx.Linear(
            self.in_features,
            layer.outputs(features),
            kernel_init=kernel_init,
            bias_init=bias_init,
            param_dtype=self.param_dtype,
            rngs=keys,
        )

    def __call__(
        self, x: ArrayLike, condition: ArrayLike, **options
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Normalizes `x`, features last.

        The condition is [*batch, features], or has some of the positions of `x` before its features
        as well. `options` go to the norm: a mask, or whether to evaluate.
        """
        return self.options.apply(x, condition, self.condition, self.norm, options)


@module
class SPADE(_OverNorm):
    """Scale and shift for each position from a map: norm(x) * (1 + scale) + shift.

    A convolution, an activation and two more convolutions make scale and shift from the map,
    resized to the positions of `x` by its nearest values, as in the authors' code. The options that
    are not listed are those of `jaxnorm.linen.SPADE`, which says how the map is resized.

    Attributes:
      norm: a module of `jaxnorm.nnx` that takes gamma and beta in the call, and gives up its own;
        the paper has batch norm.
      in_features: channels of the map.
      num_position_axes: how many axes there are between the batch's and the channels'.
      rngs: keys, for the convolutions.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> from flax import nnx
      >>> x, segmentation = jnp.ones((1, 4, 4, 2)), jnp.ones((1, 8, 8, 3))
      >>> norm = jnx.SPADE(jnx.InstanceNorm(2), 3, rngs=nnx.Rngs(0))
      >>> norm(x, segmentation).shape, norm.hidden_map.kernel.shape
      ((1, 4, 4, 2), (3, 3, 3, 128))

    Reference: Park, Liu, Wang & Zhu 2019, Semantic Image Synthesis with Spatially-Adaptive
    Normalization, arXiv:1903.07291.
    """

    technique = SPADELayer

    hidden: int = 128
    kernel_size: int = 3
    activation: Callable[[jax.Array], jax.Array] = nnx.relu
    num_position_axes: int = 2

    def __post_init__(self, rngs: nnx.Rngs | None) -> None:
        layer = self.options
        features, keys = self._adopt(rngs, "gamma", "beta")
        for name, (inputs, outputs) in layer.channels(self.in_features, features).items():
            window = layer.window(self.num_position_axes)
            convolution = nnx.Conv(inputs, outputs, window, param_dtype=self.param_dtype, rngs=keys)
            setattr(self, name, convolution)

    def __call__(self, x: ArrayLike, segmentation: ArrayLike, **options) -> jax.Array:
        """Normalizes `x`, [batch, *positions, channels]; `options` go to the norm."""

        def convolve(name: str, value: jax.Array) -> jax.Array:
            return getattr(self, name)(value)

        return self.options.apply(x, segmentation, convolve, self.norm, options)
