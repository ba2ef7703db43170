"""Options: fields with documentation, which the docstrings of modules list."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import sys
import textwrap
from typing import TypeVar, dataclass_transform

Class = TypeVar("Class")


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(dataclasses.field,))
def options(cls: type[Class]) -> type[Class]:
    """Makes options out of annotations; the string below each of them documents it."""
    return dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)


def documented(cls: type[Class]) -> type[Class]:
    """Completes the docstring of a module: with what is said of its options, and with all of them.

    `help` shows it then. The docstring of the class itself has what is so in its framework alone.
    """
    if cls.__doc__ is None:  # as with python -OO
        return cls
    layer = next((b for b in cls.__mro__[1:] if b.__module__.startswith("jaxnorm._layers.")), cls)
    _, shared = _parts(inspect.cleandoc(layer.__doc__ or ""))
    own, example = inspect.cleandoc(cls.__doc__).partition("Example:")[::2]
    first, more = _parts(own)
    found: dict[str, str] = {}
    for base in cls.__mro__:
        for name, text in _documentation(base.__module__).get(base.__name__, {}).items():
            found.setdefault(name, text)
    parameters = inspect.signature(cls.__init__).parameters
    # Those that can be given by position come first.
    first_names = [n for n, p in parameters.items() if p.kind is not p.KEYWORD_ONLY and n in found]
    if not found:
        return cls
    lines = ["Attributes:"]
    for name in dict.fromkeys([*first_names, *(n for n in found if n in parameters)]):
        text = " ".join(f"{name}: {found[name]}".split())
        lines += textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="    ")
    text, reference, source = shared.partition("Reference")
    sections = [first, more, text, "\n".join(lines), "Example:" + example, reference + source]
    cls.__doc__ = "\n\n".join(section.strip() for section in sections if section.strip())
    return cls


def _parts(text: str) -> tuple[str, str]:
    """Returns the first paragraph of a docstring, and the rest."""
    first, _, rest = text.partition("\n\n")
    return first, rest


@functools.cache
def _documentation(module: str) -> dict[str, dict[str, str]]:
    """Returns the strings below the fields in a module of jaxnorm, by class and by field."""
    found: dict[str, dict[str, str]] = {}
    if not module.startswith("jaxnorm."):
        return found
    try:
        source = inspect.getsource(sys.modules[module])
    except OSError:  # compiled files alone are installed
        return found
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            texts = found[node.name] = {}
            for field, below in itertools.pairwise(node.body):
                if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                    texts[ast.unparse(field.target)] = ast.literal_eval(below.value)
    return found
