"""What the weight wrappers share: which parameters of a layer they replace, and the call."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from jaxnorm._layers import weight
from jaxnorm._layers.weight import Path, Weights, own_name
from jaxnorm.nnx._base import Module, module


@module
class WeightWrapper(weight.WeightWrapper, Module):
    """Base of the wrappers that call a layer with some of its parameters replaced."""

    def _make(self, *, rngs: nnx.Rngs | None, **given: Any) -> None:
        if not isinstance(self.layer, nnx.Module):
            raise TypeError(
                "layer must be a Flax NNX module, such as nnx.Linear(3, 4, rngs=rngs), got "
                f"{self.layer!r}."
            )

    @property
    def _label(self) -> str:
        return f"{type(self).__name__}({type(self.layer).__name__})"

    def _chosen(self) -> dict[Path, nnx.Variable]:
        """Returns the layer's parameters to replace, by their path from the layer."""
        found = {_name(path): one for path, one in _flat(nnx.state(self.layer, nnx.Param))}
        values = {path: one[...] for path, one in found.items()}
        return {path: found[path] for path in self._choose(values, self._label)}

    def _kept(self, path: Path) -> Weights:
        """Returns what the wrapper keeps for the parameter at `path`, by name."""
        found = {name: own_name(path, name) for name in self.own_names}
        return {
            name: getattr(self, attribute)[...]
            for name, attribute in found.items()
            if hasattr(self, attribute)
        }

    def _weights(self) -> dict[Path, jax.Array]:
        """Returns the weights of evaluation, by the path of the parameter that they replace."""
        return {
            path: self._weight(parameter[...], self._kept(path))
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
        return tuple(value.shape[a] for a in self._unit_axes(value))

    def _add_parameter(self, path: Path, name: str, like: nnx.Variable, value: jax.Array) -> None:
        """Adds a parameter of the output units of `like`, partitioned as they are."""
        metadata = {}
        names = like.get_metadata().get("out_sharding")
        if names is not None:
            rank = like[...].ndim
            names = (*names, *(None,) * (rank - len(names)))
            units = self._unit_axes(like[...])
            metadata["out_sharding"] = tuple(names[a] for a in units)
            metadata["mesh"] = like.get_metadata().get("mesh")
        setattr(self, own_name(path, name), nnx.Param(value, **metadata))


def _flat(state: Any) -> Any:
    return nnx.to_flat_state(state)


def _name(path: tuple[Any, ...]) -> Path:
    return tuple(map(str, path))
