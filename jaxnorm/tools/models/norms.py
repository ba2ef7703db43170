"""Which modules normalize, of jaxnorm's and of flax's, and what their parameters are called."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
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
from jaxnorm._layers.batch import BatchLayer

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
PLAIN_BATCH = (*BATCH, jaxnorm.drop_in.linen.BatchNorm, jaxnorm.drop_in.nnx.BatchNorm)


def is_norm(module: Any) -> bool:
    """Whether a module is a normalization of jaxnorm's or flax's."""
    return isinstance(module, FLAX + OWN)


def accumulates(module: Any) -> bool:
    """Whether a module of NNX merges batches into accumulators: a norm of jaxnorm, or a drop-in."""
    drop_in = jaxnorm.drop_in.nnx.BatchNorm.__call__
    calls = (vars(kind).get("__call__") for kind in type(module).__mro__)
    return isinstance(module, OWN) or drop_in in calls


def affine_names(module: Any) -> tuple[str, ...]:
    """Returns the names of its gamma and beta."""
    if isinstance(module, FLAX):
        return ("scale", "bias")
    return getattr(module, "param_names", ("gamma", "beta"))


def is_plain(module: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether a call of a module is that of one of the classes, not one of a subclass's own."""
    call = inspect.unwrap(type(module).__call__)
    return any(call is inspect.unwrap(kind.__call__) for kind in kinds)


def arguments(module: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Returns the arguments of a call of `module`, by name, those left out as well."""
    call = inspect.signature(type(module).__call__)
    bound = call.bind(module, *args, **kwargs)
    bound.apply_defaults()
    return dict(list(bound.arguments.items())[1:])


def batch_axes(module: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the axes that a batch norm of jaxnorm's or flax's pools."""
    if isinstance(module, OWN_BATCH):
        return BatchLayer.of(module).axes_of(shape)[0]
    return _axes.other_axes(_axes.canonical_axes(module.axis, shape, "axis"), len(shape))


def boolean(mask: Any) -> Any:
    """Returns a mask (None stays None) as jaxnorm takes it; flax's norms take any dtype."""
    return None if mask is None else jnp.asarray(mask, bool)


def can_normalize_by_batch(module: Any, x: Any, mask: Any) -> bool:
    """Whether the batch's statistics can normalize in a batch norm of jaxnorm.

    A batch of one value per channel, as the last may be, is normalized by the statistics there are.
    """
    return BatchLayer.of(module).can_normalize_by_batch(np.shape(x), mask)


def run_with(module: Any, run: Any, args: tuple, kwargs: dict[str, Any], evaluate: bool) -> Any:
    """Calls a batch norm so that it normalizes by running statistics, or by the batch's."""
    if isinstance(module, OWN_BATCH):
        return run(*args, **{**kwargs, "use_running_average": evaluate})
    # Flax's own take it from one place only.
    given = {**arguments(module, args, kwargs), "use_running_average": evaluate}
    with instead(module, {"use_running_average": None}):
        return run(given.pop("x"), **given)


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
