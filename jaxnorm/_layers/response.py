"""Norms by the size of responses: their options and parameters, and what these say of an input."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.nn import initializers

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._layers.call import Call, Params, State
from jaxnorm._layers.layer import (
    Initializer,
    Layer,
    Parameters,
    ParametricLayer,
    PlainNorm,
    PositionNorm,
)
from jaxnorm._layers.options import options
from jaxnorm.functional import local, response


@options
class ScaleNorm(ParametricLayer):
    """Vectors of a learned length, one for all; see `jaxnorm.lp_norm`.

    Reference: Nguyen & Salazar 2019, Transformers without Tears, arXiv:1910.05895.
    """

    reduction_axes: Axes = -1
    """the axes of the vectors."""
    epsilon: float = 1e-5
    """the smallest length that is divided by."""
    use_gamma: bool = True
    """whether the length is a parameter gamma, of rank 0, or 1."""
    gamma_init: Initializer | None = None
    """initializer of gamma; default: the root of the number of elements of a vector."""

    def _features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.canonical_axes(self.reduction_axes, shape, "reduction_axes")

    def _parameters(self, sizes: tuple[int, ...]) -> Parameters:
        init = self.gamma_init or initializers.constant(math.sqrt(math.prod(sizes)))
        return {"gamma": self._parameter((), init, self.use_gamma)}

    def __call__(
        self, x: ArrayLike, *, mask: ArrayLike | None = None, gamma: ArrayLike | None = None
    ) -> jax.Array:
        """Scales `x`; a gamma given here replaces the module's own."""
        x = _axes.check_input(x)
        return response.lp_norm(
            x,
            **self._params(x, gamma=gamma),
            axis=self._features_of(x.shape),
            epsilon=self.epsilon,
            mask=mask,
            dtype=self.dtype,
        )


@options
class LocalResponseNorm(Layer):
    """Local response normalization over channels; see `jaxnorm.local_response_norm`.

    Reference: Krizhevsky, Sutskever & Hinton 2012, ImageNet Classification with Deep Convolutional
    Neural Networks.
    """

    size: int = dataclasses.field()
    """channels in a window."""
    alpha: float = 1e-4
    """what the mean or the sum of squares is multiplied by."""
    beta: float = 0.75
    """the exponent."""
    k: float = 1.0
    """what a response is divided by, beside."""
    channel_axis: int = -1
    """the axis of the channels."""
    average: bool = True
    """whether to take the mean over the window, or else the sum."""
    dtype: DTypeLike | None = None
    """dtype of the result; default: that of the input."""

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Normalizes `x`."""
        names = ("size", "alpha", "beta", "k", "channel_axis", "average", "dtype")
        return local.local_response_norm(x, **{name: getattr(self, name) for name in names})


@options
class DivisiveNorm(PlainNorm):
    """Divisive normalization by the elements nearby; see `jaxnorm.divisive_norm`.

    Reference: Ren, Liao, Urtasun, Sinz & Zemel 2016, Normalizing the Normalizers,
    arXiv:1611.04520.
    """

    window: int | Sequence[int] = dataclasses.field()
    """how long windows are along each of `reduction_axes`, odd; or one size for all."""
    reduction_axes: Axes = (1, 2)
    """the axes that windows extend along."""
    sigma_init: Initializer = initializers.ones
    """initializer of sigma."""
    center: bool = True
    """whether to subtract the mean of the window."""

    def _features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (len(shape) - 1,)

    def _parameters(self, sizes: tuple[int, ...]) -> Parameters:
        return {**super()._parameters(sizes), "sigma": self._parameter(sizes, self.sigma_init)}

    def _normalize(self, x: jax.Array, params: Params, state: State, call: Call) -> jax.Array:
        return local.divisive_norm(
            x,
            **params,
            axis=self.reduction_axes,
            window=self.window,
            center=self.center,
            mask=call.mask,
            dtype=self.dtype,
        )


@options
class FilterResponseNorm(PositionNorm):
    """Filter response normalization; see `jaxnorm.filter_response_norm`.

    Reference: Singh & Krishnan 2019, Filter Response Normalization Layer, arXiv:1911.09737.
    """

    epsilon: float = 1e-6
    """added to the mean square."""
    use_tau: bool = True
    """whether to end in max(y, tau), tau a parameter with one value per channel."""
    tau_init: Initializer = initializers.zeros
    """initializer of tau."""
    use_learned_epsilon: bool = False
    """whether to add the absolute value of a parameter, `learned_epsilon`, to the fixed one, as a
    layer without positions needs."""
    learned_epsilon_init: Initializer = initializers.constant(1e-4)
    """its initializer."""

    def _parameters(self, sizes: tuple[int, ...]) -> Parameters:
        learned = self._parameter(sizes, self.learned_epsilon_init, self.use_learned_epsilon)
        return {
            **super()._parameters(sizes),
            "tau": self._parameter(sizes, self.tau_init, self.use_tau),
            "learned_epsilon": learned,
        }

    def _normalize(self, x: jax.Array, params: Params, state: State, call: Call) -> jax.Array:
        arguments = self._arguments(x)
        return response.filter_response_norm(x, **params, mask=call.mask, **arguments)


@options
class GlobalResponseNorm(PositionNorm):
    """Global response normalization; see `jaxnorm.global_response_norm`.

    Reference: Woo et al. 2023, ConvNeXt V2, arXiv:2301.00808.
    """

    epsilon: float = 1e-6
    """added to the mean length of the channels."""
    gamma_init: Initializer = initializers.zeros

    def _normalize(self, x: jax.Array, params: Params, state: State, call: Call) -> jax.Array:
        arguments = self._arguments(x)
        return response.global_response_norm(x, **params, mask=call.mask, **arguments)
