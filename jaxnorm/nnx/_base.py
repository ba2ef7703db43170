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
from jaxnorm._core.axes import DTypeLike
from jaxnorm._layers import layer
from jaxnorm._layers.call import Context, State, StateInit
from jaxnorm._layers.options import documented, options
from jaxnorm._layers.running import ACCUMULATORS

Metadata = Mapping[str, Any]
Class = TypeVar("Class")
NO_METADATA: Metadata = MappingProxyType({})


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(dataclasses.field,))
def module(cls: type[Class]) -> type[Class]:
    """Makes fields out of annotations, which need no `__init__` then."""
    made: Any = dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)
    kept = {"self", *(field.name for field in dataclasses.fields(made))}
    options = inspect.signature(made.__init__).parameters
    made._only_to_make = tuple(name for name in options if name not in kept)
    fields = dataclasses.fields(made)
    made._initializers = tuple(f.name for f in fields if "Initializer" in str(f.type))
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


@options
class Mode:
    """A part of the modules that have a mode."""

    use_running_average: bool | None = False
    """evaluation or training, as `model.eval()` and `model.train()` set it; here or in the call,
    which wins."""

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets the mode of a view, as `nnx.view` asks its modules to.

        Args:
          use_running_average: evaluation or training; None leaves it as it is.
        """
        # `nnx.view` gives what the signature names, and counts as used what it names.
        if use_running_average is not None:
            self.use_running_average = use_running_average


@options
class Example:
    """A part of those whose state can have the sizes of more axes than the features'."""

    input_shape: Sequence[int] | None = None
    """an example of the inputs' shape, where they have axes that are neither pooled nor of
    features: the running statistics have their sizes, too."""

    @property
    def _example_shape(self) -> tuple[int, ...] | None:
        return None if self.input_shape is None else tuple(self.input_shape)


@options
class Running(Mode, Example):
    """A part of those with running statistics of such sizes."""

    dtype: DTypeLike | None = None
    """dtype of the result; default: that of the input. The running statistics have it, or without
    it `param_dtype`, in float32 or wider: complex inputs need a complex one."""


@module
class Module(layer.Layer, nnx.Module):
    """Base of the modules: a layer's variables, and the context of a call."""

    _only_to_make: ClassVar[tuple[str, ...]]  # the options that are not kept
    _initializers: ClassVar[tuple[str, ...]]  # nor are these
    _kind: ClassVar[type[nnx.Variable]] = nnx.BatchStat  # of the state
    _remedy: ClassVar[str | None] = None  # of a state that does not fit

    rngs: InitVar[nnx.Rngs | None] = None
    """keys, for initializers that draw."""

    def __post_init__(self, *given: Any) -> None:
        freeze_lists(self)
        self._check_flags()
        self._make(**dict(zip(self._only_to_make, given, strict=True)))
        # No part of the graph of a model: those of another call of their maker are not equal.
        for name in self._initializers:
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
        """Makes the variables of the state, or lets those that there are start anew."""
        for name, make in self._init_state_of(self._sizes, shape).items():
            if hasattr(self, name):
                getattr(self, name).set_value(make())
            else:
                setattr(self, name, self._kind(make()))

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
        return Context(
            label=self._label,
            accumulates=hasattr(self, ACCUMULATORS[0]),
            evaluation="use_running_average=True, as model.eval() sets it",
            widening=(
                "Keep those in float32 and cast the parameters alone: nnx.update(model, "
                "jax.tree.map(lambda a: a.astype(jnp.bfloat16), nnx.state(model, nnx.Param)))."
            ),
        )

    def _param(self, name: str, parameter: layer.Parameter, x: jax.Array) -> Any:
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
        return {name: self._read(name, make, x.shape) for name, make in init.items()}

    def _read(self, name: str, make: Callable[[], jax.Array], shape: tuple[int, ...]) -> jax.Array:
        """Returns an array of the state, that would start at `make()` for inputs of `shape`."""
        if not hasattr(self, name):
            raise ValueError(
                f"{self._label} was made without a running {name}, which its options of now need. "
                f"{self._remedy or 'Give them when it is made.'}"
            )
        value, expected = getattr(self, name)[...], jax.eval_shape(make)
        if jnp.iscomplexobj(expected) and not jnp.iscomplexobj(value):
            raise TypeError(
                f"{self._label} has a running {name} of dtype {value.dtype}, which cannot hold "
                f"that of complex inputs; make it with dtype={expected.dtype}."
            )
        if value.shape != expected.shape:
            remedy = "Give the sizes of the features as num_features"
            if hasattr(self, "input_shape"):
                remedy += "; and input_shape, if some axes are neither pooled nor of features"
            raise ValueError(
                f"{self._label} has a running {name} of shape {value.shape}, which does not fit an "
                f"input of shape {shape}: expected {expected.shape}. {self._remedy or remedy + '.'}"
            )
        return value

    def _write_state(self, new: State | None) -> None:
        for name, value in (new or {}).items():
            getattr(self, name).set_value(value)


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
