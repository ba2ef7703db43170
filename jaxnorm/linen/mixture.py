"""Norms that mix the batch's statistics with others, as Flax linen modules."""

from __future__ import annotations

import flax.linen as nn

from jaxnorm._layers import mixture, stacked
from jaxnorm.linen._base import Module
from jaxnorm.linen.batch import BatchNorm
from jaxnorm.linen.group import GroupNorm


class EvoNormB0(mixture.EvoNormB0, Module, kw_only=True):
    """Batch norm joined to an activation; see `jaxnorm.evo_norm_b0`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[[-2.], [2.]], [[-2.], [2.]]])
      >>> norm = jnn.EvoNormB0(epsilon=0.0, use_running_average=False)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> y, _ = norm.apply(variables, x, mutable=["batch_stats"])
      >>> y.tolist()
      [[[-1.0], [0.5]], [[-1.0], [0.5]]]
    """

    __call__ = nn.compact(mixture.EvoNormB0.__call__)


class SwitchableNorm(mixture.SwitchableNorm, Module, kw_only=True):
    """A learned mixture of instance, layer and batch norm; see `jaxnorm.switchable_norm`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[[1.], [3.]], [[1.], [3.]]])
      >>> norm = jnn.SwitchableNorm(use_running_average=False)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> y, updates = norm.apply(variables, x, mutable=["batch_stats"])
      >>> y.round(3).tolist()
      [[[-1.0], [1.0]], [[-1.0], [1.0]]]
    """

    __call__ = nn.compact(mixture.SwitchableNorm.__call__)


class BatchInstanceNorm(mixture.BatchInstanceNorm, Module, kw_only=True):
    """A learned mixture of batch and instance norm's results; see `jaxnorm.batch_instance_norm`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[[-2.], [-2.]], [[2.], [2.]]])
      >>> norm = jnn.BatchInstanceNorm(use_running_average=False)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> y, _ = norm.apply(variables, x, mutable=["batch_stats"])
      >>> y.round(3).tolist()
      [[[-1.0], [-1.0]], [[1.0], [1.0]]]
    """

    __call__ = nn.compact(mixture.BatchInstanceNorm.__call__)


class BatchChannelNorm(stacked.BatchChannelNorm, Module, kw_only=True):
    """Batch norm, then group norm of its result, each with gamma and beta of its own.

    With `estimate=True` the running statistics normalize in training as well, while they move, so
    that it works with batches of one example.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[1., 10.], [3., 30.]])
      >>> norm = jnn.BatchChannelNorm(num_groups=1)
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=True)
      >>> sorted(variables["params"])
      ['batch', 'channel']
    """

    __call__ = nn.compact(stacked.BatchChannelNorm.__call__)

    @nn.nowrap
    def _norms(self) -> tuple[stacked.Norm, stacked.Norm]:
        batch = BatchNorm(**self._options_of_batch, name="batch")
        return batch, GroupNorm(**self._options_of_channel, name="channel")
