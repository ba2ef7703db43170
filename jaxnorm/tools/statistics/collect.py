"""The moments of all that reaches each batch norm of a model in one batch, by its path.

They are read from the program of the model, whose state stays as it is: a layer may be frozen,
shared by the steps of a scan, or evaluate where its state is not mutable.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxnorm._core import axes as _axes
from jaxnorm._core.moments import Moments
from jaxnorm._layers.batch import BatchNorm
from jaxnorm._layers.call import Call, Context
from jaxnorm._layers.running import ACCUMULATORS
from jaxnorm.functional.moments import moments
from jaxnorm.tools.models.batches import split_arrays
from jaxnorm.tools.models.norms import (
    BATCH,
    NORM_CALLS,
    OWN_BATCH,
    arguments,
    batch_axes,
    boolean,
    run_with,
)
from jaxnorm.tools.models.places import number_means
from jaxnorm.tools.models.programs import Program, Visit
from jaxnorm.tools.models.reap import reap
from jaxnorm.tools.statistics.population import Population

_TAG = "jaxnorm collect "
# What is tagged of a call, along the last axis: the moments of each statistic, and its running
# mean, by which it is found in the state.
_COLUMNS, _COUNT = 5, 3

Rows = dict[str, Any]  # by path


class Collector:
    """Collects the moments of one batch after the other.

    Args:
      program: the model.
      shapes: of the running mean of each layer, by path.
      by_batch: whether batches are normalized by their own statistics, as in training.

    Attributes:
      population: the moments of all batches.
      seen: whether there was a batch.
    """

    def __init__(self, program: Program, shapes: dict[str, tuple[int, ...]], by_batch: bool):
        self.population = Population(self._moments)
        self._shapes = shapes
        self._program, self._state, self._numbers = (
            program,
            *number_means(program, shapes, wide=True),
        )
        # Without state, so that what is compiled does not hold it.
        bare: Any = copy.copy(program)
        bare.state = bare.rngs = None
        self._compiled = _compile(bare, by_batch)
        self._places: dict[Any, dict[str, np.ndarray]] = {}
        self.seen = False

    def add(self, batch: Any) -> None:
        """Adds what reaches the layers in a batch."""
        arrays, rebuild = split_arrays(batch, numbers=True)

        def run(state: Any) -> Rows:
            return self._compiled(rebuild, state, arrays, getattr(self._program, "rngs", None))

        key = (rebuild, *((jnp.shape(a), jnp.result_type(a)) for a in arrays.values()))
        self.seen = True
        places = self._places.get(key)
        if places is None:
            found = jax.device_get(run(self._numbers))
            places = {path: rows[:, -1] for path, rows in found.items()}
            # A branch that this batch does not take says nothing of where its layers lie.
            if all(rows[:, _COUNT].all() for rows in found.values()):
                self._places[key] = places
        self.population.add((run(self._state), places))

    def _moments(self, found: tuple[Rows, Rows]) -> dict[str, Moments]:
        rows, places = found
        return {path: _group(rows[path], places[path], self._shapes[path]) for path in rows}


@functools.lru_cache(maxsize=8)
def _compile(program: Any, by_batch: bool) -> Callable[..., Rows]:
    """Returns the compiled function of a model, the same when it is asked for again."""

    def look(visit: Visit, run: Any, args: tuple, kwargs: dict) -> Any:
        if not isinstance(visit.module, BATCH) or visit.function not in NORM_CALLS:
            return run(*args, **kwargs)
        given = arguments(visit.function, visit.module, args, kwargs)
        running = visit.value("mean")
        if running is not None:
            checkpoint_name(_rows(visit.module, given, running), f"{_TAG}{visit.name}")
        return run_with(visit.module, run, given, by_batch)

    @functools.partial(jax.jit, static_argnums=0)
    def collect(rebuild: Any, state: Any, arrays: Any, rngs: Any) -> Rows:
        live = copy.copy(program)
        live.state, live.rngs = state, rngs
        closed = live.trace(look, (rebuild(arrays),))
        arrays, _ = split_arrays(rebuild(arrays))
        _, found = reap(closed, _TAG, branches=True)(*jax.tree.leaves((state, arrays)))
        return {
            name.removeprefix(_TAG): jnp.concatenate([v.reshape(-1, _COLUMNS) for v in values])
            for name, values in found.items()
        }

    return collect


def _rows(module: Any, given: dict[str, Any], running: jax.Array) -> jax.Array:
    """Returns the moments of a call, with the running mean beside them.

    One array, so that scan and vmap stack all alike.
    """
    found = _moments_of(module, given)
    mean = found.mean
    columns = (jnp.real(mean), jnp.imag(mean), found.var, found.count, jnp.real(running))
    dtype = jnp.real(running).dtype
    whole = [jnp.broadcast_to(column.astype(dtype), running.shape) for column in columns]
    return jnp.stack(whole, -1)


def _moments_of(module: Any, given: dict[str, Any]) -> Moments:
    """Returns the moments of what reaches a batch norm in a call, of each domain if it has any."""
    x, mask = _axes.check_input(given["x"]), boolean(given["mask"])
    if not isinstance(module, OWN_BATCH) or module.num_domains is None:
        return moments(x, batch_axes(module, x.shape), mask=mask)
    plain = {"train_statistics": "running", "eval_statistics": "running", "frozen": None}
    alone = {"axis_name": None, "axis_index_groups": None, "num_virtual_batches": 1}
    fields = {field.name: getattr(module, field.name) for field in dataclasses.fields(BatchNorm)}
    layer = BatchNorm(**{**fields, **plain, **alone})
    context = Context(type(module).__name__, accumulates=True)
    decisions = layer._decide(True, True, context)
    state = {name: make() for name, make in layer._init_state(x, decisions, context).items()}
    _, new = layer._normalize(x, {}, state, Call(context, mask, decisions, given["domain"]))
    assert new is not None
    return Moments(*(new[name] for name in ACCUMULATORS))


def _group(rows: np.ndarray, places: np.ndarray, shape: tuple[int, ...]) -> Moments:
    """Returns the moments of each place in the state, of all rows that belong there."""
    real, imaginary, var, count, _ = np.asarray(rows, np.float64).T
    at, size = places.astype(np.int64), int(np.prod(shape))
    mean = real + 1j * imaginary if imaginary.any() else real
    # A set without elements may hold anything, even NaN.
    mean, var = (np.where(count > 0, value, 0) for value in (mean, var))
    total = np.bincount(at, count, size)
    weight = count / np.maximum(total, 1)[at]
    center, spread = np.zeros(size, mean.dtype), np.zeros(size)
    np.add.at(center, at, weight * mean)
    np.add.at(spread, at, weight * (var + np.abs(mean - center[at]) ** 2))
    return Moments._make(value.reshape(shape) for value in (center, spread, total))
