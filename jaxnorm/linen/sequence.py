"""Norms of sequences as Flax linen modules."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._layers.stream import CumulativeNormLayer
from jaxnorm.linen._base import AffineModule
from jaxnorm.linen._state import StateVariables


class CumulativeNorm(AffineModule, kw_only=True):
    """Normalization by all steps up to each; see `jaxnorm.cumulative_norm`.

    With `decode=True` it is called with one step or chunk after the other, and keeps the moments of
    all so far in the collection `cache`: apply with `mutable=["cache"]`. The cache that `init`
    makes is of no steps: begin each stream with it.

    Attributes:
      epsilon: added to the variances.
      reduction_axes: the axes pooled at each time.
      feature_axes: the axes that gamma and beta vary along.
      time_axis: the axis of the times.
      decode: whether the sequence comes piece by piece.

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

    Reference: Luo & Mesgarani 2018, Conv-TasNet, arXiv:1809.07454.
    """

    technique = CumulativeNormLayer

    epsilon: float = 1e-6
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    time_axis: int = 1
    decode: bool = False

    @nn.compact
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
        layer, context = self.options, self.context("cache")
        own = self.own(x, gamma=gamma, beta=beta)
        state = StateVariables(self, layer.first_state(x.shape, x.dtype), "cache")
        y, new = layer.apply(x, own, state.value, context, mask)
        state.keep(new)
        return y
