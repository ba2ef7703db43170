"""Norms of sequences as Flax NNX modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._layers.stream import CumulativeNormLayer
from jaxnorm.nnx._base import AffineModule, module
from jaxnorm.nnx._state import keep, make_state, state_of


@module
class CumulativeNorm(AffineModule):
    """Normalization by all steps up to each; see `jaxnorm.cumulative_norm`.

    With `decode=True` it is called with one step or chunk after the other, and keeps the moments of
    all so far in variables of the kind `nnx.Cache`. `init_cache` makes them and begins each stream.
    The options that are not listed are those of `jaxnorm.linen.CumulativeNorm`.

    Attributes:
      num_features: size of gamma and beta; sizes where they have several axes, ascending.
      decode: whether the sequence comes piece by piece.
      input_shape: an example of the pieces' shape, their times aside, to begin the first stream
        with; or call `init_cache`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x = jnp.array([[[1., 3.], [3., 1.]]])
      >>> norm = jnx.CumulativeNorm(2, decode=True, epsilon=0.0)
      >>> norm.init_cache(x.shape)
      >>> [norm(x[:, step:step + 1]).tolist() for step in range(2)], norm.count[...].tolist()
      ([[[[-1.0, 1.0]]], [[[1.0, -1.0]]]], [4.0])

    Reference: Luo & Mesgarani 2018, Conv-TasNet, arXiv:1809.07454.
    """

    technique = CumulativeNormLayer

    epsilon: float = 1e-6
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    time_axis: int = 1
    decode: bool = False
    input_shape: Sequence[int] | None = None

    def _make(self, **given: Any) -> None:
        """Makes gamma and beta, and begins a stream if it is told of what."""
        super()._make(**given)
        if self.input_shape is not None:
            self.init_cache(self.input_shape)

    def init_cache(self, input_shape: Sequence[int]) -> None:
        """Begins a stream of inputs of shape `input_shape`, times aside: of no steps so far."""
        make_state(self, self.options.first_state(tuple(input_shape), self.state_dtype), nnx.Cache)

    def __call__(
        self,
        x: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x`; a gamma or beta given here replaces the module's own."""
        x = _axes.check_input(x)
        layer, own = self.options, self._own(x, gamma=gamma, beta=beta)
        remedy = "Begin the stream with init_cache(x.shape)."
        state = state_of(self, layer.first_state(x.shape, x.dtype), x.shape, remedy)
        y, new = layer.apply(x, own, state, self.context, mask)
        keep(self, new)
        return y
