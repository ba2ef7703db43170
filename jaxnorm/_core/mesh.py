"""Computations on arrays whose types say how they lie on a mesh."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec


def without_explicit_axes(function: Callable[..., Any], out_specs: Any) -> Callable[..., Any]:
    """Returns `function` with the mesh left to the compiler, where its arguments name one.

    With explicit sharding JAX asks how each result is to lie that operands leave open; only how
    those of `function` lie, `out_specs`, matters here. The arguments hold all arrays that it uses.
    """

    def call(*arguments):
        mesh = explicit_mesh(*arguments)
        if mesh is None:
            return function(*arguments)
        # With the mesh in them, for programs that have not entered it by `jax.set_mesh`.
        out = jax.tree.map(lambda spec: NamedSharding(mesh, spec), out_specs, is_leaf=_is_spec)
        axes = _explicit_axes(mesh)
        return jax.sharding.auto_axes(function, axes=axes, out_sharding=out)(*arguments)

    return call


def explicit_mesh(*trees: Any) -> AbstractMesh | None:
    """Returns the mesh with explicit axes that the type of an array names; None if none does."""
    for array in jax.tree.leaves(trees):
        mesh = jax.typeof(array).sharding.mesh
        if _explicit_axes(mesh):
            return mesh
    return None


def placed(value: jax.Array, spec: Iterable[Any]) -> jax.Array:
    """Returns `value` where `spec` says, but in one piece along axes of size 1.

    For what belongs to an input that is divided by `spec`: a gamma may lie along an axis of the
    mesh that the input uses for its examples. Its gradient comes back to where it was.
    """
    mesh = explicit_mesh(value)
    if mesh is None:
        return value
    sizes = zip(spec, value.shape, strict=True)
    wanted = PartitionSpec(*(None if size == 1 else names for names, size in sizes))
    if spec_of(value) == wanted:
        return value
    return jax.sharding.reshard(value, NamedSharding(mesh, wanted))


def left_to_compiler(x: jax.Array) -> jax.Array:
    """Returns `x` for operations `without_explicit_axes`, whose mesh its type may not know yet.

    What is kept there for a backward pass that is not compiled as a whole is an array like any
    other in between, with its place in its type.
    """
    if explicit_mesh(x) is None or _explicit_axes(jax.sharding.get_abstract_mesh()):
        return x
    return jax.sharding.reshard(x, PartitionSpec(*(None,) * x.ndim))


def spec_of(x: jax.Array) -> PartitionSpec:
    """Returns how the type of `x` says that it is divided; None along each axis if it does not."""
    return jax.typeof(x).sharding.spec


def broadcast_spec(*arrays: jax.Array) -> PartitionSpec:
    """Returns how an array should be divided that `arrays` broadcast to: the first of them wins."""
    rank = max(array.ndim for array in arrays)
    spec: list[Any] = [None] * rank
    used: set[str] = set()
    for array in arrays:
        for axis, names in enumerate(spec_of(array), rank - array.ndim):
            if spec[axis] is None and used.isdisjoint(_names(names)):
                spec[axis] = names
                used.update(_names(names))
    return PartitionSpec(*spec)


def is_manual(x: jax.Array) -> bool:
    """Whether `x` is a device's own part of an array, as inside `jax.shard_map`."""
    return AxisType.Manual in jax.typeof(x).sharding.mesh.axis_types


def varying(x: jax.Array) -> frozenset[str]:
    """Returns along which mapped axes the type of `x` says that it varies between devices.

    None where types do not say, as in `jax.vmap` and in `jax.shard_map(..., check_vma=False)`.
    """
    return jax.typeof(x).mat.varying


def count_shards(x: jax.Array, axis: int) -> int | None:
    """Returns over how many devices the type of `x` says that `axis` is divided.

    None if it does not say: how a jitted program is sharded is not known while it is traced,
    unless its mesh is explicit.
    """
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis]
    if names is None:
        return None
    return math.prod(sharding.mesh.shape[name] for name in _names(names))


def splits_evenly(x: jax.Array, axis: int, parts: int) -> bool:
    """Whether `axis` can become `parts` without moving `x` between devices, as its type says."""
    return parts % (count_shards(x, axis) or 1) == 0


def undivided(x: jax.Array, axis: int) -> jax.Array:
    """Returns `x` with `axis` in one piece on every device."""
    spec = spec_of(x)
    return placed(x, (*spec[:axis], None, *spec[axis + 1 :]))


def _names(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the axes of the mesh that an entry of a spec names."""
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else names


def _explicit_axes(mesh: AbstractMesh) -> tuple[str, ...]:
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in types if kind == AxisType.Explicit)


def _is_spec(value: Any) -> bool:
    return isinstance(value, PartitionSpec)
