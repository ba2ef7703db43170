"""Norms that mix the batch's statistics with others, as Flax NNX modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar
from typing import Any

import jax
from flax import nnx

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._layers.mixture import BatchInstanceNormLayer, EvoNormB0Layer, SwitchableNormLayer
from jaxnorm._layers.stacked import BatchChannelNormLayer
from jaxnorm.nnx._base import AffineModule, Initializer, Moded, SizedModule, module
from jaxnorm.nnx._state import keep, make_state, state_of
from jaxnorm.nnx.batch import BatchNorm
from jaxnorm.nnx.group import GroupNorm


@module
class _Mixture(Moded, AffineModule):
    """Base of the norms with running moments, which are of the kind `nnx.BatchStat`.

    Attributes:
      use_running_average: evaluation or training, as `model.eval()` and `model.train()` set it;
        here or in the call, which wins.
    """

    epsilon: float = 1e-5
    use_running_average: bool | None = False
    momentum: float | None = 0.99
    unbiased: bool = True
    axis_name: str | Sequence[str] | None = None

    def _make(self, **given: Any) -> None:
        """Makes the parameters and the running statistics."""
        super()._make(**given)
        make_state(self, self.options.first_state(self.sizes, self.state_dtype, self.context))

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
        layer, context = self.options, self.context
        own = self._own(x, gamma=gamma, beta=beta)
        state = state_of(self, layer.first_state(layer.sizes(x.shape), x.dtype, context), x.shape)
        y, new = layer.apply(x, own, state, use_running_average, context, mask)
        keep(self, new)
        return y


@module
class EvoNormB0(_Mixture):
    """Batch norm joined to an activation; see `jaxnorm.evo_norm_b0`.

    In training the batch's variance counts, and the running mean and variance move towards the
    batch's; in evaluation the running variance counts. The options that are not listed are those of
    `jaxnorm.linen.EvoNormB0`.

    Attributes:
      num_features: size of the axes that are not pooled; sizes where they are several, ascending.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.EvoNormB0(1, epsilon=0.0)
      >>> norm(jnp.array([[[-2.], [2.]], [[-2.], [2.]]])).tolist()
      [[[-1.0], [0.5]], [[-1.0], [0.5]]]

    Reference: Liu, Brock, Simonyan & Le 2020, Evolving Normalization-Activation Layers,
    arXiv:2004.02967.
    """

    technique = EvoNormB0Layer

    reduction_axes: Axes | None = None
    use_v: bool = True
    v_init: InitVar[Initializer] = nnx.initializers.ones


@module
class SwitchableNorm(_Mixture):
    """A learned mixture of instance, layer and batch norm; see `jaxnorm.switchable_norm`.

    In training the batch's statistics are those of the batch, and the running ones move towards
    them; in evaluation they are the running ones. The options that are not listed are those of
    `jaxnorm.linen.SwitchableNorm`.

    Attributes:
      num_features: number of channels.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.SwitchableNorm(1)
      >>> norm(jnp.array([[[1.], [3.]], [[1.], [3.]]])).round(3).tolist()
      [[[-1.0], [1.0]], [[-1.0], [1.0]]]

    Reference: Luo, Ren, Peng, Zhang & Li 2018, Differentiable Learning-to-Normalize via Switchable
    Normalization, arXiv:1806.10779.
    """

    technique = SwitchableNormLayer

    channel_axis: int = -1
    weights_init: InitVar[Initializer] = nnx.initializers.ones


@module
class BatchInstanceNorm(_Mixture):
    """A learned mixture of batch and instance norm's results; see `jaxnorm.batch_instance_norm`.

    In training the batch's statistics are those of the batch, and the running ones move towards
    them; in evaluation they are the running ones. The options that are not listed are those of
    `jaxnorm.linen.BatchInstanceNorm`.

    Attributes:
      num_features: number of channels.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.BatchInstanceNorm(1)
      >>> norm(jnp.array([[[-2.], [-2.]], [[2.], [2.]]])).round(3).tolist()
      [[[-1.0], [-1.0]], [[1.0], [1.0]]]

    Reference: Nam & Kim 2018, Batch-Instance Normalization for Adaptively Style-Invariant Neural
    Networks, arXiv:1805.07925.
    """

    technique = BatchInstanceNormLayer

    channel_axis: int = -1
    rho_init: InitVar[Initializer] = nnx.initializers.ones


@module
class BatchChannelNorm(Moded, SizedModule):
    """Batch norm, then group norm of its result, each with gamma and beta of its own.

    They are its attributes `batch` and `channel`. The options that are not listed are those of
    `jaxnorm.linen.BatchChannelNorm`.

    Attributes:
      num_features: number of channels.
      use_running_average: evaluation or training, as `model.eval()` and `model.train()` set it;
        here or in the call, which wins.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.BatchChannelNorm(2, num_groups=1, momentum=0.5)
      >>> norm(jnp.array([[1., 10.], [3., 50.]])).shape, norm.batch.mean[...].tolist()
      ((2, 2), [1.0, 15.0])

    Reference: Qiao, Wang, Liu, Shen & Yuille 2019, Micro-Batch Training with Batch-Channel
    Normalization and Weight Standardization, arXiv:1903.10520.
    """

    technique = BatchChannelNormLayer

    use_running_average: bool | None = False
    num_groups: int = 32
    channel_axis: int = -1
    estimate: bool = False
    epsilon: float = 1e-5
    momentum: float | None = 0.99
    axis_name: str | Sequence[str] | None = None

    def _make(self, **given: Any) -> None:
        """Makes the two norms."""
        super()._make(**given)
        self.batch = BatchNorm(self.num_features, **self.options.batch)
        self.channel = GroupNorm(self.num_features, **self.options.channel)

    def __call__(
        self,
        x: ArrayLike,
        *,
        use_running_average: bool | jax.Array | None = None,
        mask: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x` twice."""
        return self.options.apply(x, self.batch, self.channel, use_running_average, mask)
