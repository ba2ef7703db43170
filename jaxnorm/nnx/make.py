"""Modules by name, for configuration files."""

from __future__ import annotations

import sys
from typing import Any

from jaxnorm._layers.names import list_names, make_named


def make(name: str, /, *args: Any, **options: Any) -> Any:
    """Makes the normalization that a name stands for.

    Args:
      name: one of `names`, such as "layer", "rms" or "batch"; a number behind some is their
        main option: "group32" has 32 groups.
      *args: what the module takes by position: the sizes of its features, or the layer that
        a wrapper wraps.
      **options: the fields of the module.

    Raises:
      ValueError: the name is unknown; the error suggests the nearest. Or its number is given among
        the options as well.

    Example:
      >>> import jaxnorm.nnx as jnx
      >>> norm = jnx.make("group32", 64, epsilon=0.1)
      >>> type(norm).__name__, norm.num_groups, norm.epsilon
      ('GroupNorm', 32, 0.1)
    """
    return make_named(sys.modules["jaxnorm.nnx"], name, args, options)


def names() -> list[str]:
    """Returns the names that `make` knows: one for each module here.

    Example:
      >>> import jaxnorm.nnx as jnx
      >>> "batch" in jnx.names()
      True
    """
    return list_names(sys.modules["jaxnorm.nnx"])
