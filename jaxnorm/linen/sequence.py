"""Norms of sequences as Flax linen modules."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn

from jaxnorm._layers import stream
from jaxnorm.linen._base import Module


class CumulativeNorm(stream.CumulativeNorm, Module, kw_only=True):
    """Normalization by all steps up to each; see `jaxnorm.cumulative_norm`.

    With `decode=True` it is called with one step or chunk after the other, and keeps the moments of
    all so far in the collection `cache`: apply with `mutable=["cache"]`. The cache that `init`
    makes is of no steps: begin each stream with it.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[[1., 3.], [3., 1.]]])
      >>> norm = jnn.CumulativeNorm(decode=True, epsilon=0.0)
      >>> variables = norm.init(jax.random.key(0), x[:, :1])
      >>> for step in range(2):
      ...     y, new = norm.apply(variables, x[:, step:step + 1], mutable=["cache"])
      ...     variables = {**variables, **new}
      >>> y.tolist(), variables["cache"]["count"].tolist()
      ([[[1.0, -1.0]]], [4.0])
    """

    _collection: ClassVar[str] = "cache"

    __call__ = nn.compact(stream.CumulativeNorm.__call__)
