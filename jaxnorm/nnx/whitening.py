"""Decorrelated batch norm as a Flax NNX module, with running statistics as `nnx.BatchStat`."""

from __future__ import annotations

from jaxnorm._layers import whitening
from jaxnorm.nnx._base import Affine, Running, module


@module
class DecorrelatedBatchNorm(Running, whitening.DecorrelatedBatchNorm, Affine):
    """Batch normalization that removes the correlations between units too; see `jaxnorm.whiten`.

    In training (`model.train()`, as models are made) the batch's mean and covariance whiten, and
    the running mean and projection, of the kind `nnx.BatchStat`, move towards the batch's. In
    evaluation (`model.eval()`) the running ones serve and nothing changes. A group should have
    fewer units than the batch has examples.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x = jnp.array([[2., 2.], [-2., -2.], [3., -3.], [-3., 3.]])
      >>> norm = jnx.DecorrelatedBatchNorm(2, epsilon=0.0)
      >>> y = norm(x)
      >>> bool(jnp.allclose(y.T @ y / 4, jnp.eye(2), atol=1e-5))
      True
      >>> norm.mean.shape, norm.projection.shape
      ((2,), (1, 2, 2))
    """
