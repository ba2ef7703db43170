"""What all layers have in common: options with the names of a module's fields, and a context."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import jax

from jaxnorm._core.mesh import placed

State = Mapping[str, jax.Array]
FirstState = dict[str, Callable[[], jax.Array]]  # what makes each array that a state starts with


class Context(NamedTuple):
    """What a framework says of a call.

    Attributes:
      label: what errors call the layer, such as "BatchNorm block_1/norm".
      initializing: whether variables are only made: no state moves, nothing is sent to others.
      mutable: whether new state can be kept.
      accumulates: whether the state has accumulators; see `jaxnorm.tools.accumulate`.
      evaluation: how the call is told to evaluate, for errors.
      widening: how parameters are cast and the state is not, for warnings.
    """

    label: str
    initializing: bool = False
    mutable: bool = True
    accumulates: bool = False
    evaluation: str = "use_running_average=True"
    widening: str = (
        "Keep batch_stats in float32 and cast the parameters alone: variables = {**variables, "
        "'params': jax.tree.map(lambda a: a.astype(jnp.bfloat16), variables['params'])}."
    )


def first_placed(first: FirstState, specs: Mapping[str, Any]) -> FirstState:
    """Returns `first` so that each array, by its name, lies where `specs` says.

    A state that starts as it goes on can be carried through a loop.
    """
    return {name: functools.partial(_make, make, specs[name]) for name, make in first.items()}


def _make(make: Callable[[], jax.Array], spec: Any) -> jax.Array:
    return placed(make(), spec)


class Layer:
    """Base of a layer's options, each named as the field of the modules that have it."""

    @classmethod
    def of(cls, module: Any) -> Self:
        """Returns the options that the fields of `module` say."""
        fields: Any = cls
        return cls(**{f.name: getattr(module, f.name) for f in dataclasses.fields(fields)})
