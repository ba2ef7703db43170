"""Instance norm with running statistics, which torch has and no paper proposes."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike
from jaxnorm._core.moments import Moments
from jaxnorm._layers import running
from jaxnorm._layers.call import Decisions, State
from jaxnorm._layers.sources import choose
from jaxnorm.functional import group
from jaxnorm.functional.moments import moments
from jaxnorm.functional.standardize import standardize
from jaxnorm.linen._base import Module


class TrackedInstanceNorm(Module, kw_only=True):
    """Instance norm in training, by running statistics in evaluation.

    The running mean and variance move towards the mean over the batch of the instances' means and
    unbiased variances.

    Attributes:
      use_running_average: evaluation or training; here or in the call, which wins.
      channel_axis: the axis of the channels; axis 0 is the batch.
      momentum: decay of the running statistics.
      epsilon: added to the variance.
      dtype: dtype of the result; default: that of the input.
      param_dtype: dtype of the parameters.
      use_gamma: whether to scale by a parameter gamma.
      use_beta: whether to add a parameter beta.
    """

    use_running_average: bool | None = None
    channel_axis: int = -1
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32
    use_gamma: bool = True
    use_beta: bool = True

    @nn.compact
    def __call__(
        self, x: ArrayLike, *, use_running_average: bool | jax.Array | None = None
    ) -> jax.Array:
        """Normalizes `x`."""
        x = _axes.check_input(x)
        channel = _axes.canonical_axis(self.channel_axis, x.shape, "channel_axis")
        shape, gamma, beta = (x.shape[channel],), None, None
        if self.use_gamma:
            gamma = self.param("gamma", nn.initializers.ones, shape, self.param_dtype)
        if self.use_beta:
            beta = self.param("beta", nn.initializers.zeros, shape, self.param_dtype)
        context = self._context()
        evaluate = self.use_running_average if use_running_average is None else use_running_average
        decisions = Decisions.of_mode(evaluate, context)
        first = running.init_moments(shape, x.dtype, counts=False)
        state = self._read_state(first, x)
        results = [
            self._normalize(x, source, state, gamma, beta, channel) for source in decisions.sources
        ]
        if decisions.tracks(context):
            positions = _axes.other_axes((0, channel), x.ndim)
            mean, var, count = jax.lax.stop_gradient(moments(x, positions))
            average = Moments(jnp.mean(mean, 0), jnp.mean(var, 0), count)
            options = {"momentum": self.momentum, "unbiased": True, "debias": False}
            self._write_state(running.track(state, average, decisions.update, **options))
        return choose(decisions.evaluate, results)

    def _normalize(self, x, source, state: State, gamma, beta, channel) -> jax.Array:
        options = {"epsilon": self.epsilon, "dtype": self.dtype}
        if source == "batch":
            report = group.ignore
            if not self.is_initializing():
                report = functools.partial(group.refuse, "TrackedInstanceNorm")
            positions = {"channel_axis": channel, "axis": None}
            return group.normalize_positions(report, x, gamma, beta, None, **positions, **options)
        axes = _axes.other_axes((channel,), x.ndim)
        return standardize(x, running.moments_of(state), gamma, beta, axis=axes, **options)
