"""Whether two functions are the same, so that what was compiled for one serves the other."""

from __future__ import annotations

import types
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
# What does not change, so that it is known by itself.
_FIXED = (types.ModuleType, types.BuiltinFunctionType, type, jax.Array)
_DEPTH = 3  # of functions that call functions


class _Itself:
    """Stands for an object that equals only itself."""

    def __init__(self, value: Any):
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)


class _Function(NamedTuple):
    code: types.CodeType
    parts: Hashable


def same(value: Any) -> Hashable:
    """Returns a key that is equal for functions of the same code and all that this refers to.

    A lambda that is written in a loop is another function in each turn. One that refers to what
    can change unseen, such as a dict, equals no other, not even itself. Of other objects the key is
    the object, or its identity if it cannot be hashed.
    """
    if isinstance(value, types.FunctionType):
        return _part(value, _DEPTH)
    try:
        hash(value)
    except TypeError:
        return _Itself(value)
    return value


def _part(value: Any, depth: int) -> Hashable:
    """Returns the key of what a function refers to, or of a function."""
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, list | tuple):
        return type(value), tuple(_part(each, depth) for each in value)
    if isinstance(value, types.FunctionType) and depth:
        known = value.__globals__
        parts = [cell.cell_contents for cell in value.__closure__ or ()]
        parts += [known[name] for name in _names(value.__code__) if name in known]
        parts += [value.__defaults__, *(value.__kwdefaults__ or {}).items()]
        return _Function(value.__code__, _part(parts, depth - 1))
    if isinstance(value, nn.Module):
        return same(value)
    return _Itself(value if isinstance(value, _FIXED) else object())


def _names(code: types.CodeType) -> Iterator[str]:
    """Yields the names that code reads, in functions that it defines as well."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
