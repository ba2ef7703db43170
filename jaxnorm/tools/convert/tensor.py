"""Tensors of torch, in which Keras keeps its variables, too, if torch is its backend."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def to_array(tensor: Any) -> jax.Array:
    """Returns a tensor as an array of its dtype, from whatever device."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    tensor = tensor.detach().cpu()
    # NumPy's bfloat16 is unknown to torch.
    host = (tensor.float() if dtype == "bfloat16" else tensor).numpy()
    return jnp.asarray(host, jax.dtypes.canonicalize_dtype(dtype))
