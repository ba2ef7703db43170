"""The moments of all that reaches each batch norm of a model in one batch, by its path."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm._core.moments import Moments, moments
from jaxnorm._layers.running import ACCUMULATORS, accumulated
from jaxnorm.tools.models.norms import (
    PLAIN_BATCH,
    arguments,
    batch_axes,
    boolean,
    can_normalize_by_batch,
    is_plain,
    run_with,
)
from jaxnorm.tools.statistics.running import accumulators, with_accumulators

Call = Callable[[Any, Any], Any]
Collect = Callable[[Any], dict[str, Moments]]  # of a batch


def linen_collector(
    model: nn.Module, variables: Mapping[str, Any], call: Call | None, rngs: Any
) -> Callable[[Any, bool], Collect]:
    """Returns what makes, of statistics and whether to normalize by the batch, a function."""
    collect = jax.jit(functools.partial(_collect_linen, model, call, rngs), static_argnums=2)

    def prepare(stats: Any, by_batch: bool) -> Collect:
        current = {**variables, "batch_stats": stats}
        return lambda batch: collect(current, batch, by_batch)

    return prepare


def nnx_collector(call: Call | None) -> Callable[[Any, bool], Collect]:
    """Returns what makes, of a model and whether to normalize by the batch, a function."""
    collect = jax.jit(functools.partial(_collect_nnx, call), static_argnums=0)

    def prepare(model: Any, by_batch: bool) -> Collect:
        evaluated = with_accumulators(nnx.clone(model), always=True)
        evaluated.eval()
        for _, module in list(nnx.iter_modules(evaluated)):
            if isinstance(module, nnx.BatchNorm) and is_plain(module, PLAIN_BATCH):
                object.__setattr__(module, "__class__", _flax_class(type(module), by_batch))
            elif by_batch and isinstance(module, jaxnorm.nnx.BatchNorm):
                object.__setattr__(module, "__class__", _by_batch_class(type(module)))
        graph, state = nnx.split(evaluated)
        return lambda batch: collect(graph, state, batch)

    return prepare


def _collect_linen(model, call, rngs, variables, batch, by_batch: bool):
    variables = {
        **variables,
        "batch_stats": with_accumulators(variables["batch_stats"], always=True),
    }
    apply = nn.apply(call or _call, model, mutable=["batch_stats"])
    with nn.intercept_methods(functools.partial(_collecting, by_batch)):
        _, updates = apply(variables, batch, rngs=rngs)
    return dict(accumulators(updates["batch_stats"]))


def _collect_nnx(call, graph, state, batch):
    model = nnx.merge(graph, state, copy=True)
    (call or _call)(model, batch)
    return dict(accumulators(model))


def _call(model, batch):
    return model(batch)


def _collecting(by_batch: bool, next_function, args, kwargs, context):
    """Lets batch norm alone work as in training, if asked; what else the call says stays as it is.

    Flax's own does not accumulate: what reaches it is added here. What a subclass's own call does
    with it is not known.
    """
    module = context.module
    if context.method_name != "__call__":
        return next_function(*args, **kwargs)
    if isinstance(module, nn.BatchNorm) and is_plain(module, PLAIN_BATCH):
        given = arguments(module, args, kwargs)
        state = {name: module.get_variable("batch_stats", name) for name in ACCUMULATORS}
        new, many = _add(module, state, given["x"], given["mask"])
        y = run_with(module, next_function, args, kwargs, evaluate=not (by_batch and many))
        # Last: a drop-in accumulates too.
        for name, value in new.items():
            module.put_variable("batch_stats", name, value)
        return y
    if by_batch and isinstance(module, jaxnorm.linen.BatchNorm):
        x = args[0] if args else kwargs["x"]
        many = can_normalize_by_batch(module, x, kwargs.get("mask"))
        return run_with(module, next_function, args, kwargs, evaluate=not many)
    return next_function(*args, **kwargs)


def _add(module: Any, state: Any, x: Any, mask: Any) -> tuple[Any, bool]:
    """Returns accumulators with what reaches a batch norm of flax's, and if that is several."""
    axes = batch_axes(module, jnp.shape(x))
    pooled = moments(x, axes, mask=boolean(mask))
    return accumulated(state, pooled), math.prod(jnp.shape(x)[a] for a in axes) > 1


@functools.cache
def _flax_class(base: Any, by_batch: bool) -> Any:
    """Returns a batch norm of flax's for NNX that does as `_collecting` says for linen."""

    def call(self, x, use_running_average=None, *, mask=None):
        del use_running_average
        state = {name: getattr(self, name)[...] for name in ACCUMULATORS}
        new, many = _add(self, state, x, mask)
        y = base.__call__(self, x, use_running_average=not (by_batch and many), mask=mask)
        for name, value in new.items():
            getattr(self, name).set_value(value)
        return y

    return type(base.__name__, (base,), {"__call__": call})


@functools.cache
def _by_batch_class(base: Any) -> Any:
    """Returns a batch norm for NNX that works as in training, as `_collecting` says for linen."""

    def call(self, x, **kwargs):
        evaluate = not can_normalize_by_batch(self, x, kwargs.get("mask"))
        return base.__call__(self, x, **{**kwargs, "use_running_average": evaluate})

    return type(base.__name__, (base,), {"__call__": call})
