"""What `jax.checkpoint` keeps for the backward pass: statistics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

SAVED = "jaxnorm_statistics"


def save(x: Any) -> Any:
    """Marks `x` as a statistic that `jax.checkpoint` keeps for the backward pass."""
    if x is None:
        return None
    if jnp.iscomplexobj(x):
        # jax.checkpoint cannot keep a complex array (it rounds what it keeps).
        return lax.complex(save(x.real), save(x.imag))
    return checkpoint_name(x, SAVED)


def save_only_statistics(*names, **params):
    """A `jax.checkpoint` policy: keep per-group statistics, compute all else again."""
    return jax.checkpoint_policies.save_only_these_names(SAVED)(*names, **params)
