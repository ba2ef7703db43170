"""The moments of all that reaches each batch norm of a model in one batch, by its path."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm._core.moments import Moments
from jaxnorm.tools._accumulate import accumulate
from jaxnorm.tools._norms import can_normalize_by_batch
from jaxnorm.tools._running import accumulators

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
        evaluated = accumulate(nnx.clone(model))
        evaluated.eval()
        if by_batch:
            for _, module in list(nnx.iter_modules(evaluated)):
                if isinstance(module, jaxnorm.nnx.BatchNorm):
                    object.__setattr__(module, "__class__", _by_batch_class(type(module)))
        graph, state = nnx.split(evaluated)
        return lambda batch: collect(graph, state, batch)

    return prepare


def _collect_linen(model, call, rngs, variables, batch, by_batch: bool):
    variables = {**variables, "batch_stats": accumulate(variables["batch_stats"])}
    apply = nn.apply(call or _call, model, mutable=["batch_stats"])
    with nn.intercept_methods(_by_batch if by_batch else _as_it_is):
        _, updates = apply(variables, batch, rngs=rngs)
    return dict(accumulators(updates["batch_stats"]))


def _collect_nnx(call, graph, state, batch):
    model = nnx.merge(graph, state, copy=True)
    (call or _call)(model, batch)
    return dict(accumulators(model))


def _call(model, batch):
    return model(batch)


def _by_batch(next_function, args, kwargs, context):
    """Lets batch norm alone work as in training; what else the call says stays as it is."""
    module = context.module
    if isinstance(module, jaxnorm.linen.BatchNorm) and context.method_name == "__call__":
        x = args[0] if args else kwargs["x"]
        kwargs = {
            **kwargs,
            "use_running_average": not can_normalize_by_batch(module, x, kwargs.get("mask")),
        }
    return next_function(*args, **kwargs)


def _as_it_is(next_function, args, kwargs, context):
    del context
    return next_function(*args, **kwargs)


@functools.cache
def _by_batch_class(base: Any) -> Any:
    """Returns a batch norm for NNX that works as in training, as `_by_batch` does for linen."""

    def call(self, x, **kwargs):
        evaluate = not can_normalize_by_batch(self, x, kwargs.get("mask"))
        return base.__call__(self, x, **{**kwargs, "use_running_average": evaluate})

    return type(base.__name__, (base,), {"__call__": call})
