"""What the normalization modules share: parameters of their own or from the call, and the call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._layers import base
from jaxnorm._layers.call import Context, State, StateInit
from jaxnorm._layers.layer import Layer
from jaxnorm.linen._state import COLLECTION, context_of


class Module(base.Layer, nn.Module):
    """Base of the modules: a layer's variables, and the context of a call."""

    collection: ClassVar[str] = COLLECTION  # of the state

    def __post_init__(self) -> None:
        self._check_flags()
        super().__post_init__()

    @nn.nowrap
    def _context(self) -> Context:
        return context_of(self, type(self).__name__, self.collection)

    @nn.nowrap
    def _param(self, name: str, parameter: base.Parameter, x: jax.Array) -> Any:
        del x  # flax checks the shape
        check_name(self, name)
        return self.param(name, parameter.init, parameter.shape, parameter.dtype)

    @nn.nowrap
    def _read_state(self, init: StateInit, x: jax.Array) -> State:
        del x
        return {k: self.variable(self.collection, k, make).value for k, make in init.items()}

    @nn.nowrap
    def _write_state(self, new: State | None) -> None:
        assert self.scope is not None  # the module is being called
        for name, value in (new or {}).items():
            nn.Variable(self.scope, self.collection, name, unbox=True).value = value


class LayerModule(nn.Module, kw_only=True):
    """Base of the modules: their options as a layer takes them, no arithmetic and no decision.

    Attributes:
      dtype: dtype of the result; default: that of the input.
    """

    technique: ClassVar[type[Layer]]

    dtype: jax.typing.DTypeLike | None = None

    @property
    def options(self) -> Any:
        """What the fields say, as `technique` takes it."""
        return self.technique.of(self)

    @nn.nowrap
    def context(self, collection: str = COLLECTION) -> Context:
        """Returns what Flax says of the call, which keeps its state in `collection`."""
        return context_of(self, type(self).__name__, collection)


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


class ParametricModule(LayerModule, kw_only=True):
    """Base of the modules with parameters.

    Attributes:
      param_dtype: dtype of the parameters.
    """

    param_dtype: jax.typing.DTypeLike = jnp.float32

    @nn.nowrap
    def called(self, name: str) -> str:
        """Returns what a parameter is called in the model."""
        return name

    @nn.nowrap
    def own(self, x: jax.Array, **given: ArrayLike | None) -> dict[str, Any]:
        """Returns the parameters, by name: those `given` in the call, else the module's own."""
        layer = self.options
        values = {name: value for name, value in given.items() if value is not None}
        for name, parameter in layer.parameters(layer.sizes(x.shape)).items():
            if parameter is not None and name not in values:
                shape, option, first = parameter
                init = getattr(self, option) or nn.initializers.constant(first)
                check_name(self, self.called(name))
                values[name] = self.param(self.called(name), init, shape, self.param_dtype)
        return values


class AffineModule(ParametricModule, kw_only=True):
    """Base of the modules with gamma and beta.

    Attributes:
      use_gamma: whether to scale by a parameter gamma.
      use_beta: whether to add a parameter beta.
      gamma_init: initializer of gamma.
      beta_init: initializer of beta.
      param_names: the names of the two parameters; ("scale", "bias") are flax.linen's.
    """

    use_gamma: bool = True
    use_beta: bool = True
    gamma_init: nn.initializers.Initializer = nn.initializers.ones
    beta_init: nn.initializers.Initializer = nn.initializers.zeros
    param_names: tuple[str, str] = ("gamma", "beta")

    @nn.nowrap
    def called(self, name: str) -> str:
        """Returns what a parameter is called in the model: gamma and beta as `param_names` say."""
        gamma, beta = self.param_names
        return {"gamma": gamma, "beta": beta}.get(name, name)


class PlainNorm(AffineModule, kw_only=True):
    """Base of the norms of an input alone that keep no statistics."""

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x`; a gamma or beta given here replaces the module's own."""
        x = _axes.check_input(x)
        own = self.own(x, gamma=gamma, beta=beta)
        return self.options.apply(x, own, self.context(), mask)


class MappedNorm(PlainNorm, kw_only=True):
    """Base of those that can pool over mapped axes.

    Attributes:
      epsilon: added to the variance.
      axis_name: mapped axes to pool over as well; not while initializing.
      axis_index_groups: groups of indices of `axis_name` that pool together.
    """

    epsilon: float = 1e-6
    axis_name: str | Sequence[str] | None = None
    axis_index_groups: AxisIndexGroups = None
