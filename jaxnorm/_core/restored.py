"""Statistics as they come back from a checkpoint that is read without a target: as mappings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from jaxnorm._core.moments import Moments

Statistics = TypeVar("Statistics", bound=tuple)


def as_moments(value: Any, name: str) -> Moments:
    """Returns the argument `name`, a mapping as `Moments`."""
    return as_statistics(Moments, value, name)


def as_statistics(kind: type[Statistics], value: Any, name: str) -> Statistics:
    """Returns the argument `name`, a mapping as the named tuple `kind`; its order may be any."""
    if not isinstance(value, Mapping):
        return value
    fields: tuple[str, ...] = kind._fields  # pyright: ignore[reportAttributeAccessIssue]
    if set(value) != set(fields):
        raise TypeError(
            f"{name} must be {kind.__name__}, or a mapping of {', '.join(fields)} as one comes "
            f"back from a checkpoint, got a mapping of {', '.join(sorted(map(str, value)))}."
        )
    return kind(**value)
