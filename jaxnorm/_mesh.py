"""Computations on arrays whose types say how they lie on a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def without_explicit_axes(
    function: Callable[..., Any], x: jax.Array, out_sharding: Any
) -> Callable[..., Any]:
    """Returns `function` with the mesh left to the compiler, where the type of `x` names one.

    With explicit sharding JAX asks how each sum of products over a divided axis is to lie; only
    how the results lie, `out_sharding`, matters here.
    """
    mesh = jax.typeof(x).sharding.mesh
    if jax.sharding.AxisType.Explicit not in mesh.axis_types:
        return function
    return jax.sharding.auto_axes(function, out_sharding=out_sharding)
