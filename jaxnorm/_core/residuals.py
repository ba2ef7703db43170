"""What is kept for the backward pass: the input and statistics; all else is computed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxnorm._core.plain import is_plain

SAVED = "jaxnorm_statistics"


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function`, of which the backward pass keeps inputs and what `save` marked."""
    return function if is_plain() else jax.checkpoint(function, policy=_save_only_statistics)


def save(x: Any) -> Any:
    """Marks `x` as a statistic that is kept for the backward pass."""
    if x is None or is_plain():
        return x
    if jnp.iscomplexobj(x):
        # jax.checkpoint cannot keep a complex array (it rounds what it keeps).
        return lax.complex(save(x.real), save(x.imag))
    return checkpoint_name(x, SAVED)


def _save_only_statistics(*names, **params):
    return jax.checkpoint_policies.save_only_these_names(SAVED)(*names, **params)
