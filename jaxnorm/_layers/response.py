"""Norms by the size of responses as layers: their parameters, and what their options say."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._layers.call import Context
from jaxnorm._layers.layer import AffineLayer, Layer, Own, Parameter, Parameters, PositionLayer
from jaxnorm.functional import local, response


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleNormLayer(Layer):
    """The options of `jaxnorm.linen.ScaleNorm`."""

    reduction_axes: Axes
    epsilon: float
    dtype: DTypeLike | None
    use_gamma: bool

    def features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.canonical_axes(self.reduction_axes, shape, "reduction_axes")

    def parameters(self, sizes: tuple[int, ...]) -> Parameters:
        gamma = Parameter((), "gamma_init", math.sqrt(math.prod(sizes)))
        return {"gamma": gamma if self.use_gamma else None}

    def apply(self, x: jax.Array, own: Own, mask: ArrayLike | None) -> jax.Array:
        """Scales `x`."""
        options = {"axis": self.features_of(x.shape), "epsilon": self.epsilon, "dtype": self.dtype}
        return response.lp_norm(x, **own, mask=mask, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalResponseNormLayer(Layer):
    """The options of `jaxnorm.linen.LocalResponseNorm`."""

    size: int
    alpha: float
    beta: float
    k: float
    channel_axis: int
    average: bool
    dtype: DTypeLike | None

    def apply(self, x: ArrayLike) -> jax.Array:
        """Normalizes `x`."""
        return local.local_response_norm(x, **dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DivisiveNormLayer(AffineLayer):
    """The options of `jaxnorm.linen.DivisiveNorm`."""

    window: int | Sequence[int]
    reduction_axes: Axes
    center: bool

    def features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (len(shape) - 1,)

    def parameters(self, sizes: tuple[int, ...]) -> Parameters:
        return {**super().parameters(sizes), "sigma": Parameter(sizes, "sigma_init")}

    def apply(self, x: jax.Array, own: Own, context: Context, mask: ArrayLike | None) -> jax.Array:
        """Normalizes `x`."""
        del context
        options = {"window": self.window, "center": self.center, "dtype": self.dtype}
        return local.divisive_norm(x, **own, axis=self.reduction_axes, mask=mask, **options)


class GlobalResponseNormLayer(PositionLayer):
    """The options of `jaxnorm.linen.GlobalResponseNorm`."""

    def apply(self, x: jax.Array, own: Own, context: Context, mask: ArrayLike | None) -> jax.Array:
        """Normalizes `x`."""
        del context
        return response.global_response_norm(x, **own, mask=mask, **self.arguments(x))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterResponseNormLayer(PositionLayer):
    """The options of `jaxnorm.linen.FilterResponseNorm`."""

    use_tau: bool
    use_learned_epsilon: bool

    def parameters(self, sizes: tuple[int, ...]) -> Parameters:
        learned = Parameter(sizes, "learned_epsilon_init")
        return {
            **super().parameters(sizes),
            "tau": Parameter(sizes, "tau_init") if self.use_tau else None,
            "learned_epsilon": learned if self.use_learned_epsilon else None,
        }

    def apply(self, x: jax.Array, own: Own, context: Context, mask: ArrayLike | None) -> jax.Array:
        """Normalizes `x`."""
        del context
        return response.filter_response_norm(x, **own, mask=mask, **self.arguments(x))
