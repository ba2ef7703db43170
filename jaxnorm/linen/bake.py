"""Turning the weights that wrappers compute into plain parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import traverse_util

from jaxnorm._layers.weight import Path, own_name
from jaxnorm.linen._wrapper import Chosen, WeightWrapper, rebox, unbox


class _Wrapped(NamedTuple):
    """A wrapper that was called, and what it found in its layer."""

    wrapper: WeightWrapper
    layer: Path
    chosen: dict[Path, Chosen]


def bake(model: nn.Module, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> dict:
    """Computes the weights of all weight wrappers in a model once, as plain parameters.

    The result is the variables of the same model without `WeightNorm`, `SpectralNorm` and
    `WeightStandardization`, and with it that model computes what the wrapped one computes in
    evaluation. Where a layer's parameters lie below its wrapper, they take the wrapper's place. A
    layer that is also called outside its wrapper would see the baked weights there, too.

    Args:
      model: the model with wrappers; a wrapper itself, too.
      variables: its variables.
      *args: an example of the arguments of `model.apply`; arrays matter by their shapes alone.
      **kwargs: keyword arguments of `model.apply`, such as train=False or rngs.

    Returns:
      The variables of the model without its wrappers.

    Raises:
      ValueError: no wrapper is called, two wrap the same layer, or parameters are stacked along
        another axis than the first.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.ones((1, 3))
      >>> layer = jnn.SpectralNorm(nn.Dense(2), update_stats=False)
      >>> variables = layer.init(jax.random.key(0), x)
      >>> plain = jnn.bake(layer, variables, x)
      >>> jax.tree.map(jnp.shape, plain)
      {'params': {'bias': (2,), 'kernel': (3, 2)}}
      >>> bool(jnp.allclose(nn.Dense(2).apply(plain, x), layer.apply(variables, x)))
      True
    """
    flat = traverse_util.flatten_dict({name: variables[name] for name in variables})
    found = _find_wrappers(model, variables, args, kwargs)
    for wrapped in found.values():
        for path, one in wrapped.chosen.items():
            _bake_weight(flat, wrapped.wrapper, path, one)
    # From the inside out, so that each path is still the one that was recorded.
    for place in sorted(found, key=len, reverse=True):
        flat = _remove(flat, place, found[place].layer)
    return traverse_util.unflatten_dict(flat)


def _find_wrappers(model, variables, args, kwargs) -> dict[Path, _Wrapped]:
    """Returns the wrappers that a call of the model reaches, by path, outer ones first."""
    found: dict[Path, _Wrapped] = {}

    def record(call, args, kwargs, context):
        module = context.module
        if isinstance(module, WeightWrapper) and context.method_name == "__call__":
            wrapped = _Wrapped(module, module.layer.path, module._chosen())
            for place, other in found.items():
                if place != module.path and other.layer == wrapped.layer:
                    raise ValueError(
                        f"{'/'.join(place)} and {'/'.join(module.path)} wrap the same layer "
                        f"{'/'.join(other.layer)}, which cannot hold the weights of both; bake "
                        "a model that wraps each layer once."
                    )
            found.setdefault(module.path, wrapped)
        return call(*args, **kwargs)

    # Arrays of the call are abstract, anything else, such as a flag, is as it is.
    leaves, tree = jax.tree.flatten((args, kwargs))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype")}

    def call(variables, arrays):
        args, kwargs = tree.unflatten([arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
        return model.apply(variables, *args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(call, dict(variables), arrays)
    if not found:
        raise ValueError(
            f"bake found no WeightNorm, SpectralNorm or WeightStandardization in {model!r}; its "
            "variables are plain already."
        )
    return found


def _bake_weight(flat, wrapper: WeightWrapper, path: Path, one: Chosen) -> None:
    """Replaces one parameter in `flat` by the weight that its wrapper computes from it."""
    key = ("params", *one.place)
    value, shape = unbox(flat[key]), unbox(one.stored).shape
    stacked = value.ndim - len(shape)
    if value.shape[stacked:] != shape:
        raise ValueError(
            f"{'/'.join(key)} of shape {value.shape} is used in shape {shape}: bake expects "
            "parameters of a scan or vmap to be stacked along their first axis."
        )
    names = {own_name(path, name): name for name in wrapper.own_names}
    own = {
        names[at[-1]]: unbox(stored)
        for at, stored in flat.items()
        if at[1:-1] == wrapper.path and at[-1] in names
    }
    compute = wrapper._weight
    for _ in range(stacked):
        compute = jax.vmap(compute)
    flat[key] = rebox(flat[key], compute(value, own))


def _remove(flat, place: Path, layer: Path) -> dict[Path, Any]:
    """Removes the variables of the wrapper at `place`; a layer below it takes its place."""
    below = layer[: len(place)] == place
    result = {}
    for (collection, *rest), value in flat.items():
        path = tuple(rest)
        if below and path[: len(layer)] == layer:
            path = place + path[len(layer) :]
        elif path[: len(place)] == place:
            continue
        result[(collection, *path)] = value
    return result
