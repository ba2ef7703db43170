"""What the weight wrappers share: which parameters of a layer they replace, and the call."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxnorm._layers import weight
from jaxnorm._layers.weight import Path
from jaxnorm.linen._base import Module


class Chosen(NamedTuple):
    """A parameter that a wrapper replaces.

    Attributes:
      stored: its value, with the metadata of partitioned initializers.
      place: its path in the model's parameters.
    """

    stored: Any
    place: Path


class WeightWrapper(weight.WeightWrapper, Module, kw_only=True):
    """Base of the wrappers that call a layer with some of its parameters replaced."""

    @nn.nowrap
    def _chosen(self) -> dict[Path, Chosen]:
        """Returns the layer's parameters to replace, by their path from the layer."""
        found = self._found()
        values = {path: unbox(one.stored) for path, one in found.items()}
        return {path: found[path] for path in self._choose(values, self._context().label)}

    @nn.nowrap
    def _found(self) -> dict[Path, Chosen]:
        """Returns all parameters of the layer and of the modules that its fields hold.

        Modules that are made in a call, as those of an nn.Sequential, belong to the module that is
        called: they lie beside the layer and not below it.
        """
        found: dict[Path, Chosen] = {}
        beside = self.layer.path[:-1]
        for module in _modules_within(self.layer):
            start = self.layer.path if _is_below(module.path, self.layer.path) else beside
            start = start if _is_below(module.path, start) else ()
            params = traverse_util.flatten_dict(module.variables.get("params", {}))
            for path, stored in params.items():
                place = (*module.path, *path)
                found.setdefault(place[len(start) :], Chosen(stored, place))
        return found

    @nn.nowrap
    def _call_layer(self, weights: dict[Path, jax.Array] | None, method: str, args, kwargs) -> Any:
        """Calls the layer, with `weights` in place of the parameters at their paths."""
        if not isinstance(self.layer, nn.Module):
            raise TypeError(
                f"layer must be a Flax module, such as nn.Dense(4), got {self.layer!r}."
            )

        def call(layer):
            return getattr(layer, method)(*args, **kwargs)

        if weights is None:
            return call(self.layer)
        parameters = self._found()
        # Flax maps the variables of one module after the other and does not say whose they are,
        # but they are the same objects.
        replacements = {id(raw(parameters[path].stored)): w for path, w in weights.items()}
        used = set()

        def replace(variables):
            params = traverse_util.flatten_dict(variables.get("params", {}))
            for path, stored in params.items():
                key = id(raw(stored))
                if key in replacements:
                    params[path] = rebox(stored, replacements[key])
                    used.add(key)
            return {**variables, "params": traverse_util.unflatten_dict(params)}

        mapped = nn.map_variables(call, "params", replace)
        y = mapped(self.layer)
        assert used == set(replacements), "a weight was not replaced"
        return y


def _modules_within(module: nn.Module) -> list[nn.Module]:
    """Returns a module and those in its fields, and in theirs."""
    found = [module]
    for field in dataclasses.fields(module):  # pyright: ignore[reportArgumentType]
        if field.name not in ("parent", "name"):
            for leaf in jax.tree.leaves(getattr(module, field.name)):
                if isinstance(leaf, nn.Module):
                    found += _modules_within(leaf)
    return found


def _is_below(path: Path, start: Path) -> bool:
    return path[: len(start)] == start


def unbox(stored: Any) -> jax.Array:
    """Returns a parameter without the metadata of partitioned initializers."""
    return jnp.asarray(stored.unbox() if isinstance(stored, nn.meta.AxisMetadata) else stored)


def raw(stored: Any) -> Any:
    """Returns the array in a stored parameter, the very object."""
    (value,) = jax.tree.leaves(stored)
    return value


def rebox(stored: Any, value: jax.Array) -> Any:
    """Returns `value` with the metadata of `stored`."""
    return stored.replace_boxed(value) if isinstance(stored, nn.meta.AxisMetadata) else value


def box_features(stored: Any, value: jax.Array, features: tuple[int, ...]) -> Any:
    """Returns `value`, which varies along the axes `features` of `stored`, partitioned like it."""
    if not isinstance(stored, nn.Partitioned):
        return value
    return stored.replace(value=value, names=tuple(stored.names[a] for a in features))
