"""Where the running means lie that the calls of a model's layers see, whatever stacks them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._core.pool import compute_dtype
from jaxnorm.tools.models.programs import Program, names_of


def running_means(program: Program, paths: Iterable[str]) -> dict[str, Any]:
    """Returns the running means of layers in the state of a program, by path."""
    means = _paths(program, paths)
    leaves = jax.tree_util.tree_leaves_with_path(program.state)
    return {means[names]: leaf for path, leaf in leaves if (names := _names(path, means)) in means}


def number_means(program: Program, paths: Iterable[str], *, wide: bool) -> tuple[Any, Any]:
    """Returns the state, and another with the elements of each running mean numbered.

    What a call sees as its running mean, run with the second, says where in the first that lies.

    Args:
      program: the model.
      paths: of the layers that have a running mean.
      wide: whether both have them in float32 or wider, which holds any number.
    """
    means = _paths(program, paths)

    def change(value: Callable[[Any], Any]) -> Any:
        def one(path: Any, leaf: Any) -> Any:
            if _names(path, means) not in means:
                return leaf
            return value(leaf).astype(compute_dtype(leaf.dtype) if wide else leaf.dtype)

        return jax.tree_util.tree_map_with_path(one, program.state)

    return change(jnp.asarray), change(lambda a: jnp.arange(a.size).reshape(a.shape))


def _paths(program: Program, paths: Iterable[str]) -> dict[Any, str]:
    """Returns the paths of layers, by those of their running means."""
    steps = {path: tuple(path.split("/")) if path else () for path in paths}
    return {program.leaf_path(each, "mean"): path for path, each in steps.items()}


def _names(path: Any, means: dict[Any, str]) -> Any:
    """Returns the names in the path of a leaf, without that of a box, a step further down."""
    names = names_of(path)
    return names[:-1] if names[:-1] in means else names
