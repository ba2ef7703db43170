"""Where models keep running statistics: linen in a collection, NNX in the modules themselves."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flax import nnx

from jaxnorm._core.moments import Moments
from jaxnorm._layers.running import ACCUMULATORS
from jaxnorm.tools.models.bridges import ToNNX, linen_paths

Stats = Mapping[str, Any]  # the collection batch_stats of a linen model
Node = dict[str, Any]  # the statistics of one module, by name


def check_stats(tool: str, stats: Any) -> None:
    """Checks that these are the statistics of a model, or an NNX model."""
    if isinstance(stats, Mapping | nnx.Module):
        return
    remedy = "; of a linen model that is variables['batch_stats']"
    if hasattr(stats, "batch_stats"):
        remedy = ": give state.batch_stats"
    got = f"the class {stats.__name__}" if isinstance(stats, type) else type(stats).__name__
    raise TypeError(
        f"{tool} takes the collection batch_stats of a linen model, or an NNX model, got "
        f"{got}{remedy}."
    )


def nodes(stats: Stats | nnx.Module, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Node]]:
    """Yields the path of each module, and its own statistics."""
    if isinstance(stats, nnx.Module):
        yield from ((place, node_of(holder)) for place, holder in _holders(stats))
        return
    yield "/".join(path), {k: v for k, v in stats.items() if not isinstance(v, Mapping)}
    for name, value in stats.items():
        if isinstance(value, Mapping):
            yield from nodes(value, (*path, name))


def accumulators(stats: Stats | nnx.Module) -> Iterator[tuple[str, Moments]]:
    """Yields the path of each module that has an accumulator, and what that holds."""
    for path, node in nodes(stats):
        if ACCUMULATORS[0] in node:
            yield path, Moments(*(node[name] for name in ACCUMULATORS))


def map_running(
    stats: Any, function: Callable[[str, Node], Node], path: tuple[str, ...] = ()
) -> Any:
    """Applies function(path, statistics) to each module that has a running mean and variance.

    Returns a new collection; or the NNX model itself, whose variables have changed.
    """
    if isinstance(stats, nnx.Module):
        for place, holder in list(_holders(stats)):
            node = node_of(holder)
            if is_running(node):
                _keep(holder, node, function(place, node))
        return stats
    node = {
        name: map_running(value, function, (*path, name)) if isinstance(value, Mapping) else value
        for name, value in stats.items()
    }
    return function("/".join(path), node) if is_running(node) else node


def node_of(holder: nnx.Module | Mapping[str, Any]) -> Node:
    """Returns the statistics of a module of NNX itself, or of one of linen within it."""
    known = holder if isinstance(holder, Mapping) else vars(holder)
    return {k: v[...] for k, v in known.items() if isinstance(v, nnx.BatchStat)}


def _holders(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    """Yields the path of each module, and what holds its variables: it, or for linen a dict."""
    for place, module in nnx.iter_modules(model):
        yield "/".join(map(str, place)), module
        if isinstance(module, ToNNX):
            for within in sorted(linen_paths(module, nnx.BatchStat) - {()}):
                holder = functools.reduce(operator.getitem, within, vars(module))
                yield "/".join((*map(str, place), *within)), holder


def _keep(module: Any, old: Node, new: Node) -> None:
    """Makes the statistics of a module those of `new`."""
    if isinstance(module, Mapping):
        for name, value in new.items():
            module[name].set_value(value)
        return
    for name in old.keys() - new.keys():
        delattr(module, name)
    for name, value in new.items():
        if name in old:
            getattr(module, name).set_value(value)
        else:
            setattr(module, name, nnx.BatchStat(value))


def is_running(node: Stats) -> bool:
    """Whether the variables are those of a running mean and variance."""
    return all(name in node and not isinstance(node[name], Mapping) for name in ("mean", "var"))
