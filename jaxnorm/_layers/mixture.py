"""Norms of functions that return the batch's moments, and take running ones in evaluation."""

from __future__ import annotations

from typing import Any

import jax
from jax.nn import initializers

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import Axes, DTypeLike
from jaxnorm._core.moments import Moments
from jaxnorm._layers import running, sources
from jaxnorm._layers.call import Call, Context, Params, State, StateInit
from jaxnorm._layers.layer import ChannelLayer, Initializer, Parameters, RunningNorm
from jaxnorm._layers.options import options
from jaxnorm.functional import adaptive, evolved_batch


@options
class _Mixture(RunningNorm):
    momentum: float | None = 0.99
    """decay of the running statistics: new = momentum * old + (1 - momentum) * batch. None: the
    plain average of all batches."""

    def _init_state(self, x: jax.Array, context: Context) -> StateInit:
        sizes = self._sizes_of(x.shape)
        init = self._init_moments(sizes, x.dtype)
        return init | (running.init_accumulators(sizes, x.dtype) if context.accumulates else {})

    def _init_state_of(self, sizes: tuple[int, ...], shape: tuple[int, ...] | None) -> StateInit:
        return self._init_moments(sizes, self._state_dtype)

    def _init_moments(self, sizes: tuple[int, ...], dtype: DTypeLike) -> StateInit:
        return running.init_moments(sizes, dtype, counts=self.momentum is None)

    def _mix(
        self, x: jax.Array, params: Params, used: Moments | None, axis_name: Any, mask: Any
    ) -> tuple[jax.Array, Moments]:
        """Returns `x`, normalized by the moments `used` if any, and the batch's moments."""
        raise NotImplementedError

    def _normalize(
        self, x: jax.Array, params: Params, state: State, call: Call
    ) -> tuple[jax.Array, State | None]:
        context, mask, decisions, *_ = call
        tracks = decisions.tracks(context)
        results, batches = [], []
        for source in decisions.sources:
            used = running.moments_of(state) if source == "running" else None
            pools = not context.initializing and (used is None or tracks)
            y, batch = self._mix(x, params, used, self.axis_name if pools else None, mask)
            results.append(y)
            batches.append(batch)
        y = sources.choose(decisions.evaluate, results)
        if not tracks:
            return y, None
        batch = jax.lax.stop_gradient(batches[0])
        average = {"momentum": self.momentum, "unbiased": self.unbiased}
        return y, running.track(state, batch, decisions.update, **average)


@options
class EvoNormB0(_Mixture):
    """Batch norm joined to an activation; see `jaxnorm.evo_norm_b0`.

    In training the batch's variance counts, and the running mean and variance move towards the
    batch's; in evaluation the running variance counts.

    Reference: Liu, Brock, Simonyan & Le 2020, Evolving Normalization-Activation Layers,
    arXiv:2004.02967.
    """

    reduction_axes: Axes | None = None
    """the axes pooled, the batch's first; default: all but the last."""
    use_v: bool = True
    """whether the slope is a parameter v, or 1."""
    v_init: Initializer = initializers.ones
    """its initializer."""

    def _pooled(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        axes = range(len(shape) - 1) if self.reduction_axes is None else self.reduction_axes
        return _axes.canonical_axes(axes, shape, "reduction_axes")

    def _features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.other_axes(self._pooled(shape), len(shape))

    def _parameters(self, sizes: tuple[int, ...]) -> Parameters:
        return {**super()._parameters(sizes), "v": self._parameter(sizes, self.v_init, self.use_v)}

    def _mix(
        self, x: jax.Array, params: Params, used: Moments | None, axis_name: Any, mask: Any
    ) -> tuple[jax.Array, Moments]:
        return evolved_batch.evo_norm_b0(
            x,
            **params,
            axis=self._pooled(x.shape),
            var=None if used is None else used.var,
            epsilon=self.epsilon,
            mask=mask,
            axis_name=axis_name,
            dtype=self.dtype,
        )


@options
class SwitchableNorm(ChannelLayer, _Mixture):
    """A learned mixture of instance, layer and batch norm; see `jaxnorm.switchable_norm`.

    In training the batch's statistics are those of the batch, and the running ones move towards
    them; in evaluation they are the running ones.

    Reference: Luo, Ren, Peng, Zhang & Li 2018, Differentiable Learning-to-Normalize via Switchable
    Normalization, arXiv:1806.10779.
    """

    weights_init: Initializer = initializers.ones
    """initializer of the parameters `mean_weights` and `var_weights`, in the order instance, layer,
    batch, before the softmax."""
    momentum: float | None = 0.99
    """decay of the running statistics: new = momentum * old + (1 - momentum) * batch. None: the
    plain average of all batches, which the paper prefers."""

    def _parameters(self, sizes: tuple[int, ...]) -> Parameters:
        weights = self._parameter((3,), self.weights_init)
        return {**super()._parameters(sizes), "mean_weights": weights, "var_weights": weights}

    def _mix(
        self, x: jax.Array, params: Params, used: Moments | None, axis_name: Any, mask: Any
    ) -> tuple[jax.Array, Moments]:
        return adaptive.switchable_norm(
            x,
            **params,
            batch_moments=used,
            axis_name=axis_name,
            mask=mask,
            **self._arguments(x),
        )


@options
class BatchInstanceNorm(ChannelLayer, _Mixture):
    """A learned mixture of batch and instance norm's results; see `jaxnorm.batch_instance_norm`.

    In training the batch's statistics are those of the batch, and the running ones move towards
    them; in evaluation they are the running ones.

    Reference: Nam & Kim 2018, Batch-Instance Normalization for Adaptively Style-Invariant Neural
    Networks, arXiv:1805.07925.
    """

    rho_init: Initializer = initializers.ones
    """initializer of the parameter `rho`, the share of batch norm, limited to [0, 1]."""

    def _parameters(self, sizes: tuple[int, ...]) -> Parameters:
        return {**super()._parameters(sizes), "rho": self._parameter(sizes, self.rho_init)}

    def _mix(
        self, x: jax.Array, params: Params, used: Moments | None, axis_name: Any, mask: Any
    ) -> tuple[jax.Array, Moments]:
        return adaptive.batch_instance_norm(
            x,
            **params,
            batch_moments=used,
            axis_name=axis_name,
            mask=mask,
            **self._arguments(x),
        )
