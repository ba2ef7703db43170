"""What takes a norm's place, and norms joined to an activation: options and parameters."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.nn import initializers

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.formula import apply_affine
from jaxnorm._core.pool import widen
from jaxnorm._layers.call import Call, Params, State
from jaxnorm._layers.layer import (
    AffineLayer,
    ChannelLayer,
    Initializer,
    Parameters,
    ParametricLayer,
    PlainNorm,
)
from jaxnorm._layers.options import options
from jaxnorm.functional import activation, evolved_example


@options
class _Squash(AffineLayer):
    feature_axes: Axes = -1
    """the axes that gamma and beta vary along."""
    alpha_init: Initializer = initializers.constant(0.5)
    """initializer of alpha, of rank 0. In language models dynamic tanh starts higher in attention
    than elsewhere, and lower where the width is larger."""

    def _features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.canonical_axes(self.feature_axes, shape, "feature_axes")

    def _parameters(self, sizes: tuple[int, ...]) -> Parameters:
        return {"alpha": self._parameter((), self.alpha_init), **super()._parameters(sizes)}

    def _squash(self, x: jax.Array, params: Params) -> jax.Array:
        raise NotImplementedError

    def __call__(
        self, x: ArrayLike, *, gamma: ArrayLike | None = None, beta: ArrayLike | None = None
    ) -> jax.Array:
        """Squashes `x`; a gamma or beta given here replaces the module's own."""
        x = _axes.check_input(x)
        return self._squash(x, self._params(x, gamma=gamma, beta=beta))


@options
class DynamicTanh(_Squash):
    """A learned squashing in place of layer norm; see `jaxnorm.dynamic_tanh`.

    Reference: Zhu, Chen, He, LeCun & Liu 2025, Transformers without Normalization,
    arXiv:2503.10622.
    """

    def _squash(self, x: jax.Array, params: Params) -> jax.Array:
        return activation.dynamic_tanh(
            x, **params, feature_axes=self.feature_axes, dtype=self.dtype
        )


@options
class DynamicErf(_Squash):
    """A learned squashing by the error function; see `jaxnorm.dynamic_erf`.

    Reference: Chen et al. 2025, Stronger Normalization-Free Transformers, arXiv:2512.10938.
    """

    shift_init: Initializer = initializers.zeros
    """initializer of the shift, of rank 0."""

    def _parameters(self, sizes: tuple[int, ...]) -> Parameters:
        return {**super()._parameters(sizes), "shift": self._parameter((), self.shift_init)}

    def _squash(self, x: jax.Array, params: Params) -> jax.Array:
        return activation.dynamic_erf(x, **params, feature_axes=self.feature_axes, dtype=self.dtype)


@options
class LayerScale(ParametricLayer):
    """Scales the branches of a residual network by factors that start near zero: x * gamma.

    With `feature_axes=()` and zeros it is SkipInit, and ReZero.

    Reference: Touvron, Cord, Sablayrolles, Synnaeve & Jégou 2021, Going Deeper with Image
    Transformers, arXiv:2103.17239.
    """

    feature_axes: Axes = -1
    """the axes that gamma varies along; none: one factor for all."""
    gamma_init: Initializer = initializers.constant(1e-5)
    """initializer of gamma; the paper starts at 1e-5 in deep networks."""

    def _features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.canonical_axes(self.feature_axes, shape, "feature_axes", allow_empty=True)

    def _parameters(self, sizes: tuple[int, ...]) -> Parameters:
        return {"gamma": self._parameter(sizes, self.gamma_init)}

    def __call__(self, x: ArrayLike, *, gamma: ArrayLike | None = None) -> jax.Array:
        """Scales `x`; a gamma given here replaces the module's own."""
        x = _axes.check_input(x)
        params, axes = self._params(x, gamma=gamma), self._features_of(x.shape)
        scale = _axes.expand_parameter(params["gamma"], x, axes or -1, axes, "gamma")
        y = apply_affine(widen(x, None), scale, None, 0.0)
        return y.astype(_axes.result_dtype(x, self.dtype))


@options
class PolyNorm(ParametricLayer):
    """A polynomial of normalized powers, in an activation's place; see `jaxnorm.poly_norm`.

    Reference: Zhuo et al. 2024, Polynomial Composition Activations, arXiv:2411.03884.
    """

    reduction_axes: Axes = -1
    """the axes pooled."""
    epsilon: float = 1e-6
    """added to each mean square."""
    weights_init: Initializer = initializers.constant(1 / 3)
    """initializer of the weights of the cube, the square and the input itself."""
    use_bias: bool = True
    """whether to add a parameter `bias`, of rank 0."""
    bias_init: Initializer = initializers.ones
    """its initializer."""

    def _parameters(self, sizes: tuple[int, ...]) -> Parameters:
        del sizes
        return {
            "weights": self._parameter((3,), self.weights_init),
            "bias": self._parameter((), self.bias_init, self.use_bias),
        }

    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Applies the polynomial to `x`."""
        x = _axes.check_input(x)
        return activation.poly_norm(
            x,
            **self._params(x),
            axis=self.reduction_axes,
            epsilon=self.epsilon,
            mask=mask,
            dtype=self.dtype,
        )


@options
class GatedRMSNorm(ParametricLayer):
    """RMS norm with a gate; see `jaxnorm.gated_rms_norm`.

    Reference: Dao & Gu 2024, Transformers are SSMs (Mamba-2), arXiv:2405.21060.
    """

    group_size: int | None = None
    """features of a group; default: all."""
    norm_before_gate: bool = False
    """whether the gate multiplies the normalized input."""
    activation: Callable[[jax.Array], jax.Array] = jax.nn.silu
    """activation of the gate."""
    reduction_axes: Axes = -1
    """the axes pooled, along which gamma varies, too."""
    epsilon: float = 1e-5
    """added to the mean square."""
    use_gamma: bool = True
    """whether to scale by a parameter gamma."""
    gamma_init: Initializer = initializers.ones
    """initializer of gamma."""

    def _features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.canonical_axes(self.reduction_axes, shape, "reduction_axes")

    def _parameters(self, sizes: tuple[int, ...]) -> Parameters:
        return {"gamma": self._parameter(sizes, self.gamma_init, self.use_gamma)}

    def __call__(
        self, x: ArrayLike, gate: ArrayLike, *, gamma: ArrayLike | None = None
    ) -> jax.Array:
        """Normalizes `x`; a gamma given here replaces the module's own."""
        x = _axes.check_input(x)
        return activation.gated_rms_norm(
            x,
            gate,
            **self._params(x, gamma=gamma),
            group_size=self.group_size,
            norm_before_gate=self.norm_before_gate,
            activation=self.activation,
            axis=self._features_of(x.shape),
            epsilon=self.epsilon,
            dtype=self.dtype,
        )


@options
class EvoNormS0(ChannelLayer, PlainNorm):
    """Group norm joined to an activation; see `jaxnorm.evo_norm_s0`.

    Reference: Liu, Brock, Simonyan & Le 2020, Evolving Normalization-Activation Layers,
    arXiv:2004.02967.
    """

    num_groups: int = 32
    """into how many groups the channels are divided."""
    use_v: bool = True
    """whether the slope of the sigmoid is a parameter v, with one value per channel, or 1."""
    v_init: Initializer = initializers.ones
    """its initializer."""

    def _parameters(self, sizes: tuple[int, ...]) -> Parameters:
        return {**super()._parameters(sizes), "v": self._parameter(sizes, self.v_init, self.use_v)}

    def _normalize(self, x: jax.Array, params: Params, state: State, call: Call) -> jax.Array:
        return evolved_example.evo_norm_s0(
            x, **params, num_groups=self.num_groups, mask=call.mask, **self._arguments(x)
        )
