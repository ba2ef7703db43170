"""What the weight wrappers share: which parameters of a layer they replace, and the call."""

from __future__ import annotations

import dataclasses
from dataclasses import InitVar
from typing import Any, ClassVar

import jax
from flax import nnx

from jaxnorm._core.axes import Axes
from jaxnorm._layers.call import Context
from jaxnorm._layers.weight import Own, Path, Select, WeightLayer, own_name
from jaxnorm.nnx._base import freeze_lists, module
from jaxnorm.nnx._state import context_of


@module
class WeightWrapper(nnx.Module):
    """Base of the wrappers that call a layer with some of its parameters replaced.

    The layer keeps its parameters unchanged: what it is called with is computed from them in each
    call, for that call alone.

    Attributes:
      layer: the layer that is wrapped.
      select: which of its parameters are replaced: patterns that the end of their path must
        match, as in `pathlib.PurePath.match` ("kernel", "dense/kernel", "query/*"), or a function
        of the path, such as "dense/kernel", and the parameter.
      feature_axes: the axes of the output units in the parameters; the others are reduced over.
      rngs: keys, for what is drawn.
    """

    technique: ClassVar[type[WeightLayer]]

    layer: nnx.Module = dataclasses.field(kw_only=False)
    select: Select = ("kernel", "embedding")
    feature_axes: Axes = -1
    rngs: InitVar[nnx.Rngs | None] = None

    def __post_init__(self, rngs: nnx.Rngs | None) -> None:
        del rngs  # for what a technique draws
        freeze_lists(self)
        if not isinstance(self.layer, nnx.Module):
            raise TypeError(
                "layer must be a Flax NNX module, such as nnx.Linear(3, 4, rngs=rngs), got "
                f"{self.layer!r}."
            )

    @property
    def options(self) -> Any:
        """What the fields say, as `technique` takes it."""
        return self.technique.of(self)

    @property
    def context(self) -> Context:
        """What NNX says of a call."""
        return context_of(f"{type(self).__name__}({type(self.layer).__name__})", self)

    def _chosen(self) -> dict[Path, nnx.Variable]:
        """Returns the layer's parameters to replace, by their path from the layer."""
        found = {_name(path): one for path, one in _flat(nnx.state(self.layer, nnx.Param))}
        values = {path: one[...] for path, one in found.items()}
        paths = self.options.choose(values, self.context.label, type(self.layer).__name__)
        return {path: found[path] for path in paths}

    def _own(self, path: Path) -> Own:
        """Returns what the wrapper keeps for the parameter at `path`, by name."""
        found = {name: own_name(path, name) for name in self.technique.own_names}
        return {
            name: getattr(self, attribute)[...]
            for name, attribute in found.items()
            if hasattr(self, attribute)
        }

    def _weights(self) -> dict[Path, jax.Array]:
        """Returns the weights of evaluation, by the path of the parameter that they replace."""
        return {
            path: self.options.weight(parameter[...], self._own(path))
            for path, parameter in self._chosen().items()
        }

    def _replaced(self, weights: dict[Path, jax.Array]) -> Any:
        """Returns the layer with `weights` for its parameters, sharing all other variables."""
        graph, state = nnx.split(self.layer)
        variables = {
            path: type(one)(weights[_name(path)]) if _name(path) in weights else one
            for path, one in _flat(state)
        }
        return nnx.merge(graph, nnx.from_flat_state(variables))

    def _call_layer(self, weights: dict[Path, jax.Array], method: str, args, kwargs) -> Any:
        """Calls the layer, with `weights` in place of the parameters at their paths."""
        return getattr(self._replaced(weights), method)(*args, **kwargs)

    def _unit_shape(self, parameter: nnx.Variable) -> tuple[int, ...]:
        """Returns the sizes of the output units of a parameter."""
        value = parameter[...]
        return tuple(value.shape[a] for a in self.options.unit_axes(value))

    def _add_parameter(self, path: Path, name: str, like: nnx.Variable, value: jax.Array) -> None:
        """Adds a parameter of the output units of `like`, partitioned as they are."""
        metadata = {}
        names = like.get_metadata().get("out_sharding")
        if names is not None:
            rank = like[...].ndim
            names = (*names, *(None,) * (rank - len(names)))
            units = self.options.unit_axes(like[...])
            metadata["out_sharding"] = tuple(names[a] for a in units)
            metadata["mesh"] = like.get_metadata().get("mesh")
        setattr(self, own_name(path, name), nnx.Param(value, **metadata))


def _flat(state: Any) -> Any:
    return nnx.to_flat_state(state)


def _name(path: tuple[Any, ...]) -> Path:
    return tuple(map(str, path))
