"""What flax.linen's wrappers make of weights, without the layer around."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Kernel(nn.Module):
    """A layer that returns its kernel."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("kernel", lambda _: jnp.zeros(self.shape))


def weight_norm(w, g):
    """Calls `flax.linen.WeightNorm`."""
    norm = nn.WeightNorm(Kernel(w.shape), variable_filter={"kernel"})
    return _apply(norm, w, {"layer_instance/kernel/scale": g}, {})


def spectral_norm(w, u):
    """Calls `flax.linen.SpectralNorm`, as in training."""
    name = "layer_instance/kernel"
    stats = {f"{name}/u": u[None], f"{name}/sigma": jnp.ones(())}
    return _apply(nn.SpectralNorm(Kernel(w.shape)), w, {}, stats, update_stats=True)


def _apply(norm: nn.Module, w, params: dict, stats: dict, **options: Any) -> tuple[Any, ...]:
    variables = {"params": {**params, "layer_instance": {"kernel": w}}, "batch_stats": stats}
    y, changed = norm.apply(variables, mutable=["batch_stats"], **options)
    return y, *jax.tree.leaves(changed)
