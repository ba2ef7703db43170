"""Layers of functions that return the batch's moments, and take running ones in evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxnorm._core.axes import DTypeLike
from jaxnorm._core.moments import Moments
from jaxnorm._layers import running, sources
from jaxnorm._layers.decisions import Decisions
from jaxnorm._layers.layer import Context, FirstState, Layer, State

# The running moments, or None, and whether to pool over mapped axes -> the result and the batch's.
Normalize = Callable[[Moments | None, bool], tuple[jax.Array, Moments]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureLayer(Layer):
    """The options of such a layer, named as in `jaxnorm.linen.BatchNorm`."""

    use_running_average: bool | jax.Array | None
    momentum: float | None
    unbiased: bool

    def decide(self, evaluate: Any, context: Context) -> Decisions:
        """Returns what the call decides; None leaves it to the options."""
        evaluate = self.use_running_average if evaluate is None else evaluate
        return Decisions.make(evaluate, None, "batch", "running", None, context.label)

    def first_state(self, shape: tuple[int, ...], dtype: DTypeLike, context: Context) -> FirstState:
        """Returns what running moments of shape `shape` start at."""
        first = running.first_moments(shape, dtype, counts=self.momentum is None)
        return first | (running.first_accumulators(shape, dtype) if context.accumulates else {})

    def apply(
        self, normalize: Normalize, state: State, decisions: Decisions, context: Context
    ) -> tuple[jax.Array, State | None]:
        """Normalizes; returns the new state too, of some of its arrays or all, if it moved."""
        tracks = decisions.tracks(context)
        results, batches = [], []
        for source in decisions.sources:
            given = running.moments_of(state) if source == "running" else None
            pools = not context.initializing and (given is None or tracks)
            y, batch = normalize(given, pools)
            results.append(y)
            batches.append(batch)
        y = sources.choose(decisions.evaluate, results)
        if not tracks:
            return y, None
        batch = jax.lax.stop_gradient(batches[0])
        average = {"momentum": self.momentum, "unbiased": self.unbiased}
        return y, running.track(state, batch, decisions.update, **average)
