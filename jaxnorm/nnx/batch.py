"""Batch norm as a Flax NNX module, with running statistics as `nnx.BatchStat`."""

from __future__ import annotations

from jaxnorm._layers import batch
from jaxnorm.nnx._base import Affine, Running, module


@module
class BatchNorm(Running, batch.BatchNorm, Affine):
    """Batch normalization; see `jaxnorm.batch_norm` and `jaxnorm.standardize`.

    In training (`model.train()`, as models are made) the batch's statistics normalize, and the
    running mean and variance, of the kind `nnx.BatchStat`, move towards them. In evaluation
    (`model.eval()`, or a view: `nnx.view(model, use_running_average=True)`) the running ones
    normalize and nothing changes.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x = jnp.array([[1., 10.], [3., 30.]])
      >>> norm = jnx.BatchNorm(2, momentum=0.5)
      >>> norm(x).round(3).tolist(), norm.mean[...].tolist()
      ([[-1.0, -1.0], [1.0, 1.0]], [1.0, 10.0])
      >>> norm.eval()
      >>> norm(jnp.array([[1., 10.]])).tolist(), norm.mean[...].tolist()
      ([[0.0, 0.0]], [1.0, 10.0])
    """
