"""What takes a norm's place, and norms joined to an activation, as Flax linen modules."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

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
from jaxnorm.linen._base import AffineModule, ParametricModule, PlainNorm


class _Squash(AffineModule, kw_only=True):
    feature_axes: Axes = -1
    alpha_init: nn.initializers.Initializer = nn.initializers.constant(0.5)

    @nn.compact
    def __call__(
        self, x: ArrayLike, *, gamma: ArrayLike | None = None, beta: ArrayLike | None = None
    ) -> jax.Array:
        """Squashes `x`; a gamma or beta given here replaces the module's own."""
        x = _axes.check_input(x)
        return self.options.apply(x, self.own(x, gamma=gamma, beta=beta))


class DynamicTanh(_Squash, kw_only=True):
    """A learned squashing in place of layer norm; see `jaxnorm.dynamic_tanh`.

    Attributes:
      feature_axes: the axes that gamma and beta vary along.
      alpha_init: initializer of alpha, of rank 0. In language models the paper starts it higher in
        attention than elsewhere, and lower where the width is larger.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[0., 100., -100.]])
      >>> norm = jnn.DynamicTanh()
      >>> norm.apply(norm.init(jax.random.key(0), x), x).tolist()
      [[0.0, 1.0, -1.0]]

    Reference: Zhu, Chen, He, LeCun & Liu 2025, Transformers without Normalization,
    arXiv:2503.10622.
    """

    technique = DynamicTanhLayer


class DynamicErf(_Squash, kw_only=True):
    """A learned squashing by the error function; see `jaxnorm.dynamic_erf`.

    Attributes:
      feature_axes: the axes that gamma and beta vary along.
      alpha_init: initializer of alpha, of rank 0.
      shift_init: initializer of the shift, of rank 0.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[0., 100., -100.]])
      >>> norm = jnn.DynamicErf()
      >>> norm.apply(norm.init(jax.random.key(0), x), x).round(3).tolist()
      [[0.0, 1.0, -1.0]]

    Reference: Chen et al. 2025, Stronger Normalization-Free Transformers, arXiv:2512.10938.
    """

    technique = DynamicErfLayer

    shift_init: nn.initializers.Initializer = nn.initializers.zeros


class LayerScale(ParametricModule, kw_only=True):
    """Scales the branches of a residual network by factors that start near zero: x * gamma.

    With `feature_axes=()` and zeros it is SkipInit, and ReZero.

    Attributes:
      feature_axes: the axes that gamma varies along; none: one factor for all.
      gamma_init: initializer of gamma; the paper starts at 1e-5 in deep networks.

    Example:
      >>> import jax, jax.numpy as jnp, flax.linen as nn, jaxnorm.linen as jnn
      >>> x = jnp.array([[2., 4.]])
      >>> scale = jnn.LayerScale(gamma_init=nn.initializers.constant(0.5))
      >>> scale.apply(scale.init(jax.random.key(0), x), x).tolist()
      [[1.0, 2.0]]

    Reference: Touvron, Cord, Sablayrolles, Synnaeve & Jégou 2021, Going Deeper with Image
    Transformers, arXiv:2103.17239.
    """

    technique = LayerScaleLayer

    feature_axes: Axes = -1
    gamma_init: nn.initializers.Initializer = nn.initializers.constant(1e-5)

    @nn.compact
    def __call__(self, x: ArrayLike, *, gamma: ArrayLike | None = None) -> jax.Array:
        """Scales `x`; a gamma given here replaces the module's own."""
        x = _axes.check_input(x)
        return self.options.apply(x, self.own(x, gamma=gamma))


class PolyNorm(ParametricModule, kw_only=True):
    """A polynomial of normalized powers, in an activation's place; see `jaxnorm.poly_norm`.

    Attributes:
      reduction_axes: the axes pooled.
      epsilon: added to each mean square.
      weights_init: initializer of the weights of the cube, the square and the input itself.
      use_bias: whether to add a parameter `bias`, of rank 0.
      bias_init: its initializer.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[1., -1., 1., -1.]])
      >>> norm = jnn.PolyNorm(epsilon=0.0, use_bias=False)
      >>> norm.apply(norm.init(jax.random.key(0), x), x).round(3).tolist()
      [[1.0, -0.3330000042915344, 1.0, -0.3330000042915344]]

    Reference: Zhuo et al. 2024, Polynomial Composition Activations, arXiv:2411.03884.
    """

    technique = PolyNormLayer

    reduction_axes: Axes = -1
    epsilon: float = 1e-6
    weights_init: nn.initializers.Initializer = nn.initializers.constant(1 / 3)
    use_bias: bool = True
    bias_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Applies the polynomial to `x`."""
        x = _axes.check_input(x)
        return self.options.apply(x, self.own(x), mask)


class GatedRMSNorm(ParametricModule, kw_only=True):
    """RMS norm with a gate; see `jaxnorm.gated_rms_norm`. Called with the input and the gate.

    Attributes:
      group_size: features of a group; default: all.
      norm_before_gate: whether the gate multiplies the normalized input.
      activation: of the gate.
      reduction_axes: the axes pooled, along which gamma varies, too.
      epsilon: added to the mean square.
      use_gamma: whether to scale by a parameter gamma.
      gamma_init: initializer of gamma.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x, gate = jnp.array([[3., -3.]]), jnp.array([[1., 1.]])
      >>> norm = jnn.GatedRMSNorm(epsilon=0.0)
      >>> norm.apply(norm.init(jax.random.key(0), x, gate), x, gate).round(3).tolist()
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
    gamma_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self, x: ArrayLike, gate: ArrayLike, *, gamma: ArrayLike | None = None
    ) -> jax.Array:
        """Normalizes `x`; a gamma given here replaces the module's own."""
        x = _axes.check_input(x)
        return self.options.apply(x, gate, self.own(x, gamma=gamma))


class EvoNormS0(PlainNorm, kw_only=True):
    """Group norm joined to an activation; see `jaxnorm.evo_norm_s0`.

    Attributes:
      epsilon: added to the variance.
      num_groups: into how many groups the channels are divided.
      channel_axis: the axis of the channels.
      use_v: whether the slope of the sigmoid is a parameter v, with one value per channel, or 1.
      v_init: its initializer.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[-100., 100.]])
      >>> norm = jnn.EvoNormS0(num_groups=1)
      >>> norm.apply(norm.init(jax.random.key(0), x), x).tolist()
      [[0.0, 1.0]]

    Reference: Liu, Brock, Simonyan & Le 2020, Evolving Normalization-Activation Layers,
    arXiv:2004.02967.
    """

    technique = EvoNormS0Layer

    epsilon: float = 1e-5
    num_groups: int = 32
    channel_axis: int = -1
    use_v: bool = True
    v_init: nn.initializers.Initializer = nn.initializers.ones
