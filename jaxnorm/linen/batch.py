"""Batch norm as a Flax linen module, with running statistics in `batch_stats`."""

from __future__ import annotations

import flax.linen as nn

from jaxnorm._layers import batch
from jaxnorm.linen._base import Module


class BatchNorm(batch.BatchNorm, Module, kw_only=True):
    """Batch normalization; see `jaxnorm.batch_norm` and `jaxnorm.standardize`.

    In training (`use_running_average=False`) the batch's statistics normalize, and the running
    mean and variance in the collection `batch_stats` move towards them: apply with
    `mutable=["batch_stats"]`. In evaluation (`use_running_average=True`) the running ones
    normalize and nothing changes.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[1., 10.], [3., 30.]])
      >>> norm = jnn.BatchNorm(momentum=0.5)
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=True)
      >>> y, updates = norm.apply(
      ...     variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> y.round(3).tolist(), updates["batch_stats"]["mean"].tolist()
      ([[-1.0, -1.0], [1.0, 1.0]], [1.0, 10.0])
    """

    __call__ = nn.compact(batch.BatchNorm.__call__)
