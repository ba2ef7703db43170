"""Norms of sequences as Flax NNX modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from flax import nnx

from jaxnorm._layers import stream
from jaxnorm.nnx._base import Affine, Example, module


@module
class CumulativeNorm(Example, stream.CumulativeNorm, Affine):
    """Normalization by all steps up to each; see `jaxnorm.cumulative_norm`.

    With `decode=True` it is called with one step or chunk after the other, and keeps the moments of
    all so far in variables of the kind `nnx.Cache`. `init_cache` makes them and begins each stream.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x = jnp.array([[[1., 3.], [3., 1.]]])
      >>> norm = jnx.CumulativeNorm(2, decode=True, epsilon=0.0)
      >>> norm.init_cache(x.shape)
      >>> [norm(x[:, step:step + 1]).tolist() for step in range(2)], norm.count[...].tolist()
      ([[[[-1.0, 1.0]]], [[[1.0, -1.0]]]], [4.0])
    """

    _kind: ClassVar[type[nnx.Variable]] = nnx.Cache
    _remedy: ClassVar[str | None] = "Begin the stream with init_cache(x.shape)."

    input_shape: Sequence[int] | None = None
    """an example of the pieces' shape, their times aside, to begin the first stream with; or call
    `init_cache`."""

    def init_cache(self, input_shape: Sequence[int]) -> None:
        """Begins a stream of inputs of shape `input_shape`, times aside: of no steps so far."""
        self._make_state(tuple(input_shape))
