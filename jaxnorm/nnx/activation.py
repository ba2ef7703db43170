"""What takes a norm's place, and norms joined to an activation, as Flax NNX modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import InitVar

import jax
from flax import nnx

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._layers.activation import (
    DynamicErfLayer,
    DynamicTanhLayer,
    EvoNormS0Layer,
    GatedRMSNormLayer,
    LayerScaleLayer,
    PolyNormLayer,
)
from jaxnorm.nnx._base import (
    AffineModule,
    Initializer,
    ParametricModule,
    PlainNorm,
    SizedModule,
    module,
)


@module
class _Squash(AffineModule):
    feature_axes: Axes = -1
    alpha_init: InitVar[Initializer] = nnx.initializers.constant(0.5)

    def __call__(
        self, x: ArrayLike, *, gamma: ArrayLike | None = None, beta: ArrayLike | None = None
    ) -> jax.Array:
        """Squashes `x`; a gamma or beta given here replaces the module's own."""
        x = _axes.check_input(x)
        return self.options.apply(x, self._own(x, gamma=gamma, beta=beta))


@module
class DynamicTanh(_Squash):
    """A learned squashing in place of layer norm; see `jaxnorm.dynamic_tanh`.

    The options that are not listed are those of `jaxnorm.linen.DynamicTanh`.

    Attributes:
      num_features: size of gamma and beta; sizes where they have several axes, ascending.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> jnx.DynamicTanh(3)(jnp.array([[0., 100., -100.]])).tolist()
      [[0.0, 1.0, -1.0]]

    Reference: Zhu, Chen, He, LeCun & Liu 2025, Transformers without Normalization,
    arXiv:2503.10622.
    """

    technique = DynamicTanhLayer


@module
class DynamicErf(_Squash):
    """A learned squashing by the error function; see `jaxnorm.dynamic_erf`.

    The options that are not listed are those of `jaxnorm.linen.DynamicErf`.

    Attributes:
      num_features: size of gamma and beta; sizes where they have several axes, ascending.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> jnx.DynamicErf(3)(jnp.array([[0., 100., -100.]])).round(3).tolist()
      [[0.0, 1.0, -1.0]]

    Reference: Chen et al. 2025, Stronger Normalization-Free Transformers, arXiv:2512.10938.
    """

    technique = DynamicErfLayer

    shift_init: InitVar[Initializer] = nnx.initializers.zeros


@module
class LayerScale(SizedModule):
    """Scales the branches of a residual network by factors that start near zero: x * gamma.

    The options that are not listed are those of `jaxnorm.linen.LayerScale`.

    Attributes:
      num_features: size of gamma; () with `feature_axes=()`, for one factor.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> from flax import nnx
      >>> scale = jnx.LayerScale(2, gamma_init=nnx.initializers.constant(0.5))
      >>> scale(jnp.array([[2., 4.]])).tolist()
      [[1.0, 2.0]]

    Reference: Touvron, Cord, Sablayrolles, Synnaeve & Jégou 2021, Going Deeper with Image
    Transformers, arXiv:2103.17239.
    """

    technique = LayerScaleLayer

    feature_axes: Axes = -1
    gamma_init: InitVar[Initializer] = nnx.initializers.constant(1e-5)

    def __call__(self, x: ArrayLike, *, gamma: ArrayLike | None = None) -> jax.Array:
        """Scales `x`; a gamma given here replaces the module's own."""
        x = _axes.check_input(x)
        return self.options.apply(x, self._own(x, gamma=gamma))


@module
class PolyNorm(ParametricModule):
    """A polynomial of normalized powers, in an activation's place; see `jaxnorm.poly_norm`.

    The options that are not listed are those of `jaxnorm.linen.PolyNorm`.

    Attributes:
      reduction_axes: the axes pooled.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.PolyNorm(epsilon=0.0, use_bias=False)
      >>> norm(jnp.array([[1., -1., 1., -1.]])).round(3).tolist()
      [[1.0, -0.3330000042915344, 1.0, -0.3330000042915344]]

    Reference: Zhuo et al. 2024, Polynomial Composition Activations, arXiv:2411.03884.
    """

    technique = PolyNormLayer

    reduction_axes: Axes = -1
    epsilon: float = 1e-6
    weights_init: InitVar[Initializer] = nnx.initializers.constant(1 / 3)
    use_bias: bool = True
    bias_init: InitVar[Initializer] = nnx.initializers.ones

    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Applies the polynomial to `x`."""
        x = _axes.check_input(x)
        return self.options.apply(x, self._own(x), mask)


@module
class GatedRMSNorm(SizedModule):
    """RMS norm with a gate; see `jaxnorm.gated_rms_norm`. Called with the input and the gate.

    The options that are not listed are those of `jaxnorm.linen.GatedRMSNorm`.

    Attributes:
      num_features: size of the features; sizes where they have several axes, ascending.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x, gate = jnp.array([[3., -3.]]), jnp.array([[1., 1.]])
      >>> jnx.GatedRMSNorm(2, epsilon=0.0)(x, gate).round(3).tolist()
      [[1.0, -1.0]]

    Reference: Dao & Gu 2024, Transformers are SSMs (Mamba-2), arXiv:2405.21060.
    """

    technique = GatedRMSNormLayer

    group_size: int | None = None
    norm_before_gate: bool = False
    activation: Callable[[jax.Array], jax.Array] = jax.nn.silu
    reduction_axes: Axes = -1
    epsilon: float = 1e-5
    use_gamma: bool = True
    gamma_init: InitVar[Initializer] = nnx.initializers.ones

    def __call__(
        self, x: ArrayLike, gate: ArrayLike, *, gamma: ArrayLike | None = None
    ) -> jax.Array:
        """Normalizes `x`; a gamma given here replaces the module's own."""
        x = _axes.check_input(x)
        return self.options.apply(x, gate, self._own(x, gamma=gamma))


@module
class EvoNormS0(PlainNorm):
    """Group norm joined to an activation; see `jaxnorm.evo_norm_s0`.

    The options that are not listed are those of `jaxnorm.linen.EvoNormS0`.

    Attributes:
      num_features: number of channels.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> jnx.EvoNormS0(2, num_groups=1)(jnp.array([[-100., 100.]])).tolist()
      [[0.0, 1.0]]

    Reference: Liu, Brock, Simonyan & Le 2020, Evolving Normalization-Activation Layers,
    arXiv:2004.02967.
    """

    technique = EvoNormS0Layer

    epsilon: float = 1e-5
    num_groups: int = 32
    channel_axis: int = -1
    use_v: bool = True
    v_init: InitVar[Initializer] = nnx.initializers.ones
