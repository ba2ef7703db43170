"""Norms of sequences as Flax linen modules."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._layers.stream import first_stream, moved_stream, stream_of
from jaxnorm.functional import sequence
from jaxnorm.linen._base import AffineModule
from jaxnorm.linen._state import StateVariables, context_of


class CumulativeNorm(AffineModule, kw_only=True):
    """Normalization by all steps up to each; see `jaxnorm.cumulative_norm`.

    With `decode=True` it is called with one step or chunk after the other, and keeps the moments of
    all so far in the collection `cache`: apply with `mutable=["cache"]`. The cache that `init`
    makes is of no steps: begin each stream with it.

    Attributes:
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
        axes, features = (self.field_axes(field, x) for field in ("reduction_axes", "feature_axes"))
        time = _axes.canonical_axis(self.time_axis, x.shape, "time_axis")
        gamma, beta = self.affine(x, features, gamma, beta)
        gamma, beta = (
            _axes.expand_parameter(p, x, features, features, name)
            for p, name in ((gamma, "gamma"), (beta, "beta"))
        )
        options = {"axis": axes, "time_axis": time, "epsilon": self.epsilon, "mask": mask}
        options["dtype"] = self.dtype
        if not self.decode:
            return sequence.cumulative_norm(x, gamma, beta, **options)[0]
        shape = tuple(s for a, s in enumerate(x.shape) if a not in (*axes, time))
        state = StateVariables(self, first_stream(shape, x.dtype), "cache")
        initial = stream_of(state.value)
        y, moments = sequence.cumulative_norm(x, gamma, beta, initial=initial, **options)
        state.keep(moved_stream(moments, context_of(self, "CumulativeNorm", "cache")))
        return y
