"""Which modules normalize, of jaxnorm's and of flax's, and how these are called."""

from __future__ import annotations

import contextlib
import inspect
import math
import types
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxnorm.drop_in.linen
import jaxnorm.drop_in.nnx
import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm._core import axes as _axes
from jaxnorm.drop_in.linen import BODIES
from jaxnorm.functional.moments import moments

FLAX_BATCH = (nn.BatchNorm, nnx.BatchNorm)
FLAX = (
    *FLAX_BATCH,
    *(nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm),
    *(nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.InstanceNorm),
)
OWN_BATCH = (jaxnorm.linen.BatchNorm, jaxnorm.nnx.BatchNorm)
OWN = tuple(
    module
    for package in (jaxnorm.linen, jaxnorm.nnx)
    for module in (getattr(package, name) for name in package.__all__)
    if isinstance(module, type)
)
BATCH = (*FLAX_BATCH, *OWN_BATCH)
LAYERS = (
    *(nn.Dense, nn.Conv, nn.ConvTranspose),
    *(nnx.Linear, nnx.Conv, nnx.ConvTranspose),
)
DROP_IN = tuple(
    getattr(package, kind.__name__)
    for package in (jaxnorm.drop_in.linen, jaxnorm.drop_in.nnx)
    for kind in FLAX
    if kind.__module__.startswith("flax.linen") == (package is jaxnorm.drop_in.linen)
)


def _calls(kinds: tuple[Any, ...]) -> set[Any]:
    """Returns the calls of classes; those of flax.linen also as `everywhere()` computes them."""
    calls = {inspect.unwrap(kind.__call__) for kind in kinds if "__call__" in dir(kind)}
    return calls | {BODIES[call] for call in calls & BODIES.keys()}


NORM_CALLS = _calls(FLAX + DROP_IN + OWN)
LAYER_CALLS = _calls(LAYERS)
_KNOWN_CALLS = NORM_CALLS | LAYER_CALLS


def is_norm(module: Any) -> bool:
    """Whether a module is a normalization of jaxnorm's or flax's."""
    return isinstance(module, FLAX + OWN)


def accumulates(module: Any) -> bool:
    """Whether a module of NNX merges batches into accumulators: a norm of jaxnorm, or a drop-in."""
    drop_in = inspect.unwrap(jaxnorm.drop_in.nnx.BatchNorm.__call__)
    calls = (vars(kind).get("__call__") for kind in type(module).__mro__)
    return isinstance(module, OWN) or drop_in in map(inspect.unwrap, filter(None, calls))


def affine_names(module: Any) -> tuple[str, ...]:
    """Returns the names of its gamma and beta."""
    if isinstance(module, FLAX):
        return ("scale", "bias")
    return getattr(module, "param_names", ("gamma", "beta"))


def override(kind: Any, wrap: Callable[[Any], Any], method: str = "__call__") -> tuple[Any, ...]:
    """Returns bases of a class like `kind`, with wrap(call) for the call of the norm or layer.

    That is, for what `super().__call__` of a subclass with a call of its own ends in. It is a
    class that stands just before that of the norm in the order in which methods are looked up.
    """
    for base in kind.__mro__:
        call: Any = getattr(base, method, None)
        if inspect.unwrap(call) in _KNOWN_CALLS:
            if base is kind:
                break
            return (kind, type(base.__name__, (base,), {method: wrap(call)}))
    return (kind,)


def arguments(function: Any, module: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Returns the arguments of a call by `function`, by name, those left out as well."""
    bound = inspect.signature(function).bind(module, *args, **kwargs)
    bound.apply_defaults()
    return dict(list(bound.arguments.items())[1:])


def batch_axes(module: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the axes that a batch norm of jaxnorm's or flax's pools."""
    if isinstance(module, OWN_BATCH):
        return module._axes_of(shape)[0]
    return _axes.other_axes(_axes.canonical_axes(module.axis, shape, "axis"), len(shape))


def boolean(mask: Any) -> Any:
    """Returns a mask (None stays None) as jaxnorm takes it; flax's norms take any dtype."""
    return None if mask is None else jnp.asarray(mask, bool)


def can_normalize_by_batch(module: Any, x: Any, mask: Any) -> bool:
    """Whether the batch's statistics can normalize in a batch norm.

    A batch of one value per channel, as the last may be, is normalized by the statistics there are.
    """
    shape = np.shape(x)
    if isinstance(module, OWN_BATCH):
        return module._can_normalize_by_batch(shape, mask)
    return math.prod(shape[a] for a in batch_axes(module, shape)) > 1


def run_with(module: Any, run: Any, given: dict[str, Any], by_batch: bool) -> Any:
    """Calls a batch norm so that it normalizes by the batch, if it can, or by running statistics.

    These stay as they are, so that they need not be mutable. A batch that its virtual batches do
    not divide, as the last may be, is normalized as one.

    Args:
      module: the norm.
      run: its own call.
      given: the arguments of the call, by name.
      by_batch: whether the batch's statistics shall normalize.
    """
    x, mask = given["x"], given["mask"]
    by_batch = by_batch and can_normalize_by_batch(module, x, mask)
    rest = {name: value for name, value in given.items() if name != "x"}
    if isinstance(module, OWN_BATCH):
        whole = {} if module._divides(np.shape(x)) else {"num_virtual_batches": 1}
        with instead(module, whole):
            return run(x, **{**rest, "use_running_average": not by_batch, "update_running": False})
    # Flax's own take it from one place only, and would keep what normalizes by the batch.
    fields: dict[str, Any] = {"use_running_average": None}
    if by_batch:
        mapped = {name: getattr(module, name) for name in ("axis_name", "axis_index_groups")}
        axes = batch_axes(module, jnp.shape(x))
        found = moments(_axes.check_input(x), axes, mask=boolean(mask), **mapped)
        fields |= _as_running(module, found.mean, found.var)
    with instead(module, fields):
        return run(x, **{**rest, "use_running_average": True})


def _as_running(module: Any, mean: Any, var: Any) -> dict[str, Any]:
    """Returns attributes by which moments are the running ones of a batch norm of flax's."""
    values = {"mean": mean, "var": var}
    if isinstance(module, nnx.Module):
        return {name: nnx.BatchStat(value) for name, value in values.items()}

    def variable(collection: str, name: str, *_: Any, **__: Any) -> Any:
        del collection
        return types.SimpleNamespace(value=values[name])

    return {"variable": variable}


@contextlib.contextmanager
def instead(module: Any, attributes: dict[str, Any]) -> Iterator[None]:
    """Gives a module other attributes for the time of a call."""
    own = vars(module)
    before = {name: own[name] for name in attributes if name in own}
    for name, value in attributes.items():
        object.__setattr__(module, name, value)
    try:
        yield
    finally:
        for name in attributes:
            if name in before:
                object.__setattr__(module, name, before[name])
            else:
                object.__delattr__(module, name)
