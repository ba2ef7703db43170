"""Norms whose scale and shift come from a condition, as Flax linen modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike
from jaxnorm._layers.conditional import AdaptiveNormLayer, SPADELayer
from jaxnorm._layers.layer import Layer


class _OverNorm(nn.Module):
    technique: ClassVar[type[Layer]]

    norm: nn.Module

    @property
    def options(self) -> Any:
        """What the fields say, as `technique` takes it."""
        return self.technique.of(self)


class AdaptiveNorm(_OverNorm, kw_only=True):
    """Scale and shift from a condition: norm(x) * (1 + scale) + shift.

    A dense layer makes scale and shift, and with `gate` a gate for the branch that follows, in this
    order, from the condition; it starts at zero, so that the norm starts without either. With layer
    norm it is AdaLN and AdaLN-Zero, with group norm AdaGN; RMS norm does without the shift.

    Attributes:
      norm: a module of `jaxnorm.linen` that takes gamma and beta in the call; it makes none of its
        own.
      use_shift: whether there is a shift.
      gate: whether to return a gate beside the result.
      activation: of the condition, before the dense layer; such as `nn.silu` in AdaLN-Zero.
      kernel_init: initializer of the dense layer's kernel.
      bias_init: initializer of its bias.
      param_dtype: dtype of the parameters.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x, condition = jnp.array([[[1., 3.]]]), jnp.array([[5., 6., 7.]])
      >>> norm = jnn.AdaptiveNorm(jnn.LayerNorm(epsilon=0.0), gate=True)
      >>> variables = norm.init(jax.random.key(0), x, condition)
      >>> y, gate = norm.apply(variables, x, condition)
      >>> y.tolist(), gate.tolist(), variables["params"]["condition"]["kernel"].shape
      ([[[-1.0, 1.0]]], [[[0.0, 0.0]]], (3, 6))

    Reference: Peebles & Xie 2022, Scalable Diffusion Models with Transformers, arXiv:2212.09748.
    """

    technique = AdaptiveNormLayer

    use_shift: bool = True
    gate: bool = False
    activation: Callable[[jax.Array], jax.Array] | None = None
    kernel_init: nn.initializers.Initializer = nn.initializers.zeros
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    param_dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: ArrayLike, condition: ArrayLike, **options
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Normalizes `x`, features last.

        The condition is [*batch, features], or has some of the positions of `x` before its features
        as well. `options` go to the norm: a mask, or whether to evaluate.
        """
        layer, features = self.options, _axes.check_input(x).shape[-1]
        dense = nn.Dense(
            layer.outputs(features),
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            name="condition",
        )
        return layer.apply(x, condition, dense, self.norm, options)


class SPADE(_OverNorm, kw_only=True):
    """Scale and shift for each position from a map: norm(x) * (1 + scale) + shift.

    A convolution, an activation and two more convolutions make scale and shift from the map,
    resized to the positions of `x` by its nearest values: position i of n takes floor(i * m / n) of
    m, as F.interpolate(mode="nearest") of PyTorch in the authors' code, and not as
    `jax.image.resize`.

    Attributes:
      norm: a module of `jaxnorm.linen` that takes gamma and beta in the call; the paper has batch
        norm.
      hidden: channels of the first convolution.
      kernel_size: of all three.
      activation: after the first convolution.
      param_dtype: dtype of the parameters.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x, segmentation = jnp.ones((1, 4, 4, 2)), jnp.ones((1, 8, 8, 3))
      >>> norm = jnn.SPADE(jnn.InstanceNorm())
      >>> variables = norm.init(jax.random.key(0), x, segmentation)
      >>> norm.apply(variables, x, segmentation).shape, sorted(variables["params"])
      ((1, 4, 4, 2), ['hidden_map', 'scale', 'shift'])

    Reference: Park, Liu, Wang & Zhu 2019, Semantic Image Synthesis with Spatially-Adaptive
    Normalization, arXiv:1903.07291.
    """

    technique = SPADELayer

    hidden: int = 128
    kernel_size: int = 3
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    param_dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: ArrayLike, segmentation: ArrayLike, **options) -> jax.Array:
        """Normalizes `x`, [batch, *positions, channels]; `options` go to the norm."""
        x, segmentation = _axes.check_input(x), _axes.check_input(segmentation, "segmentation")
        layer = self.options
        channels = layer.channels(segmentation.shape[-1], x.shape[-1])
        window = layer.window(x.ndim - 2)

        def convolve(name: str, value: jax.Array) -> jax.Array:
            _, outputs = channels[name]
            return nn.Conv(outputs, window, param_dtype=self.param_dtype, name=name)(value)

        return layer.apply(x, segmentation, convolve, self.norm, options)
