"""Turning the weights that wrappers compute into plain parameters."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from jaxnorm.nnx._wrapper import WeightWrapper


def bake(model: nnx.Module) -> Any:
    """Computes the weights of all weight wrappers in a model once, as plain parameters.

    The result is a copy of the model without `WeightNorm`, `SpectralNorm` and
    `WeightStandardization`: in the place of each stands its layer, with the weights of evaluation
    for its parameters. The copy computes what the model computes in evaluation; the model stays as
    it is.

    Args:
      model: the model with wrappers; a wrapper itself, too.

    Returns:
      The model without its wrappers.

    Raises:
      ValueError: there is no wrapper in it.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(jnx.SpectralNorm(nnx.Linear(3, 2, rngs=rngs), rngs=rngs), nnx.relu)
      >>> model.eval()
      >>> plain, x = jnx.bake(model), jnp.ones((1, 3))
      >>> type(plain.layers[0]).__name__, bool(jnp.allclose(plain(x), model(x)))
      ('Linear', True)
    """
    done: dict[int, tuple[Any, Any]] = {}
    baked = _without_wrappers(nnx.clone(model), done)
    if not any(isinstance(node, WeightWrapper) for node, _ in done.values()):
        raise ValueError(f"there is no weight wrapper in {type(model).__name__} to bake.")
    return baked


def _without_wrappers(node: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """Returns what stands in the place of `node`; `done` are the nodes met, and what does there."""
    if not isinstance(node, nnx.Pytree):
        return node
    if id(node) in done:
        return done[id(node)][1]
    layer = node
    # Outer wrappers first: they compute the parameters that inner ones are called with.
    if isinstance(node, WeightWrapper):
        layer = _without_wrappers(node._replaced(node._weights()), done)
    done[id(node)] = node, layer
    if layer is node:
        for name, value in list(vars(node).items()):
            parts, structure = jax.tree.flatten(value, is_leaf=_is_whole)
            new = [_without_wrappers(part, done) for part in parts]
            if any(a is not b for a, b in zip(parts, new, strict=True)):
                setattr(node, name, jax.tree.unflatten(structure, new))
    return layer


def _is_whole(value: Any) -> bool:
    return isinstance(value, nnx.Pytree | nnx.Variable)
