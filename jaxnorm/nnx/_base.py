"""What the normalization modules share: parameters of their own or from the call, and the call."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, DTypeLike
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._layers import base
from jaxnorm._layers.base import documented, options
from jaxnorm._layers.call import Context, State, StateInit
from jaxnorm._layers.layer import Layer
from jaxnorm.nnx._state import context_of, keep, make_state, state_of

Metadata = Mapping[str, Any]
Initializer = Callable[..., Any]  # of key, shape and dtype
Class = TypeVar("Class")
NO_METADATA: Metadata = MappingProxyType({})


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(dataclasses.field,))
def module(cls: type[Class]) -> type[Class]:
    """Makes fields out of annotations, which need no `__init__` then."""
    made: Any = dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)
    kept = {"self", *(field.name for field in dataclasses.fields(made))}
    options = inspect.signature(made.__init__).parameters
    made.only_to_make = tuple(name for name in options if name not in kept)
    fields = dataclasses.fields(made)
    made.initializers = tuple(f.name for f in fields if "Initializer" in str(f.type))
    return documented(made)


def draw(name: str, make: Callable[[Any], Any], rngs: nnx.Rngs | None, label: str) -> Any:
    """Returns the first value that `make` makes of a key; without `rngs` it has to need none."""
    if rngs is not None:
        return make(rngs.params())
    try:
        return make(None)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{label} draws its first {name} at random and needs rngs, such as rngs=nnx.Rngs(0)."
        ) from error


def freeze_lists(node: nnx.Module) -> None:
    """Makes tuples of the options that are lists, so that the graph of a model can be hashed."""
    for name, value in list(vars(node).items()):
        if isinstance(value, list):
            setattr(node, name, _frozen(value))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def check_sizes(given: int | Sequence[int]) -> tuple[int, ...]:
    """Returns `num_features` as a tuple of sizes."""
    sizes = given if isinstance(given, Sequence) else (given,)
    return tuple(_axes.check_int(size, "num_features") for size in sizes)


class Moded:
    """A part of the modules that have a mode, `use_running_average`."""

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets the mode of a view, as `nnx.view` asks its modules to.

        Args:
          use_running_average: evaluation or training; None leaves it as it is.
        """
        # `nnx.view` gives what the signature names, and counts as used what it names.
        if use_running_average is not None:
            self.use_running_average = use_running_average


@options
class Mode(Moded):
    """A part of the modules that have a mode."""

    use_running_average: bool | None = False
    """evaluation or training, as `model.eval()` and `model.train()` set it; here or in the call,
    which wins."""


@options
class Running(Mode):
    """A part of those whose running statistics have the sizes of more axes than the features'."""

    dtype: DTypeLike | None = None
    """dtype of the result; default: that of the input. The running statistics have it, or without
    it `param_dtype`, in float32 or wider: complex inputs need a complex one."""
    input_shape: Sequence[int] | None = None
    """an example of the inputs' shape, where they have axes that are neither pooled nor of
    features: the running statistics have their sizes, too."""

    @property
    def _example_shape(self) -> tuple[int, ...] | None:
        return None if self.input_shape is None else tuple(self.input_shape)


@module
class Module(base.Layer, nnx.Module):
    """Base of the modules: a layer's variables, and the context of a call."""

    only_to_make: ClassVar[tuple[str, ...]]  # the options that are not kept
    initializers: ClassVar[tuple[str, ...]]  # nor are these
    kind: ClassVar[type[nnx.Variable]] = nnx.BatchStat  # of the state
    remedy: ClassVar[str | None] = None  # of a state that does not fit

    rngs: InitVar[nnx.Rngs | None] = None
    """keys, for initializers that draw."""

    def __post_init__(self, *given: Any) -> None:
        freeze_lists(self)
        self._check_flags()
        self._make(**dict(zip(self.only_to_make, given, strict=True)))
        # No part of the graph of a model: those of another call of their maker are not equal.
        for name in self.initializers:
            delattr(self, name)

    def _make(self, *, rngs: nnx.Rngs | None, **given: Any) -> None:
        """Makes the variables; the attribute of one that an option leaves out is None."""
        for name, parameter in self._parameters(self._sizes).items():
            variable = None
            if parameter is not None:
                value = draw(name, parameter.draw, rngs, self._label)
                variable = nnx.Param(value, **given.get(f"{name}_metadata", NO_METADATA))
            setattr(self, self._stored_name(name), nnx.data(variable))
        self._make_state(self._example_shape)

    def _make_state(self, shape: tuple[int, ...] | None) -> None:
        make_state(self, self._init_state_of(self._sizes, shape), self.kind)

    @property
    def _example_shape(self) -> tuple[int, ...] | None:
        """An example of the inputs' shape, if one is known."""
        return None

    @property
    def _sizes(self) -> tuple[int, ...]:
        """The sizes of the features."""
        return ()

    @property
    def _label(self) -> str:
        """What errors call the module."""
        if not hasattr(self, "num_features"):
            return type(self).__name__
        sizes = self._sizes[0] if len(self._sizes) == 1 else self._sizes
        return f"{type(self).__name__}(num_features={sizes})"

    def _context(self) -> Context:
        return context_of(self._label, self)

    def _param(self, name: str, parameter: base.Parameter, x: jax.Array) -> Any:
        variable: nnx.Param | None = getattr(self, name)
        if variable is None:
            return None
        value = variable[...]
        # Compared with the parameter and not num_features: devices hold parts of both.
        if value.shape != parameter.shape:
            raise ValueError(
                f"{self._label} has a {name} of shape {value.shape}, which does not fit an input "
                f"of shape {x.shape} with features on axes {self._features_of(x.shape)}: expected "
                f"{parameter.shape}. Give their sizes as num_features."
            )
        return value

    def _read_state(self, init: StateInit, x: jax.Array) -> State:
        return state_of(self, init, x.shape, self.remedy)

    def _write_state(self, new: State | None) -> None:
        keep(self, new)


@module
class Sized(Module):
    """Base of the modules with features."""

    num_features: int | Sequence[int] = dataclasses.field(kw_only=False)
    """size of the features; sizes where they have several axes, ascending."""

    def __post_init__(self, *given: Any) -> None:
        self.num_features = check_sizes(self.num_features)
        super().__post_init__(*given)

    @property
    def _sizes(self) -> tuple[int, ...]:
        assert isinstance(self.num_features, tuple)
        return self.num_features


@module
class Affine(Sized):
    """Base of the modules with gamma and beta."""

    gamma_metadata: InitVar[Metadata] = NO_METADATA
    """metadata of gamma, as `nnx.Param` takes them."""
    beta_metadata: InitVar[Metadata] = NO_METADATA
    """metadata of beta."""

    def _leave_to_calls(self, *names: str) -> None:
        """Gives up the module's own gamma, beta or both, which each call brings from now on."""
        for name in names:
            setattr(self, f"use_{name}", False)
            setattr(self, self._stored_name(name), nnx.data(None))


@module
class LayerModule(nnx.Module):
    """Base of the modules: their options as a layer takes them, no arithmetic and no decision.

    Attributes:
      dtype: dtype of the result; default: that of the input.
      rngs: keys, for initializers that draw.
    """

    technique: ClassVar[type[Layer]]
    only_to_make: ClassVar[tuple[str, ...]]  # the options that are not kept

    dtype: DTypeLike | None = None
    rngs: InitVar[nnx.Rngs | None] = None

    def __post_init__(self, *given: Any) -> None:
        freeze_lists(self)
        self._make(**dict(zip(self.only_to_make, given, strict=True)))

    def _make(self, **given: Any) -> None:
        """Makes the variables, of the options `given` that are not kept."""

    @property
    def options(self) -> Any:
        """What the fields say, as `technique` takes it."""
        return self.technique.of(self)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the features."""
        return ()

    @property
    def label(self) -> str:
        """What errors call the module."""
        if not hasattr(self, "num_features"):
            return type(self).__name__
        sizes = self.sizes[0] if len(self.sizes) == 1 else self.sizes
        return f"{type(self).__name__}(num_features={sizes})"

    @property
    def context(self) -> Context:
        """What NNX says of a call."""
        return context_of(self.label, self)

    @property
    def state_dtype(self) -> DTypeLike:
        """The dtype of inputs that the running statistics are made for."""
        return jnp.float32 if self.dtype is None else self.dtype


@module
class ParametricModule(LayerModule):
    """Base of the modules with parameters.

    Attributes:
      param_dtype: dtype of the parameters.
    """

    param_dtype: DTypeLike = jnp.float32

    def _make(self, *, rngs: nnx.Rngs | None, **given: Any) -> None:
        """Makes the variables; the attribute of one that an option leaves out is None."""
        for name, parameter in self.options.parameters(self.sizes).items():
            variable = None
            if parameter is not None:
                shape, option, first = parameter
                init = given[option] or nnx.initializers.constant(first)
                value = draw(name, self._maker(init, shape), rngs, self.label)
                variable = nnx.Param(value, **given.get(f"{name}_metadata", NO_METADATA))
            setattr(self, self._called(name), nnx.data(variable))

    def _maker(self, init: Initializer, shape: tuple[int, ...]) -> Callable[[Any], Any]:
        return lambda key: init(key, shape, self.param_dtype)

    @property
    def state_dtype(self) -> DTypeLike:
        """The dtype of inputs that the running statistics are made for."""
        return self.param_dtype if self.dtype is None else self.dtype

    def _called(self, name: str) -> str:
        """Returns what a parameter is called in the model."""
        return name

    def _own(self, x: jax.Array, **given: ArrayLike | None) -> dict[str, Any]:
        """Returns the parameters, by name: those `given` in the call, else the module's own."""
        layer = self.options
        values: dict[str, Any] = {k: value for k, value in given.items() if value is not None}
        for name, parameter in layer.parameters(layer.sizes(x.shape)).items():
            variable: nnx.Param | None = getattr(self, self._called(name))
            if parameter is None or variable is None or name in values:
                continue
            value = variable[...]
            # Compared with the parameter and not num_features: devices hold parts of both.
            if value.shape != parameter.shape:
                raise ValueError(
                    f"{self.label} has a {self._called(name)} of shape {value.shape}, which does "
                    f"not fit an input of shape {x.shape} with features on axes "
                    f"{layer.features_of(x.shape)}: expected {parameter.shape}. Give their sizes "
                    "as num_features."
                )
            values[name] = value
        return values


@module
class SizedModule(ParametricModule):
    """Base of the modules with parameters along features.

    Attributes:
      num_features: size of the features; sizes where they have several axes, ascending.
    """

    num_features: int | Sequence[int] = dataclasses.field(kw_only=False)

    def _make(self, **given: Any) -> None:
        """Makes the parameters, of the sizes of the features."""
        self.num_features = check_sizes(self.num_features)
        super()._make(**given)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the features."""
        assert isinstance(self.num_features, tuple)
        return self.num_features


@module
class AffineModule(SizedModule):
    """Base of the modules with gamma and beta.

    Attributes:
      use_gamma: whether to scale by a parameter gamma.
      use_beta: whether to add a parameter beta.
      gamma_init: initializer of gamma.
      beta_init: initializer of beta.
      param_names: the names of the two parameters; ("scale", "bias") are those of flax.nnx.
      gamma_metadata: metadata of gamma, as `nnx.Param` takes them.
      beta_metadata: metadata of beta.
    """

    use_gamma: bool = True
    use_beta: bool = True
    gamma_init: InitVar[Initializer] = nnx.initializers.ones
    beta_init: InitVar[Initializer] = nnx.initializers.zeros
    param_names: tuple[str, str] = ("gamma", "beta")
    gamma_metadata: InitVar[Metadata] = NO_METADATA
    beta_metadata: InitVar[Metadata] = NO_METADATA

    def _called(self, name: str) -> str:
        """Returns what a parameter is called in the model: gamma and beta as `param_names` say."""
        gamma, beta = self.param_names
        return {"gamma": gamma, "beta": beta}.get(name, name)

    def _leave_to_calls(self, *names: str) -> None:
        """Gives up the module's own gamma, beta or both, which each call brings from now on."""
        for name in names:
            setattr(self, f"use_{name}", False)
            setattr(self, self._called(name), nnx.data(None))


@module
class PlainNorm(AffineModule):
    """Base of the norms of an input alone that keep no statistics."""

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
        own = self._own(x, gamma=gamma, beta=beta)
        return self.options.apply(x, own, self.context, mask)


@module
class MappedNorm(PlainNorm):
    """Base of those that can pool over mapped axes.

    Attributes:
      epsilon: added to the variance.
      axis_name: mapped axes to pool over as well.
      axis_index_groups: groups of indices of `axis_name` that pool together.
    """

    epsilon: float = 1e-6
    axis_name: str | Sequence[str] | None = None
    axis_index_groups: AxisIndexGroups = None
