"""Which batch norms of a model can become part of the linear layer before them, and why not."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxnorm._core import axes as _axes
from jaxnorm._layers.call import Context
from jaxnorm.tools.folding.search import (
    LAYER_VALUES,
    TAG,
    LayerCall,
    NormCall,
    Pair,
    Search,
    label_of,
)
from jaxnorm.tools.models.dataflow import Flow
from jaxnorm.tools.models.norms import (
    BATCH,
    LAYER_CALLS,
    LAYERS,
    NORM_CALLS,
    OWN_BATCH,
    affine_names,
    arguments,
)
from jaxnorm.tools.models.programs import NnxProgram, Path, Visit

STATISTICS = ("mean", "var")


def find_pairs(program: Any, args: tuple) -> tuple[list[Pair], list[tuple[Path, str]]]:
    """Returns the pairs to fold, and the path of each batch norm that stays, with the reason."""
    calls: list[LayerCall | NormCall] = []
    foreign: dict[Path, str] = {}

    def look(visit, run, args, kwargs):
        module, number = visit.module, len(calls)
        # The other library's, whose state is not where it is looked for.
        is_bridged = isinstance(module, nnx.Module) != isinstance(program, NnxProgram)
        if isinstance(module, LAYERS) and visit.function in LAYER_CALLS and not is_bridged:
            axis = -2 if getattr(module, "transpose_kernel", False) else -1
            ranks = _tag_values(visit, number, LAYER_VALUES)
            calls.append(LayerCall(visit.path, axis, ranks, _is_circular(module)))
            return _tag(run(*args, **kwargs), number, "out")
        if not isinstance(module, BATCH):
            return run(*args, **kwargs)
        if visit.function not in NORM_CALLS:
            # That of a subclass, which may call the norm's own, and is looked at there.
            y = run(*args, **kwargs)
            if all(call.path != visit.path for call in calls):
                name = type(module).__name__
                foreign[visit.path] = f"its class {name} computes in a way of its own"
            return y
        given = arguments(visit.function, module, args, kwargs)
        names = affine_names(module)
        own = isinstance(module, OWN_BATCH)
        if visit.value("mean") is None:
            raise ValueError(
                f"fold: variables hold no running mean for {label_of(visit.path)}; give the "
                "collection batch_stats too, as it was trained."
            )
        extras = [n for n in ("mask", "domain", "gamma", "beta") if given.get(n) is not None]
        reason = _why_not_own(visit, given) if own else _why_not_flax(visit, given)
        reason = f"the call gives it {extras[0]}" if extras and not reason else reason
        if is_bridged:
            reason = "it lies behind flax.nnx.bridge"
        ranks = _tag_values(visit, number, (*STATISTICS, *names))
        calls.append(NormCall(visit.path, reason, module.epsilon, names, None, ranks))
        x = _tag(jnp.asarray(given["x"]), number, "in")
        y = run(*((x, *args[1:]) if args else ()), **(kwargs if args else {**kwargs, "x": x}))
        if y.dtype != x.dtype:
            calls[number] = calls[number]._replace(dtype=y.dtype)
        return _tag(y, number, "out")

    flow = Flow.of(program.trace(look, args))
    pairs, kept = Search(program, flow, calls).result()
    return pairs, [*kept, *foreign.items()]


def _is_circular(module: Any) -> bool:
    transposed = isinstance(module, nn.ConvTranspose | nnx.ConvTranspose)
    return transposed and module.padding == "CIRCULAR"


def _tag(value: Any, number: int, end: str) -> Any:
    return checkpoint_name(value, f"{TAG}{number} {end}")


def _tag_values(visit: Visit, number: int, names: tuple[str, ...]) -> dict[str, int]:
    """Tags the parameters of a call, and returns their ranks."""
    ranks = {}
    for name in names:
        value = visit.value(name)
        if value is not None:
            # Where vmap has stacked it along another axis than the first, this transposes.
            value = jnp.atleast_1d(value)
            _tag(jnp.concatenate([value, value], -1), number, name)
            ranks[name] = value.ndim
    return ranks


_TRAINS = (
    "it normalizes by the batch's statistics, or updates the running ones; call the model for "
    "evaluation"
)
_AXES = "its statistics are not of the last axis alone"


def _why_not_own(visit: Visit, given: dict[str, Any]) -> str:
    layer, shape = visit.module, jnp.shape(given["x"])
    decisions = layer._decide(
        given["use_running_average"], given["update_running"], Context(visit.name)
    )
    if decisions.sources != ("running",) or decisions.update is not False:
        return _TRAINS
    pooled, features = layer._axes_of(shape)
    last = len(shape) - 1
    fits = features == (last,) and len(pooled) == last and layer.num_domains is None
    return "" if fits else _AXES


def _why_not_flax(visit: Visit, given: dict[str, Any]) -> str:
    module, shape = visit.module, jnp.shape(given["x"])
    evaluates = given["use_running_average"]
    if evaluates is None:
        evaluates = module.use_running_average
    if evaluates is not True:
        return _TRAINS
    features = _axes.canonical_axes(module.axis, shape, "axis")
    return "" if features == (len(shape) - 1,) else _AXES
