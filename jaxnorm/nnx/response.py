"""Norms by the size of responses as Flax NNX modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import InitVar

import jax
from flax import nnx

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._layers.response import (
    DivisiveNormLayer,
    FilterResponseNormLayer,
    GlobalResponseNormLayer,
    LocalResponseNormLayer,
    ScaleNormLayer,
)
from jaxnorm.nnx._base import Initializer, LayerModule, PlainNorm, SizedModule, module


@module
class ScaleNorm(SizedModule):
    """Vectors of a learned length, one for all; see `jaxnorm.lp_norm`.

    The options that are not listed are those of `jaxnorm.linen.ScaleNorm`.

    Attributes:
      num_features: size of the vectors; sizes where they have several axes, ascending.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.ScaleNorm(4)
      >>> float(norm.gamma[...]), norm(jnp.array([[3., 0., 0., 4.]])).round(3).tolist()
      (2.0, [[1.2000000476837158, 0.0, 0.0, 1.600000023841858]])

    Reference: Nguyen & Salazar 2019, Transformers without Tears, arXiv:1910.05895.
    """

    technique = ScaleNormLayer

    reduction_axes: Axes = -1
    epsilon: float = 1e-5
    use_gamma: bool = True
    gamma_init: InitVar[Initializer | None] = None

    def __call__(
        self, x: ArrayLike, *, mask: ArrayLike | None = None, gamma: ArrayLike | None = None
    ) -> jax.Array:
        """Scales `x`; a gamma given here replaces the module's own."""
        x = _axes.check_input(x)
        return self.options.apply(x, self._own(x, gamma=gamma), mask)


@module
class LocalResponseNorm(LayerModule):
    """Local response normalization over channels; see `jaxnorm.local_response_norm`.

    The options that are not listed are those of `jaxnorm.linen.LocalResponseNorm`.

    Attributes:
      size: channels in a window.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.LocalResponseNorm(size=3, alpha=3.0, beta=1.0, k=1.0)
      >>> norm(jnp.array([1., 0., 1.])).tolist()
      [0.5, 0.0, 0.5]

    Reference: Krizhevsky, Sutskever & Hinton 2012, ImageNet Classification with Deep Convolutional
    Neural Networks.
    """

    technique = LocalResponseNormLayer

    size: int = dataclasses.field()
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0
    channel_axis: int = -1
    average: bool = True

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Normalizes `x`."""
        return self.options.apply(x)


@module
class DivisiveNorm(PlainNorm):
    """Divisive normalization by the elements nearby; see `jaxnorm.divisive_norm`.

    The options that are not listed are those of `jaxnorm.linen.DivisiveNorm`.

    Attributes:
      num_features: size of the last axis, along which sigma, gamma and beta vary.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.DivisiveNorm(1, window=3, reduction_axes=1)
      >>> norm(jnp.array([[[1.], [3.]]])).round(3).tolist()
      [[[-0.7070000171661377], [0.7070000171661377]]]

    Reference: Ren, Liao, Urtasun, Sinz & Zemel 2016, Normalizing the Normalizers,
    arXiv:1611.04520.
    """

    technique = DivisiveNormLayer

    window: int | Sequence[int] = dataclasses.field()
    reduction_axes: Axes = (1, 2)
    sigma_init: InitVar[Initializer] = nnx.initializers.ones
    center: bool = True


@module
class FilterResponseNorm(PlainNorm):
    """Filter response normalization; see `jaxnorm.filter_response_norm`.

    The options that are not listed are those of `jaxnorm.linen.FilterResponseNorm`.

    Attributes:
      num_features: number of channels.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.FilterResponseNorm(1, epsilon=0.0)
      >>> norm(jnp.array([[[2.], [-2.]]])).tolist()
      [[[1.0], [0.0]]]

    Reference: Singh & Krishnan 2019, Filter Response Normalization Layer, arXiv:1911.09737.
    """

    technique = FilterResponseNormLayer

    epsilon: float = 1e-6
    channel_axis: int = -1
    reduction_axes: Axes | None = None
    use_tau: bool = True
    tau_init: InitVar[Initializer] = nnx.initializers.zeros
    use_learned_epsilon: bool = False
    learned_epsilon_init: InitVar[Initializer] = nnx.initializers.constant(1e-4)


@module
class GlobalResponseNorm(PlainNorm):
    """Global response normalization; see `jaxnorm.global_response_norm`. Starts as the identity.

    The options that are not listed are those of `jaxnorm.linen.GlobalResponseNorm`.

    Attributes:
      num_features: number of channels.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.GlobalResponseNorm(2)
      >>> norm(jnp.array([[[3., 0.], [4., 15.]]])).tolist()
      [[[3.0, 0.0], [4.0, 15.0]]]

    Reference: Woo et al. 2023, ConvNeXt V2, arXiv:2301.00808.
    """

    technique = GlobalResponseNormLayer

    epsilon: float = 1e-6
    gamma_init: InitVar[Initializer] = nnx.initializers.zeros
    channel_axis: int = -1
    reduction_axes: Axes | None = None
