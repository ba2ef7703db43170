"""Layers of functions that return the batch's moments, and take running ones in evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.moments import Moments
from jaxnorm._layers import running, sources
from jaxnorm._layers.call import Context, Decisions, State, StateInit
from jaxnorm._layers.layer import AffineLayer, ChannelLayer, Own, Parameter, Parameters
from jaxnorm.functional import adaptive, evolved_batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureLayer(AffineLayer):
    """The options of such a layer, named as in `jaxnorm.linen.BatchNorm`."""

    epsilon: float
    use_running_average: bool | jax.Array | None
    momentum: float | None
    unbiased: bool
    axis_name: str | Sequence[str] | None

    def decide(self, evaluate: Any, context: Context) -> Decisions:
        """Returns what the call decides; None leaves it to the options."""
        evaluate = self.use_running_average if evaluate is None else evaluate
        return Decisions.make(evaluate, None, "batch", "running", None, context.label)

    def first_state(self, sizes: tuple[int, ...], dtype: DTypeLike, context: Context) -> StateInit:
        """Returns what running moments start at, for features of those `sizes`."""
        first = running.init_moments(sizes, dtype, counts=self.momentum is None)
        return first | (running.init_accumulators(sizes, dtype) if context.accumulates else {})

    def normalize(
        self, x: jax.Array, own: Own, given: Moments | None, axis_name: Any, mask: ArrayLike | None
    ) -> tuple[jax.Array, Moments]:
        """Returns the result, by the moments `given` if any, and the batch's moments."""
        raise NotImplementedError

    def apply(
        self,
        x: jax.Array,
        own: Own,
        state: State,
        evaluate: Any,
        context: Context,
        mask: ArrayLike | None,
    ) -> tuple[jax.Array, State | None]:
        """Normalizes; returns the new state too, of some of its arrays or all, if it moved."""
        decisions = self.decide(evaluate, context)
        tracks = decisions.tracks(context)
        results, batches = [], []
        for source in decisions.sources:
            given = running.moments_of(state) if source == "running" else None
            pools = not context.initializing and (given is None or tracks)
            y, batch = self.normalize(x, own, given, self.axis_name if pools else None, mask)
            results.append(y)
            batches.append(batch)
        y = sources.choose(decisions.evaluate, results)
        if not tracks:
            return y, None
        batch = jax.lax.stop_gradient(batches[0])
        average = {"momentum": self.momentum, "unbiased": self.unbiased}
        return y, running.track(state, batch, decisions.update, **average)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvoNormB0Layer(MixtureLayer):
    """The options of `jaxnorm.linen.EvoNormB0`."""

    reduction_axes: Axes | None
    use_v: bool

    def pooled(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the axes pooled."""
        given = range(len(shape) - 1) if self.reduction_axes is None else self.reduction_axes
        return _axes.canonical_axes(given, shape, "reduction_axes")

    def features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.other_axes(self.pooled(shape), len(shape))

    def parameters(self, sizes: tuple[int, ...]) -> Parameters:
        v = Parameter(sizes, "v_init") if self.use_v else None
        return {**super().parameters(sizes), "v": v}

    def normalize(
        self, x: jax.Array, own: Own, given: Moments | None, axis_name: Any, mask: ArrayLike | None
    ) -> tuple[jax.Array, Moments]:
        return evolved_batch.evo_norm_b0(
            x,
            **own,
            axis=self.pooled(x.shape),
            var=None if given is None else given.var,
            epsilon=self.epsilon,
            mask=mask,
            axis_name=axis_name,
            dtype=self.dtype,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwitchableNormLayer(MixtureLayer, ChannelLayer):
    """The options of `jaxnorm.linen.SwitchableNorm`."""

    def parameters(self, sizes: tuple[int, ...]) -> Parameters:
        weights = dict.fromkeys(("mean_weights", "var_weights"), Parameter((3,), "weights_init"))
        return {**super().parameters(sizes), **weights}

    def normalize(
        self, x: jax.Array, own: Own, given: Moments | None, axis_name: Any, mask: ArrayLike | None
    ) -> tuple[jax.Array, Moments]:
        call = {"batch_moments": given, "axis_name": axis_name, "mask": mask}
        return adaptive.switchable_norm(x, **own, **call, **self.arguments(x))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchInstanceNormLayer(MixtureLayer, ChannelLayer):
    """The options of `jaxnorm.linen.BatchInstanceNorm`."""

    def parameters(self, sizes: tuple[int, ...]) -> Parameters:
        return {**super().parameters(sizes), "rho": Parameter(sizes, "rho_init")}

    def normalize(
        self, x: jax.Array, own: Own, given: Moments | None, axis_name: Any, mask: ArrayLike | None
    ) -> tuple[jax.Array, Moments]:
        call = {"batch_moments": given, "axis_name": axis_name, "mask": mask}
        return adaptive.batch_instance_norm(x, **own, **call, **self.arguments(x))
