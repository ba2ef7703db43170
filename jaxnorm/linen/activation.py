"""What takes a norm's place, and norms joined to an activation, as Flax linen modules."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.formula import apply_affine
from jaxnorm._core.pool import widen
from jaxnorm.functional import activation as _activation
from jaxnorm.functional import evolved_example
from jaxnorm.linen._base import AffineModule


class _Squash(nn.Module, kw_only=True):
    feature_axes: Axes = -1
    alpha_init: nn.initializers.Initializer = nn.initializers.constant(0.5)
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32
    use_gamma: bool = True
    use_beta: bool = True
    gamma_init: nn.initializers.Initializer = nn.initializers.ones
    beta_init: nn.initializers.Initializer = nn.initializers.zeros

    def own(self, x: ArrayLike, gamma, beta):
        """Returns alpha, gamma and beta: those of the call, else the module's own parameters."""
        sizes = _axes.check_input(x).shape
        features = _axes.canonical_axes(self.feature_axes, sizes, "feature_axes")
        shape = tuple(sizes[a] for a in features)
        alpha = self.param("alpha", self.alpha_init, (), self.param_dtype)
        if gamma is None and self.use_gamma:
            gamma = self.param("gamma", self.gamma_init, shape, self.param_dtype)
        if beta is None and self.use_beta:
            beta = self.param("beta", self.beta_init, shape, self.param_dtype)
        return alpha, gamma, beta


class DynamicTanh(_Squash, kw_only=True):
    """A learned squashing in place of layer norm; see `jaxnorm.dynamic_tanh`.

    Attributes:
      feature_axes: the axes that gamma and beta vary along.
      alpha_init: initializer of alpha, of rank 0. In language models the paper starts it higher in
        attention than elsewhere, and lower where the width is larger.
      dtype: dtype of the result; default: that of the input.
      param_dtype: dtype of the parameters.
      use_gamma: whether to scale by a parameter gamma.
      use_beta: whether to add a parameter beta.
      gamma_init: initializer of gamma.
      beta_init: initializer of beta.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[0., 100., -100.]])
      >>> norm = jnn.DynamicTanh()
      >>> norm.apply(norm.init(jax.random.key(0), x), x).tolist()
      [[0.0, 1.0, -1.0]]

    Reference: Zhu, Chen, He, LeCun & Liu 2025, Transformers without Normalization,
    arXiv:2503.10622.
    """

    @nn.compact
    def __call__(
        self, x: ArrayLike, *, gamma: ArrayLike | None = None, beta: ArrayLike | None = None
    ) -> jax.Array:
        """Squashes `x`; a gamma or beta given here replaces the module's own."""
        alpha, gamma, beta = self.own(x, gamma, beta)
        options = {"feature_axes": self.feature_axes, "dtype": self.dtype}
        return _activation.dynamic_tanh(x, alpha, gamma, beta, **options)


class DynamicErf(_Squash, kw_only=True):
    """A learned squashing by the error function; see `jaxnorm.dynamic_erf`.

    Attributes:
      feature_axes: the axes that gamma and beta vary along.
      alpha_init: initializer of alpha, of rank 0.
      shift_init: initializer of the shift, of rank 0.
      dtype: dtype of the result; default: that of the input.
      param_dtype: dtype of the parameters.
      use_gamma: whether to scale by a parameter gamma.
      use_beta: whether to add a parameter beta.
      gamma_init: initializer of gamma.
      beta_init: initializer of beta.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[0., 100., -100.]])
      >>> norm = jnn.DynamicErf()
      >>> norm.apply(norm.init(jax.random.key(0), x), x).round(3).tolist()
      [[0.0, 1.0, -1.0]]

    Reference: Chen et al. 2025, Stronger Normalization-Free Transformers, arXiv:2512.10938.
    """

    shift_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(
        self, x: ArrayLike, *, gamma: ArrayLike | None = None, beta: ArrayLike | None = None
    ) -> jax.Array:
        """Squashes `x`; a gamma or beta given here replaces the module's own."""
        alpha, gamma, beta = self.own(x, gamma, beta)
        shift = self.param("shift", self.shift_init, (), self.param_dtype)
        options = {"feature_axes": self.feature_axes, "dtype": self.dtype}
        return _activation.dynamic_erf(x, alpha, shift, gamma, beta, **options)


class LayerScale(nn.Module, kw_only=True):
    """Scales the branches of a residual network by factors that start near zero: x * gamma.

    With `feature_axes=()` and zeros it is SkipInit, and ReZero.

    Attributes:
      feature_axes: the axes that gamma varies along; none: one factor for all.
      gamma_init: initializer of gamma; the paper starts at 1e-5 in deep networks.
      dtype: dtype of the result; default: that of the input.
      param_dtype: dtype of the parameter.

    Example:
      >>> import jax, jax.numpy as jnp, flax.linen as nn, jaxnorm.linen as jnn
      >>> x = jnp.array([[2., 4.]])
      >>> scale = jnn.LayerScale(gamma_init=nn.initializers.constant(0.5))
      >>> scale.apply(scale.init(jax.random.key(0), x), x).tolist()
      [[1.0, 2.0]]

    Reference: Touvron, Cord, Sablayrolles, Synnaeve & Jégou 2021, Going Deeper with Image
    Transformers, arXiv:2103.17239.
    """

    feature_axes: Axes = -1
    gamma_init: nn.initializers.Initializer = nn.initializers.constant(1e-5)
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: ArrayLike, *, gamma: ArrayLike | None = None) -> jax.Array:
        """Scales `x`; a gamma given here replaces the module's own."""
        x, name = _axes.check_input(x), "feature_axes"
        axes = _axes.canonical_axes(self.feature_axes, x.shape, name, allow_empty=True)
        if gamma is None:
            shape = tuple(x.shape[a] for a in axes)
            gamma = self.param("gamma", self.gamma_init, shape, self.param_dtype)
        gamma = _axes.expand_parameter(gamma, x, axes or -1, axes, "gamma")
        y = apply_affine(widen(x, None), gamma, None, 0.0)
        return y.astype(_axes.result_dtype(x, self.dtype))


class PolyNorm(nn.Module, kw_only=True):
    """A polynomial of normalized powers, in an activation's place; see `jaxnorm.poly_norm`.

    Attributes:
      reduction_axes: the axes pooled.
      epsilon: added to each mean square.
      weights_init: initializer of the weights of the cube, the square and the input itself.
      use_bias: whether to add a parameter `bias`, of rank 0.
      bias_init: its initializer.
      dtype: dtype of the result; default: that of the input.
      param_dtype: dtype of the parameters.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[1., -1., 1., -1.]])
      >>> norm = jnn.PolyNorm(epsilon=0.0, use_bias=False)
      >>> norm.apply(norm.init(jax.random.key(0), x), x).round(3).tolist()
      [[1.0, -0.3330000042915344, 1.0, -0.3330000042915344]]

    Reference: Zhuo et al. 2024, Polynomial Composition Activations, arXiv:2411.03884.
    """

    reduction_axes: Axes = -1
    epsilon: float = 1e-6
    weights_init: nn.initializers.Initializer = nn.initializers.constant(1 / 3)
    use_bias: bool = True
    bias_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Applies the polynomial to `x`."""
        weights = self.param("weights", self.weights_init, (3,), self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (), self.param_dtype)
        options = {"axis": self.reduction_axes, "epsilon": self.epsilon, "dtype": self.dtype}
        return _activation.poly_norm(x, weights, bias, mask=mask, **options)


class GatedRMSNorm(nn.Module, kw_only=True):
    """RMS norm with a gate; see `jaxnorm.gated_rms_norm`. Called with the input and the gate.

    Attributes:
      group_size: features of a group; default: all.
      norm_before_gate: whether the gate multiplies the normalized input.
      activation: of the gate.
      reduction_axes: the axes pooled, along which gamma varies, too.
      epsilon: added to the mean square.
      dtype: dtype of the result; default: that of the input.
      param_dtype: dtype of the parameter.
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

    group_size: int | None = None
    norm_before_gate: bool = False
    activation: Callable[[jax.Array], jax.Array] = jax.nn.silu
    reduction_axes: Axes = -1
    epsilon: float = 1e-5
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32
    use_gamma: bool = True
    gamma_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self, x: ArrayLike, gate: ArrayLike, *, gamma: ArrayLike | None = None
    ) -> jax.Array:
        """Normalizes `x`; a gamma given here replaces the module's own."""
        sizes = _axes.check_input(x).shape
        axes = _axes.canonical_axes(self.reduction_axes, sizes, "reduction_axes")
        if gamma is None and self.use_gamma:
            shape = tuple(sizes[a] for a in axes)
            gamma = self.param("gamma", self.gamma_init, shape, self.param_dtype)
        return _activation.gated_rms_norm(
            x,
            gate,
            gamma,
            group_size=self.group_size,
            norm_before_gate=self.norm_before_gate,
            activation=self.activation,
            axis=axes,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )


class EvoNormS0(AffineModule, kw_only=True):
    """Group norm joined to an activation; see `jaxnorm.evo_norm_s0`.

    Attributes:
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

    epsilon: float = 1e-5
    num_groups: int = 32
    channel_axis: int = -1
    use_v: bool = True
    v_init: nn.initializers.Initializer = nn.initializers.ones

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
        gamma, beta = self.affine(x, channel, gamma, beta)
        v = None
        if self.use_v:
            v = self.param("v", self.v_init, (x.shape[channel],), self.param_dtype)
        return evolved_example.evo_norm_s0(
            x,
            v,
            gamma,
            beta,
            num_groups=self.num_groups,
            channel_axis=channel,
            epsilon=self.epsilon,
            mask=mask,
            dtype=self.dtype,
        )
