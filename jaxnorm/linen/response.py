"""Norms by the size of responses as Flax linen modules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm.functional import local, response
from jaxnorm.linen._base import AffineModule


class ScaleNorm(nn.Module, kw_only=True):
    """Vectors of a learned length, one for all; see `jaxnorm.lp_norm`.

    Attributes:
      reduction_axes: the axes of the vectors.
      epsilon: the smallest length that is divided by.
      dtype: dtype of the result; default: that of the input.
      param_dtype: dtype of the parameter.
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

    reduction_axes: Axes = -1
    epsilon: float = 1e-5
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32
    use_gamma: bool = True
    gamma_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(
        self, x: ArrayLike, *, mask: ArrayLike | None = None, gamma: ArrayLike | None = None
    ) -> jax.Array:
        """Scales `x`; a gamma given here replaces the module's own."""
        x = _axes.check_input(x)
        axes = _axes.canonical_axes(self.reduction_axes, x.shape, "reduction_axes")
        if gamma is None and self.use_gamma:
            size = math.prod(x.shape[a] for a in axes)
            init = self.gamma_init or nn.initializers.constant(math.sqrt(size))
            gamma = self.param("gamma", init, (), self.param_dtype)
        return response.lp_norm(
            x, gamma, axis=axes, epsilon=self.epsilon, mask=mask, dtype=self.dtype
        )


class LocalResponseNorm(nn.Module, kw_only=True):
    """Local response normalization over channels; see `jaxnorm.local_response_norm`.

    Attributes:
      size: channels in a window.
      alpha: what the mean or the sum of squares is multiplied by.
      beta: the exponent.
      k: what a response is divided by, beside.
      channel_axis: the axis of the channels.
      average: whether to take the mean over the window, or else the sum.
      dtype: dtype of the result; default: that of the input.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> norm = jnn.LocalResponseNorm(size=3, alpha=3.0, beta=1.0, k=1.0)
      >>> norm.apply({}, jnp.array([1., 0., 1.])).tolist()
      [0.5, 0.0, 0.5]

    Reference: Krizhevsky, Sutskever & Hinton 2012, ImageNet Classification with Deep Convolutional
    Neural Networks.
    """

    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0
    channel_axis: int = -1
    average: bool = True
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, x: ArrayLike) -> jax.Array:
        """Normalizes `x`."""
        return local.local_response_norm(
            x,
            size=self.size,
            alpha=self.alpha,
            beta=self.beta,
            k=self.k,
            channel_axis=self.channel_axis,
            average=self.average,
            dtype=self.dtype,
        )


class DivisiveNorm(nn.Module, kw_only=True):
    """Divisive normalization by the elements nearby; see `jaxnorm.divisive_norm`.

    Attributes:
      window: how long windows are along each of `reduction_axes`, odd; or one size for all.
      reduction_axes: the axes that windows extend along.
      sigma_init: initializer of sigma, a parameter with one value for each place on the last axis.
      center: whether to subtract the mean of the window.
      dtype: dtype of the result; default: that of the input.
      param_dtype: dtype of the parameters.
      use_gamma: whether to scale by a parameter gamma, along the last axis.
      use_beta: whether to add a parameter beta, along the last axis.
      gamma_init: initializer of gamma.
      beta_init: initializer of beta.

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

    window: int | Sequence[int]
    reduction_axes: Axes = (1, 2)
    sigma_init: nn.initializers.Initializer = nn.initializers.ones
    center: bool = True
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32
    use_gamma: bool = True
    use_beta: bool = True
    gamma_init: nn.initializers.Initializer = nn.initializers.ones
    beta_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x`; a gamma or beta given here replaces the module's own."""
        x = _axes.check_input(x)
        shape = x.shape[-1:]
        if gamma is None and self.use_gamma:
            gamma = self.param("gamma", self.gamma_init, shape, self.param_dtype)
        if beta is None and self.use_beta:
            beta = self.param("beta", self.beta_init, shape, self.param_dtype)
        return local.divisive_norm(
            x,
            gamma,
            beta,
            axis=self.reduction_axes,
            window=self.window,
            sigma=self.param("sigma", self.sigma_init, shape, self.param_dtype),
            center=self.center,
            mask=mask,
            dtype=self.dtype,
        )


class FilterResponseNorm(AffineModule, kw_only=True):
    """Filter response normalization; see `jaxnorm.filter_response_norm`.

    Attributes:
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

    channel_axis: int = -1
    reduction_axes: Axes | None = None
    use_tau: bool = True
    tau_init: nn.initializers.Initializer = nn.initializers.zeros
    use_learned_epsilon: bool = False
    learned_epsilon_init: nn.initializers.Initializer = nn.initializers.constant(1e-4)

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x`; a gamma or beta given here replaces the module's own."""
        x = _axes.check_input(x)
        channel = _axes.canonical_axis(self.channel_axis, x.shape, "channel_axis")
        axes = None if self.reduction_axes is None else self.field_axes("reduction_axes", x)
        gamma, beta = self.affine(x, channel, gamma, beta)
        shape, tau, learned = (x.shape[channel],), None, None
        if self.use_tau:
            tau = self.param("tau", self.tau_init, shape, self.param_dtype)
        if self.use_learned_epsilon:
            learned = self.param(
                "learned_epsilon", self.learned_epsilon_init, shape, self.param_dtype
            )
        return response.filter_response_norm(
            x,
            gamma,
            beta,
            tau=tau,
            axis=axes,
            channel_axis=channel,
            epsilon=self.epsilon,
            learned_epsilon=learned,
            mask=mask,
            dtype=self.dtype,
        )


class GlobalResponseNorm(AffineModule, kw_only=True):
    """Global response normalization; see `jaxnorm.global_response_norm`. Starts as the identity.

    Attributes:
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

    gamma_init: nn.initializers.Initializer = nn.initializers.zeros
    channel_axis: int = -1
    reduction_axes: Axes | None = None

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x`; a gamma or beta given here replaces the module's own."""
        x = _axes.check_input(x)
        channel = _axes.canonical_axis(self.channel_axis, x.shape, "channel_axis")
        axes = None if self.reduction_axes is None else self.field_axes("reduction_axes", x)
        gamma, beta = self.affine(x, channel, gamma, beta)
        return response.global_response_norm(
            x,
            gamma,
            beta,
            axis=axes,
            channel_axis=channel,
            epsilon=self.epsilon,
            mask=mask,
            dtype=self.dtype,
        )
