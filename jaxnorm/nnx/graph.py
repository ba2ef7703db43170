"""Norms of graphs as Flax NNX modules."""

from __future__ import annotations

from jaxnorm._layers import graph
from jaxnorm.nnx._base import Affine, module


@module
class GraphNorm(graph.GraphNorm, Affine):
    """Normalization over the nodes of each graph; see `jaxnorm.graph_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x, graphs = jnp.array([[1.], [10.], [3.], [30.]]), jnp.array([0, 1, 0, 1])
      >>> jnx.GraphNorm(1, num_segments=2, epsilon=0.0)(x, graphs).tolist()
      [[-1.0], [-1.0], [1.0], [1.0]]
    """
