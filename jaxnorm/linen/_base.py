"""What the normalization modules share: parameters of their own or from the call, and the call."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax

from jaxnorm._layers import layer
from jaxnorm._layers.call import Context, State, StateInit
from jaxnorm._layers.options import documented
from jaxnorm._layers.running import ACCUMULATORS


class Module(layer.Layer, nn.Module):
    """Base of the modules: a layer's variables, and the context of a call."""

    _collection: ClassVar[str] = "batch_stats"  # of the state

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith("jaxnorm."):
            documented(cls)

    def __post_init__(self) -> None:
        self._check_flags()
        super().__post_init__()

    @nn.nowrap
    def _context(self) -> Context:
        assert self.scope is not None  # the module is being called
        return Context(
            label=f"{type(self).__name__} {'/'.join(self.path) or '(top level)'}",
            initializing=self.is_initializing(),
            # Of the scope: tools that evaluate a model have the module's own method say otherwise.
            mutable=self.scope.is_mutable_collection(self._collection),
            accumulates=self.has_variable("batch_stats", ACCUMULATORS[0]),
        )

    @nn.nowrap
    def _param(self, name: str, parameter: layer.Parameter, x: jax.Array) -> Any:
        del x  # flax checks the shape
        check_name(self, name)
        return self.param(name, parameter.init, parameter.shape, parameter.dtype)

    @nn.nowrap
    def _read_state(self, init: StateInit, x: jax.Array) -> State:
        del x
        return {k: self.variable(self._collection, k, make).value for k, make in init.items()}

    @nn.nowrap
    def _write_state(self, new: State | None) -> None:
        assert self.scope is not None  # the module is being called
        for name, value in (new or {}).items():
            nn.Variable(self.scope, self._collection, name, unbox=True).value = value


def check_name(module: nn.Module, name: str) -> None:
    """Checks that a parameter is not there by another name, as in flax's checkpoints."""
    if module.has_variable("params", name) or module.is_mutable_collection("params"):
        return
    found = sorted({"scale", "bias", "gamma", "beta"} & set(module.variables.get("params", {})))
    if not found:
        return  # flax says that it is missing
    path = "/".join(module.path) or "(top level)"
    remedy = ""
    if hasattr(module, "param_names"):
        names = ("scale", "bias") if {"scale", "bias"} & set(found) else ("gamma", "beta")
        remedy = f" Make it with param_names={names!r} to use such a checkpoint as it is."
    raise ValueError(
        f"{type(module).__name__} {path} has no parameter {name!r}; its parameters are called "
        f"{', '.join(map(repr, found))}.{remedy}"
    )
