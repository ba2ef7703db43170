"""Norms that mix the batch's statistics with others, as Flax NNX modules."""

from __future__ import annotations

from typing import Any

from jaxnorm._layers import mixture, stacked
from jaxnorm.nnx._base import Affine, Mode, Sized, module
from jaxnorm.nnx.batch import BatchNorm
from jaxnorm.nnx.group import GroupNorm


@module
class EvoNormB0(Mode, mixture.EvoNormB0, Affine):
    """Batch norm joined to an activation; see `jaxnorm.evo_norm_b0`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.EvoNormB0(1, epsilon=0.0)
      >>> norm(jnp.array([[[-2.], [2.]], [[-2.], [2.]]])).tolist()
      [[[-1.0], [0.5]], [[-1.0], [0.5]]]
    """


@module
class SwitchableNorm(Mode, mixture.SwitchableNorm, Affine):
    """A learned mixture of instance, layer and batch norm; see `jaxnorm.switchable_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.SwitchableNorm(1)
      >>> norm(jnp.array([[[1.], [3.]], [[1.], [3.]]])).round(3).tolist()
      [[[-1.0], [1.0]], [[-1.0], [1.0]]]
    """


@module
class BatchInstanceNorm(Mode, mixture.BatchInstanceNorm, Affine):
    """A learned mixture of batch and instance norm's results; see `jaxnorm.batch_instance_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.BatchInstanceNorm(1)
      >>> norm(jnp.array([[[-2.], [-2.]], [[2.], [2.]]])).round(3).tolist()
      [[[-1.0], [-1.0]], [[1.0], [1.0]]]
    """


@module
class BatchChannelNorm(Mode, stacked.BatchChannelNorm, Sized):
    """Batch norm, then group norm of its result, each with gamma and beta of its own.

    They are its attributes `batch` and `channel`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.BatchChannelNorm(2, num_groups=1, momentum=0.5)
      >>> norm(jnp.array([[1., 10.], [3., 50.]])).shape, norm.batch.mean[...].tolist()
      ((2, 2), [1.0, 15.0])
    """

    def _make(self, **given: Any) -> None:
        super()._make(**given)
        self.batch = BatchNorm(self.num_features, **self._options_of_batch)
        self.channel = GroupNorm(self.num_features, **self._options_of_channel)

    def _norms(self) -> tuple[stacked.Norm, stacked.Norm]:
        return self.batch, self.channel
