"""Which layer of another library an object is, told by the names of its classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

Converter = TypeVar("Converter")


def recognize(
    layer: Any, caller: str, package: str, converters: Mapping[str, Converter], call: str
) -> Converter:
    """Returns the converter of the first of a layer's classes that has one.

    Args:
      layer: the layer.
      caller: the public function, for errors.
      package: where the library has its layers, `torch.nn`.
      converters: by the name of the class.
      call: the method that computes; a subclass with one of its own may compute anything.

    Raises:
      TypeError: there is none, or a subclass computes by itself.
    """
    own = None
    for cls in type(layer).__mro__:
        if cls.__name__ in converters and f"{cls.__module__}.".startswith(f"{package}."):
            if own is None:
                return converters[cls.__name__]
            raise TypeError(
                f"{caller} got a {name_of(layer)}, a {cls.__name__} with a {call} of its own in "
                f"{own.__name__}, which may compute something else. Copy its arrays into a plain "
                f"{cls.__name__}, convert that, and write the rest by hand."
            )
        if own is None and call in vars(cls):
            own = cls
    raise TypeError(
        f"{caller} got a {name_of(layer)}, which is none of the normalizations of {package} that "
        f"it converts: {', '.join(converters)}."
    )


def name_of(layer: Any) -> str:
    """Returns the full name of a layer's type."""
    cls = layer if isinstance(layer, type) else type(layer)
    name = f"{cls.__module__}.{cls.__qualname__}"
    return f"class {name}, not a layer" if isinstance(layer, type) else name


def names_in(tree: Any) -> dict[str, Any]:
    """Returns the names in a tree of arrays, two levels deep, for errors."""
    return {k: sorted(v) if isinstance(v, Mapping) else "an array" for k, v in (tree or {}).items()}
