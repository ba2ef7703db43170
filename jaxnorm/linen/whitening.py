"""Decorrelated batch norm as a Flax linen module, with running statistics in `batch_stats`."""

from __future__ import annotations

import flax.linen as nn

from jaxnorm._layers import whitening
from jaxnorm.linen._base import Module


class DecorrelatedBatchNorm(whitening.DecorrelatedBatchNorm, Module, kw_only=True):
    """Batch normalization that removes the correlations between units too; see `jaxnorm.whiten`.

    In training (`use_running_average=False`) the batch's mean and covariance whiten, and the
    running mean and projection in the collection `batch_stats` move towards the batch's: apply
    with `mutable=["batch_stats"]`. In evaluation (`use_running_average=True`) the running ones
    serve and nothing changes. A group should have fewer units than the batch has examples.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[2., 2.], [-2., -2.], [3., -3.], [-3., 3.]])
      >>> norm = jnn.DecorrelatedBatchNorm(epsilon=0.0)
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=True)
      >>> y, updates = norm.apply(
      ...     variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> bool(jnp.allclose(y.T @ y / 4, jnp.eye(2), atol=1e-5))
      True
      >>> jax.tree.map(jnp.shape, updates["batch_stats"])
      {'mean': (2,), 'projection': (1, 2, 2)}
    """

    __call__ = nn.compact(whitening.DecorrelatedBatchNorm.__call__)
