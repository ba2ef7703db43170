"""The statistics that can normalize: the batch's, running ones, or the batch's brought closer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxnorm._core.axes import ArrayLike
from jaxnorm._core.formula import Options
from jaxnorm._core.moments import Moments
from jaxnorm.functional import _batch_core as core
from jaxnorm.functional._corrections import Blend, Correction, Renorm

Statistics = Literal["batch", "running", "renorm"] | float
Limit = ArrayLike | Callable[[jax.Array], ArrayLike]  # a value, or a function of the updates


def check_statistics(value: Any, name: str) -> Statistics:
    """Returns the statistics that an option names."""
    if isinstance(value, str) and value in ("batch", "running", "renorm"):
        return value
    if isinstance(value, (int, float)) and 0 <= value <= 1:
        return float(value)
    raise ValueError(
        f'{name} must be "batch", "running", "renorm", or the weight of the batch in a mixture '
        f"with the running statistics, in [0, 1]; got {value!r}."
    )


def normalize_by(
    source: Statistics,
    inputs: core.Inputs,
    batch: core.Batch,
    options: Options,
    limits: tuple[Limit, Limit],
) -> tuple[jax.Array, Moments | None]:
    """Normalizes by the statistics that `source` names; returns the batch's too, if it has them."""
    if source == "running":
        return core.normalize_by_running(inputs, batch, options), None
    correction = _correction_of(source, limits, inputs.running)
    return core.normalize_by_batch(inputs, batch, correction, options)


def _correction_of(
    source: Statistics, limits: tuple[Limit, Limit], running: Moments | None
) -> Correction | None:
    """Returns how the batch's statistics are corrected for `source`; None: not at all."""
    if source == "batch":
        return None
    if source == "renorm":
        at = jnp.zeros(()) if running is None else jnp.max(running.count)
        return Renorm(*(limit(at) if callable(limit) else limit for limit in limits))
    return Blend(float(source))


def choose(evaluate: Any, results: list[jax.Array]) -> jax.Array:
    """Returns the only result, or with a traced `evaluate` that of evaluation or of training."""
    if len(results) == 1:
        return results[0]
    train, test = results
    return jnp.where(evaluate, test, train)
