"""Canonical axes, feature shapes, masks, and the errors that they raise."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp

from jaxnorm._core.mesh import placed, spec_of

Axes = int | Sequence[int]
ArrayLike = jax.typing.ArrayLike
DTypeLike = jax.typing.DTypeLike


def canonical_axes(
    axes: Axes, shape: tuple[int, ...], name: str = "axis", *, allow_empty: bool = False
) -> tuple[int, ...]:
    """Returns the set `axes` as ascending non-negative ints, each checked against `shape`."""
    given = (axes,) if not isinstance(axes, Sequence) else tuple(axes)
    rank = len(shape)
    result = []
    for axis in given:
        try:
            index = operator.index(axis)
        except TypeError:
            raise TypeError(f"{name} must be an int or a sequence of ints, got {axes!r}.") from None
        if not -rank <= index < rank:
            raise ValueError(
                f"{name}={axes!r} is out of range for an input of shape {shape}: each axis must "
                f"lie in [{-rank}, {rank - 1}]."
            )
        result.append(index % rank)
    if len(set(result)) != len(result):
        raise ValueError(
            f"{name}={axes!r} names an axis of the input of shape {shape} more than once; "
            "give each axis once."
        )
    if not result and not allow_empty:
        raise ValueError(f"{name}={axes!r} is empty; give at least one axis.")
    return tuple(sorted(result))


def canonical_axis(axis: int, shape: tuple[int, ...], name: str) -> int:
    """Returns a single axis as a non-negative int."""
    return canonical_axes(check_int(axis, name), shape, name)[0]


def check_int(value: int, name: str) -> int:
    """Returns `value` as an int."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}.") from None


def other_axes(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Returns the axes of a rank-`rank` array that are not in `axes`, ascending."""
    return tuple(a for a in range(rank) if a not in axes)


@overload
def expand_parameter(
    parameter: None, x: jax.Array, feature_axes: Any, default_axes: Any, name: str
) -> None: ...
@overload
def expand_parameter(
    parameter: ArrayLike, x: jax.Array, feature_axes: Any, default_axes: Any, name: str
) -> jax.Array: ...
def expand_parameter(
    parameter: ArrayLike | None,
    x: jax.Array,
    feature_axes: Axes | None,
    default_axes: tuple[int, ...],
    name: str,
) -> jax.Array | None:
    """Brings `parameter` (gamma or beta) to the rank of `x`, and to where `x` lies.

    A parameter of the input's rank is broadcast as it is, one of rank 0 is one value for all;
    otherwise its shape must be the input's sizes along `feature_axes`, in ascending order. Without
    `feature_axes` they are `default_axes`, or the last axis for a parameter of rank 1 where those
    are several. None stays None.
    """
    if parameter is None:
        return None
    value = jnp.asarray(parameter)
    shape, rank = x.shape, x.ndim
    if feature_axes is not None:
        axes = canonical_axes(feature_axes, shape, "feature_axes")
    elif value.ndim == 1 and len(default_axes) != 1:
        axes = (rank - 1,)
    else:
        axes = default_axes
    expected = tuple(shape[a] for a in axes)
    if value.ndim == 0:
        return value.reshape((1,) * rank)
    if value.shape == expected:
        return placed(jnp.expand_dims(value, other_axes(axes, rank)), spec_of(x))
    if value.ndim == rank and all(p in (1, s) for p, s in zip(value.shape, shape, strict=True)):
        return placed(value, spec_of(x))
    raise ValueError(
        f"{name} of shape {value.shape} does not fit an input of shape {shape}: expected "
        f"{expected}, the sizes of the feature axes {axes} in ascending order, or rank {rank} with "
        f"every size 1 or the input's, or one value of rank 0. Pass feature_axes to say which axes "
        f"{name} varies along."
    )


@overload
def expand_mask(mask: None, x: jax.Array) -> None: ...
@overload
def expand_mask(mask: ArrayLike, x: jax.Array) -> jax.Array: ...
def expand_mask(mask: ArrayLike | None, x: jax.Array) -> jax.Array | None:
    """Returns the boolean `mask` with the rank of `x`, where `x` lies; None stays None."""
    if mask is None:
        return None
    value = jnp.asarray(mask)
    if value.dtype != jnp.bool_:
        raise TypeError(
            f"mask must be boolean (True: the element counts), got dtype {value.dtype}; "
            "write mask != 0 to convert it."
        )
    shape, lead = x.shape, x.ndim - value.ndim
    full = (1,) * lead + value.shape
    if lead < 0 or not all(m in (1, s) for m, s in zip(full, shape, strict=True)):
        raise ValueError(
            f"mask of shape {value.shape} does not broadcast to the input of shape {shape}; "
            "align its axes with the input's last ones, with size 1 where it does not vary."
        )
    return placed(jnp.expand_dims(value, range(lead)), spec_of(x))


def check_input(x: ArrayLike, name: str = "x") -> jax.Array:
    """Returns `x` as an array of inexact dtype and rank 1 or more."""
    value = jnp.asarray(x)
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        raise TypeError(
            f"{name} must have a floating-point or complex dtype, got {value.dtype}; convert it "
            f"first, for example with {name}.astype(jnp.float32)."
        )
    if value.ndim == 0:
        raise ValueError(f"{name} must have at least one axis, got a scalar.")
    return value


def result_dtype(x: jax.Array, dtype: DTypeLike | None) -> jnp.dtype:
    """Returns the dtype of the result: `dtype`, which must be able to hold it, or that of `x`."""
    result = x.dtype if dtype is None else jax.dtypes.canonicalize_dtype(dtype)
    kind = jnp.complexfloating if jnp.iscomplexobj(x) else jnp.inexact
    if not jnp.issubdtype(result, kind):
        raise TypeError(
            f"dtype={result} cannot hold a normalized array of dtype {x.dtype}; give a "
            f"{'complex' if kind is jnp.complexfloating else 'floating-point'} dtype."
        )
    return result


def check_epsilon(epsilon: float) -> float:
    """Returns `epsilon` as a float that is finite and not negative."""
    try:
        value = float(epsilon)
    except jax.errors.ConcretizationTypeError:
        raise TypeError(
            "epsilon must be known when the function is traced, got a traced array: give a Python "
            "float, or name it in static_argnames of jax.jit."
        ) from None
    except (TypeError, ValueError):
        raise TypeError(f"epsilon must be a number, got {epsilon!r}.") from None
    if not 0 <= value < math.inf:
        raise ValueError(f"epsilon must be finite and at least 0, got {epsilon!r}.")
    return value


def check_axis_name(axis_name: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns `axis_name` as a tuple of names, each bound by a surrounding vmap or shard_map."""
    if axis_name is None:
        return ()
    if isinstance(axis_name, Sequence) and not isinstance(axis_name, str):
        names = tuple(axis_name)
    else:
        names = (axis_name,)
    for name in names:
        try:
            jax.lax.axis_index(name)
        except NameError:
            raise NameError(
                f"axis_name={name!r} is not bound here. Call this inside jax.vmap or "
                f"jax.shard_map with an axis of that name, or leave axis_name out: a jitted "
                "function of sharded arrays pools over all devices without it."
            ) from None
    return names
