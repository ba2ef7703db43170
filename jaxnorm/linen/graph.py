"""Norms of graphs as Flax linen modules."""

from __future__ import annotations

import flax.linen as nn

from jaxnorm._layers import graph
from jaxnorm.linen._base import Module


class GraphNorm(graph.GraphNorm, Module, kw_only=True):
    """Normalization over the nodes of each graph; see `jaxnorm.graph_norm`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x, graphs = jnp.array([[1.], [10.], [3.], [30.]]), jnp.array([0, 1, 0, 1])
      >>> norm = jnn.GraphNorm(num_segments=2, epsilon=0.0)
      >>> norm.apply(norm.init(jax.random.key(0), x, graphs), x, graphs).tolist()
      [[-1.0], [-1.0], [1.0], [1.0]]
    """

    __call__ = nn.compact(graph.GraphNorm.__call__)
