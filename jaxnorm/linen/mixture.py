"""Norms that mix the batch's statistics with others, as Flax linen modules."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._layers.mixture import BatchInstanceNormLayer, EvoNormB0Layer, SwitchableNormLayer
from jaxnorm._layers.stacked import BatchChannelNormLayer
from jaxnorm.linen._base import AffineModule, ParametricModule
from jaxnorm.linen._state import StateVariables
from jaxnorm.linen.batch import BatchNorm
from jaxnorm.linen.group import GroupNorm


class _Mixture(AffineModule, kw_only=True):
    """Base of the norms with running moments.

    Attributes:
      epsilon: added to the variances.
      use_running_average: evaluation or training; here or in the call, which wins.
      momentum: decay of the running statistics: new = momentum * old + (1 - momentum) * batch.
        None: the plain average of all batches.
      unbiased: whether the running variance is unbiased (m / (m - 1)).
      axis_name: mapped axes that the batch is pooled over as well.
    """

    epsilon: float = 1e-5
    use_running_average: bool | None = None
    momentum: float | None = 0.99
    unbiased: bool = True
    axis_name: str | Sequence[str] | None = None

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        *,
        use_running_average: bool | jax.Array | None = None,
        mask: ArrayLike | None = None,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x`; a gamma or beta given here replaces the module's own."""
        x = _axes.check_input(x)
        layer, context = self.options, self.context()
        own = self.own(x, gamma=gamma, beta=beta)
        first = layer.first_state(layer.sizes(x.shape), x.dtype, context)
        state = StateVariables(self, first)
        y, new = layer.apply(x, own, state.value, use_running_average, context, mask)
        state.keep(new)
        return y


class EvoNormB0(_Mixture, kw_only=True):
    """Batch norm joined to an activation; see `jaxnorm.evo_norm_b0`.

    In training the batch's variance counts, and the running mean and variance in `batch_stats` move
    towards the batch's; in evaluation the running variance counts.

    Attributes:
      reduction_axes: the axes pooled, the batch's first; default: all but the last.
      use_v: whether the slope is a parameter v, or 1.
      v_init: its initializer.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[[-2.], [2.]], [[-2.], [2.]]])
      >>> norm = jnn.EvoNormB0(epsilon=0.0, use_running_average=False)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> y, _ = norm.apply(variables, x, mutable=["batch_stats"])
      >>> y.tolist()
      [[[-1.0], [0.5]], [[-1.0], [0.5]]]

    Reference: Liu, Brock, Simonyan & Le 2020, Evolving Normalization-Activation Layers,
    arXiv:2004.02967.
    """

    technique = EvoNormB0Layer

    reduction_axes: Axes | None = None
    use_v: bool = True
    v_init: nn.initializers.Initializer = nn.initializers.ones


class SwitchableNorm(_Mixture, kw_only=True):
    """A learned mixture of instance, layer and batch norm; see `jaxnorm.switchable_norm`.

    In training the batch's statistics are those of the batch, and the running ones in `batch_stats`
    move towards them; in evaluation they are the running ones.

    Attributes:
      channel_axis: the axis of the channels.
      weights_init: initializer of the parameters `mean_weights` and `var_weights`, in the order
        instance, layer, batch, before the softmax.
      momentum: decay of the running statistics: new = momentum * old + (1 - momentum) * batch.
        None: the plain average of all batches, which the paper prefers.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[[1.], [3.]], [[1.], [3.]]])
      >>> norm = jnn.SwitchableNorm(use_running_average=False)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> y, updates = norm.apply(variables, x, mutable=["batch_stats"])
      >>> y.round(3).tolist()
      [[[-1.0], [1.0]], [[-1.0], [1.0]]]

    Reference: Luo, Ren, Peng, Zhang & Li 2018, Differentiable Learning-to-Normalize via Switchable
    Normalization, arXiv:1806.10779.
    """

    technique = SwitchableNormLayer

    channel_axis: int = -1
    weights_init: nn.initializers.Initializer = nn.initializers.ones


class BatchInstanceNorm(_Mixture, kw_only=True):
    """A learned mixture of batch and instance norm's results; see `jaxnorm.batch_instance_norm`.

    In training the batch's statistics are those of the batch, and the running ones in `batch_stats`
    move towards them; in evaluation they are the running ones.

    Attributes:
      channel_axis: the axis of the channels.
      rho_init: initializer of the parameter `rho`, the share of batch norm, limited to [0, 1].

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[[-2.], [-2.]], [[2.], [2.]]])
      >>> norm = jnn.BatchInstanceNorm(use_running_average=False)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> y, _ = norm.apply(variables, x, mutable=["batch_stats"])
      >>> y.round(3).tolist()
      [[[-1.0], [-1.0]], [[1.0], [1.0]]]

    Reference: Nam & Kim 2018, Batch-Instance Normalization for Adaptively Style-Invariant Neural
    Networks, arXiv:1805.07925.
    """

    technique = BatchInstanceNormLayer

    channel_axis: int = -1
    rho_init: nn.initializers.Initializer = nn.initializers.ones


class BatchChannelNorm(ParametricModule, kw_only=True):
    """Batch norm, then group norm of its result, each with gamma and beta of its own.

    With `estimate=True` the running statistics normalize in training as well, while they move, so
    that it works with batches of one example.

    Attributes:
      use_running_average: evaluation or training; here or in the call, which wins.
      num_groups: into how many groups the channels are divided.
      channel_axis: the axis of the channels.
      estimate: whether training normalizes by the running statistics.
      epsilon: added to the variances.
      momentum: decay of the running statistics.
      axis_name: mapped axes that the batch is pooled over as well.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[1., 10.], [3., 30.]])
      >>> norm = jnn.BatchChannelNorm(num_groups=1)
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=True)
      >>> sorted(variables["params"])
      ['batch', 'channel']

    Reference: Qiao, Wang, Liu, Shen & Yuille 2019, Micro-Batch Training with Batch-Channel
    Normalization and Weight Standardization, arXiv:1903.10520.
    """

    technique = BatchChannelNormLayer

    use_running_average: bool | None = None
    num_groups: int = 32
    channel_axis: int = -1
    estimate: bool = False
    epsilon: float = 1e-5
    momentum: float | None = 0.99
    axis_name: str | Sequence[str] | None = None

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        *,
        use_running_average: bool | jax.Array | None = None,
        mask: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x` twice."""
        layer = self.options
        batch = BatchNorm(**layer.batch, name="batch")
        channel = GroupNorm(**layer.channel, name="channel")
        return layer.apply(x, batch, channel, use_running_average, mask)
