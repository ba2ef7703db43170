"""Norms by the size of responses as Flax linen modules."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._layers.response import (
    DivisiveNormLayer,
    FilterResponseNormLayer,
    GlobalResponseNormLayer,
    LocalResponseNormLayer,
    ScaleNormLayer,
)
from jaxnorm.linen._base import LayerModule, ParametricModule, PlainNorm


class ScaleNorm(ParametricModule, kw_only=True):
    """Vectors of a learned length, one for all; see `jaxnorm.lp_norm`.

    Attributes:
      reduction_axes: the axes of the vectors.
      epsilon: the smallest length that is divided by.
      use_gamma: whether the length is a parameter gamma, of rank 0, or 1.
      gamma_init: initializer of gamma; default: the root of the number of elements of a vector.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[3., 0., 0., 4.]])
      >>> norm = jnn.ScaleNorm()
      >>> variables = norm.init(jax.random.key(0), x)
      >>> float(variables["params"]["gamma"])
      2.0
      >>> norm.apply(variables, x).round(3).tolist()
      [[1.2000000476837158, 0.0, 0.0, 1.600000023841858]]

    Reference: Nguyen & Salazar 2019, Transformers without Tears, arXiv:1910.05895.
    """

    technique = ScaleNormLayer

    reduction_axes: Axes = -1
    epsilon: float = 1e-5
    use_gamma: bool = True
    gamma_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(
        self, x: ArrayLike, *, mask: ArrayLike | None = None, gamma: ArrayLike | None = None
    ) -> jax.Array:
        """Scales `x`; a gamma given here replaces the module's own."""
        x = _axes.check_input(x)
        return self.options.apply(x, self.own(x, gamma=gamma), mask)


class LocalResponseNorm(LayerModule, kw_only=True):
    """Local response normalization over channels; see `jaxnorm.local_response_norm`.

    Attributes:
      size: channels in a window.
      alpha: what the mean or the sum of squares is multiplied by.
      beta: the exponent.
      k: what a response is divided by, beside.
      channel_axis: the axis of the channels.
      average: whether to take the mean over the window, or else the sum.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> norm = jnn.LocalResponseNorm(size=3, alpha=3.0, beta=1.0, k=1.0)
      >>> norm.apply({}, jnp.array([1., 0., 1.])).tolist()
      [0.5, 0.0, 0.5]

    Reference: Krizhevsky, Sutskever & Hinton 2012, ImageNet Classification with Deep Convolutional
    Neural Networks.
    """

    technique = LocalResponseNormLayer

    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0
    channel_axis: int = -1
    average: bool = True

    @nn.compact
    def __call__(self, x: ArrayLike) -> jax.Array:
        """Normalizes `x`."""
        return self.options.apply(x)


class DivisiveNorm(PlainNorm, kw_only=True):
    """Divisive normalization by the elements nearby; see `jaxnorm.divisive_norm`.

    Its parameters sigma, gamma and beta have one value for each place on the last axis.

    Attributes:
      window: how long windows are along each of `reduction_axes`, odd; or one size for all.
      reduction_axes: the axes that windows extend along.
      sigma_init: initializer of sigma.
      center: whether to subtract the mean of the window.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[[1.], [3.]]])
      >>> norm = jnn.DivisiveNorm(window=3, reduction_axes=1)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> norm.apply(variables, x).round(3).tolist()
      [[[-0.7070000171661377], [0.7070000171661377]]]

    Reference: Ren, Liao, Urtasun, Sinz & Zemel 2016, Normalizing the Normalizers,
    arXiv:1611.04520.
    """

    technique = DivisiveNormLayer

    window: int | Sequence[int]
    reduction_axes: Axes = (1, 2)
    sigma_init: nn.initializers.Initializer = nn.initializers.ones
    center: bool = True


class FilterResponseNorm(PlainNorm, kw_only=True):
    """Filter response normalization; see `jaxnorm.filter_response_norm`.

    Attributes:
      epsilon: added to the mean square.
      channel_axis: the axis of the channels.
      reduction_axes: the axes pooled; default: all but axis 0 and the channels.
      use_tau: whether to end in max(y, tau), tau a parameter with one value per channel.
      tau_init: initializer of tau.
      use_learned_epsilon: whether to add the absolute value of a parameter, `learned_epsilon`, to
        the fixed one, as a layer without positions needs.
      learned_epsilon_init: its initializer.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[[2.], [-2.]]])
      >>> norm = jnn.FilterResponseNorm(epsilon=0.0)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> norm.apply(variables, x).tolist()
      [[[1.0], [0.0]]]

    Reference: Singh & Krishnan 2019, Filter Response Normalization Layer, arXiv:1911.09737.
    """

    technique = FilterResponseNormLayer

    epsilon: float = 1e-6
    channel_axis: int = -1
    reduction_axes: Axes | None = None
    use_tau: bool = True
    tau_init: nn.initializers.Initializer = nn.initializers.zeros
    use_learned_epsilon: bool = False
    learned_epsilon_init: nn.initializers.Initializer = nn.initializers.constant(1e-4)


class GlobalResponseNorm(PlainNorm, kw_only=True):
    """Global response normalization; see `jaxnorm.global_response_norm`. Starts as the identity.

    Attributes:
      epsilon: added to the mean length of the channels.
      channel_axis: the axis of the channels.
      reduction_axes: the axes pooled; default: all but axis 0 and the channels.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[[3., 0.], [4., 15.]]])
      >>> norm = jnn.GlobalResponseNorm()
      >>> variables = norm.init(jax.random.key(0), x)
      >>> norm.apply(variables, x).tolist()
      [[[3.0, 0.0], [4.0, 15.0]]]

    Reference: Woo et al. 2023, ConvNeXt V2, arXiv:2301.00808.
    """

    technique = GlobalResponseNormLayer

    epsilon: float = 1e-6
    gamma_init: nn.initializers.Initializer = nn.initializers.zeros
    channel_axis: int = -1
    reduction_axes: Axes | None = None
