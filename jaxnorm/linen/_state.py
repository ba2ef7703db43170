"""The state of a layer, as Flax variables, in the collection `batch_stats` if nothing else."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxnorm._layers.call import Context, State, StateInit
from jaxnorm._layers.running import ACCUMULATORS

COLLECTION = "batch_stats"


def context_of(module: nn.Module, name: str, collection: str = COLLECTION) -> Context:
    """Returns what Flax says of the call that a module called `name` is in."""
    scope = module.scope
    assert scope is not None  # the module is being called
    return Context(
        label=f"{name} {'/'.join(module.path) or '(top level)'}",
        initializing=module.is_initializing(),
        # Of the scope: tools that evaluate a model have the module's own method say otherwise.
        mutable=scope.is_mutable_collection(collection),
        accumulates=module.has_variable(COLLECTION, ACCUMULATORS[0]),
    )


class StateVariables:
    """The variables of a state, made where they are missing."""

    def __init__(self, module: nn.Module, first: StateInit, collection: str = COLLECTION):
        self._variables = {
            name: module.variable(collection, name, make) for name, make in first.items()
        }

    @property
    def value(self) -> dict[str, jax.Array]:
        return {name: variable.value for name, variable in self._variables.items()}

    def keep(self, new: State | None) -> None:
        """Takes over a new state, of some of the variables or all, if there is one."""
        for name, value in (new or {}).items():
            self._variables[name].value = value
