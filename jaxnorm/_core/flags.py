"""Flags, checked: any other value is true or false to Python, and so is the string "False"."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_flag(value: Any, name: str) -> bool:
    """Returns a flag as True or False."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {value!r}.")


def check_switch(value: Any, name: str) -> bool | jax.Array:
    """Returns a flag that may be traced."""
    if isinstance(value, (jax.Array, np.ndarray)) and value.dtype == jnp.bool_ and value.ndim == 0:
        return value if isinstance(value, jax.Array) else bool(value)
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(f"{name} must be True, False or a boolean array of rank 0, got {value!r}.")
