"""Computations on arrays whose types say how they lie on a mesh."""

from __future__ import annotations

import math
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


def is_manual(x: jax.Array) -> bool:
    """Whether `x` is a device's own part of an array, as inside `jax.shard_map`."""
    return jax.sharding.AxisType.Manual in jax.typeof(x).sharding.mesh.axis_types


def varying(x: jax.Array) -> frozenset[str]:
    """Returns along which mapped axes the type of `x` says that it varies between devices.

    None where types do not say, as in `jax.vmap` and in `jax.shard_map(..., check_vma=False)`.
    """
    return jax.typeof(x).mat.varying


def spec_of(x: jax.Array) -> jax.sharding.PartitionSpec:
    """Returns how the type of `x` says that it is divided; None along each axis if it does not."""
    return jax.typeof(x).sharding.spec


def count_shards(x: jax.Array, axis: int) -> int | None:
    """Returns over how many devices the type of `x` says that `axis` is divided.

    None if it does not say: how a jitted program is sharded is not known while it is traced,
    unless its mesh is explicit.
    """
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis]
    if names is None:
        return None
    names = (names,) if isinstance(names, str) else names
    return math.prod(sharding.mesh.shape[name] for name in names)


def splits_evenly(x: jax.Array, axis: int, parts: int) -> bool:
    """Whether `axis` can become `parts` without moving `x` between devices, as its type says."""
    return parts % (count_shards(x, axis) or 1) == 0


def undivided(x: jax.Array, axis: int) -> jax.Array:
    """Returns `x` with `axis` in one piece on every device."""
    sharding = jax.typeof(x).sharding
    spec = jax.sharding.PartitionSpec(*sharding.spec[:axis], None, *sharding.spec[axis + 1 :])
    return jax.sharding.reshard(x, jax.sharding.NamedSharding(sharding.mesh, spec))
