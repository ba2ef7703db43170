"""Norms that mix the batch's statistics with others, as Flax linen modules."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._layers.mixture import MixtureLayer
from jaxnorm.functional import adaptive, evolved_batch
from jaxnorm.linen._base import AffineModule
from jaxnorm.linen._state import StateVariables, context_of
from jaxnorm.linen.batch import BatchNorm
from jaxnorm.linen.group import GroupNorm


class _Mixture(AffineModule, kw_only=True):
    epsilon: float = 1e-5
    use_running_average: bool | None = None
    momentum: float | None = 0.99
    unbiased: bool = True
    axis_name: str | Sequence[str] | None = None

    def run(self, name: str, x: jax.Array, shape: tuple[int, ...], evaluate, normalize):
        """Returns the result of `normalize`, of running moments of shape `shape`, which it moves.

        It is given the running moments, or None, and the mapped axes to pool over.
        """
        layer, context = MixtureLayer.of(self), context_of(self, name)
        decisions = layer.decide(evaluate, context)
        state = StateVariables(self, layer.first_state(shape, x.dtype, context))

        def with_names(moments, pools):
            return normalize(moments, self.axis_name if pools else None)

        y, new = layer.apply(with_names, state.value, decisions, context)
        state.keep(new)
        return y


class EvoNormB0(_Mixture, kw_only=True):
    """Batch norm joined to an activation; see `jaxnorm.evo_norm_b0`.

    In training the batch's variance counts, and the running mean and variance in `batch_stats` move
    towards the batch's; in evaluation the running variance counts.

    Attributes:
      use_running_average: evaluation or training; here or in the call, which wins.
      reduction_axes: the axes pooled, the batch's first; default: all but the last.
      momentum: decay of the running statistics: new = momentum * old + (1 - momentum) * batch.
        None: the plain average of all batches.
      unbiased: whether the running variance is unbiased (m / (m - 1)).
      use_v: whether the slope is a parameter v, or 1.
      v_init: its initializer.
      axis_name: mapped axes that the batch is pooled over as well.

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

    reduction_axes: Axes | None = None
    use_v: bool = True
    v_init: nn.initializers.Initializer = nn.initializers.ones

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
        given = tuple(range(x.ndim - 1)) if self.reduction_axes is None else self.reduction_axes
        axes = _axes.canonical_axes(given, x.shape, "reduction_axes")
        kept = _axes.other_axes(axes, x.ndim)
        gamma, beta = self.affine(x, kept, gamma, beta)
        shape, v = tuple(x.shape[a] for a in kept), None
        if self.use_v:
            v = self.param("v", self.v_init, shape, self.param_dtype)
        common = {"axis": axes, "epsilon": self.epsilon, "mask": mask, "dtype": self.dtype}

        def normalize(moments, names):
            var = None if moments is None else moments.var
            return evolved_batch.evo_norm_b0(x, v, gamma, beta, var=var, axis_name=names, **common)

        return self.run("EvoNormB0", x, shape, use_running_average, normalize)


class SwitchableNorm(_Mixture, kw_only=True):
    """A learned mixture of instance, layer and batch norm; see `jaxnorm.switchable_norm`.

    In training the batch's statistics are those of the batch, and the running ones in `batch_stats`
    move towards them; in evaluation they are the running ones.

    Attributes:
      use_running_average: evaluation or training; here or in the call, which wins.
      channel_axis: the axis of the channels.
      weights_init: initializer of the parameters `mean_weights` and `var_weights`, in the order
        instance, layer, batch, before the softmax.
      momentum: decay of the running statistics: new = momentum * old + (1 - momentum) * batch.
        None: the plain average of all batches, which the paper prefers.
      unbiased: whether the running variance is unbiased (m / (m - 1)).
      axis_name: mapped axes that the batch is pooled over as well.

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

    channel_axis: int = -1
    weights_init: nn.initializers.Initializer = nn.initializers.ones

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
        channel = _axes.canonical_axis(self.channel_axis, x.shape, "channel_axis")
        gamma, beta = self.affine(x, channel, gamma, beta)
        mean_weights, var_weights = (
            self.param(name, self.weights_init, (3,), self.param_dtype)
            for name in ("mean_weights", "var_weights")
        )
        common = {"channel_axis": channel, "epsilon": self.epsilon, "mask": mask}

        def normalize(moments, names):
            options = {"batch_moments": moments, "axis_name": names, "dtype": self.dtype}
            return adaptive.switchable_norm(
                x, mean_weights, var_weights, gamma, beta, **options, **common
            )

        return self.run("SwitchableNorm", x, (x.shape[channel],), use_running_average, normalize)


class BatchInstanceNorm(_Mixture, kw_only=True):
    """A learned mixture of batch and instance norm's results; see `jaxnorm.batch_instance_norm`.

    In training the batch's statistics are those of the batch, and the running ones in `batch_stats`
    move towards them; in evaluation they are the running ones.

    Attributes:
      use_running_average: evaluation or training; here or in the call, which wins.
      channel_axis: the axis of the channels.
      rho_init: initializer of the parameter `rho`, the share of batch norm, limited to [0, 1].
      momentum: decay of the running statistics: new = momentum * old + (1 - momentum) * batch.
        None: the plain average of all batches.
      unbiased: whether the running variance is unbiased (m / (m - 1)).
      axis_name: mapped axes that the batch is pooled over as well.

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

    channel_axis: int = -1
    rho_init: nn.initializers.Initializer = nn.initializers.ones

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
        channel = _axes.canonical_axis(self.channel_axis, x.shape, "channel_axis")
        gamma, beta = self.affine(x, channel, gamma, beta)
        shape = (x.shape[channel],)
        rho = self.param("rho", self.rho_init, shape, self.param_dtype)
        common = {"channel_axis": channel, "epsilon": self.epsilon, "mask": mask}

        def normalize(moments, names):
            options = {"batch_moments": moments, "axis_name": names, "dtype": self.dtype}
            return adaptive.batch_instance_norm(x, rho, gamma, beta, **options, **common)

        return self.run("BatchInstanceNorm", x, shape, use_running_average, normalize)


class BatchChannelNorm(nn.Module, kw_only=True):
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
      dtype: dtype of the result; default: that of the input.
      param_dtype: dtype of the parameters.

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

    use_running_average: bool | None = None
    num_groups: int = 32
    channel_axis: int = -1
    estimate: bool = False
    epsilon: float = 1e-5
    momentum: float | None = 0.99
    axis_name: str | Sequence[str] | None = None
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jax.numpy.float32

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        *,
        use_running_average: bool | jax.Array | None = None,
        mask: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x` twice."""
        common = {"epsilon": self.epsilon, "dtype": self.dtype, "param_dtype": self.param_dtype}
        batch = BatchNorm(
            use_running_average=self.use_running_average,
            train_statistics="running" if self.estimate else "batch",
            feature_axes=self.channel_axis,
            momentum=self.momentum,
            axis_name=self.axis_name,
            name="batch",
            **common,
        )
        groups = {"num_groups": self.num_groups, "channel_axis": self.channel_axis}
        channel = GroupNorm(name="channel", **groups, **common)
        y = batch(x, use_running_average=use_running_average, mask=mask)
        return channel(y, mask=mask)
