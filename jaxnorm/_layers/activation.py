"""What takes a norm's place, and norms joined to an activation, as layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.formula import apply_affine
from jaxnorm._core.pool import widen
from jaxnorm._layers.call import Context
from jaxnorm._layers.layer import AffineLayer, ChannelLayer, Layer, Own, Parameter, Parameters
from jaxnorm.functional import activation, evolved_example


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicTanhLayer(AffineLayer):
    """The options of `jaxnorm.linen.DynamicTanh`."""

    feature_axes: Axes

    def features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.canonical_axes(self.feature_axes, shape, "feature_axes")

    def parameters(self, sizes: tuple[int, ...]) -> Parameters:
        return {"alpha": Parameter((), "alpha_init"), **super().parameters(sizes)}

    def apply(self, x: jax.Array, own: Own) -> jax.Array:
        """Squashes `x`."""
        options = {"feature_axes": self.feature_axes, "dtype": self.dtype}
        return activation.dynamic_tanh(x, **own, **options)


class DynamicErfLayer(DynamicTanhLayer):
    """The options of `jaxnorm.linen.DynamicErf`."""

    def parameters(self, sizes: tuple[int, ...]) -> Parameters:
        return {**super().parameters(sizes), "shift": Parameter((), "shift_init")}

    def apply(self, x: jax.Array, own: Own) -> jax.Array:
        """Squashes `x`."""
        options = {"feature_axes": self.feature_axes, "dtype": self.dtype}
        return activation.dynamic_erf(x, **own, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerScaleLayer(Layer):
    """The options of `jaxnorm.linen.LayerScale`."""

    feature_axes: Axes
    dtype: DTypeLike | None

    def features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.canonical_axes(self.feature_axes, shape, "feature_axes", allow_empty=True)

    def parameters(self, sizes: tuple[int, ...]) -> Parameters:
        return {"gamma": Parameter(sizes, "gamma_init")}

    def apply(self, x: jax.Array, own: Own) -> jax.Array:
        """Scales `x`."""
        axes = self.features_of(x.shape)
        gamma = _axes.expand_parameter(own["gamma"], x, axes or -1, axes, "gamma")
        y = apply_affine(widen(x, None), gamma, None, 0.0)
        return y.astype(_axes.result_dtype(x, self.dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolyNormLayer(Layer):
    """The options of `jaxnorm.linen.PolyNorm`."""

    reduction_axes: Axes
    epsilon: float
    use_bias: bool
    dtype: DTypeLike | None

    def parameters(self, sizes: tuple[int, ...]) -> Parameters:
        del sizes
        bias = Parameter((), "bias_init") if self.use_bias else None
        return {"weights": Parameter((3,), "weights_init"), "bias": bias}

    def apply(self, x: jax.Array, own: Own, mask: ArrayLike | None) -> jax.Array:
        """Applies the polynomial to `x`."""
        options = {"axis": self.reduction_axes, "epsilon": self.epsilon, "dtype": self.dtype}
        return activation.poly_norm(x, **own, mask=mask, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedRMSNormLayer(Layer):
    """The options of `jaxnorm.linen.GatedRMSNorm`."""

    group_size: int | None
    norm_before_gate: bool
    activation: Callable[[jax.Array], jax.Array]
    reduction_axes: Axes
    epsilon: float
    dtype: DTypeLike | None
    use_gamma: bool

    def features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.canonical_axes(self.reduction_axes, shape, "reduction_axes")

    def parameters(self, sizes: tuple[int, ...]) -> Parameters:
        return {"gamma": Parameter(sizes, "gamma_init") if self.use_gamma else None}

    def apply(self, x: jax.Array, gate: ArrayLike, own: Own) -> jax.Array:
        """Normalizes `x`."""
        return activation.gated_rms_norm(
            x,
            gate,
            **own,
            group_size=self.group_size,
            norm_before_gate=self.norm_before_gate,
            activation=self.activation,
            axis=self.features_of(x.shape),
            epsilon=self.epsilon,
            dtype=self.dtype,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvoNormS0Layer(ChannelLayer):
    """The options of `jaxnorm.linen.EvoNormS0`."""

    num_groups: int
    use_v: bool

    def parameters(self, sizes: tuple[int, ...]) -> Parameters:
        v = Parameter(sizes, "v_init") if self.use_v else None
        return {**super().parameters(sizes), "v": v}

    def apply(self, x: jax.Array, own: Own, context: Context, mask: ArrayLike | None) -> jax.Array:
        """Normalizes `x`."""
        del context
        options = {"num_groups": self.num_groups, "mask": mask}
        return evolved_example.evo_norm_s0(x, **own, **options, **self.arguments(x))
