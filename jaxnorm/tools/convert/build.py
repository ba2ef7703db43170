"""What every conversion ends in: a module and its variables, from settings and arrays."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnorm._core.moments import Moments
from jaxnorm._core.pool import compute_dtype, real_dtype

Converted = tuple[nn.Module, dict[str, Any]]

# Batch norm that keeps no running statistics: the batch's normalize, also in evaluation.
BY_BATCH = {
    "use_running_average": False,
    "train_statistics": "batch",
    "eval_statistics": "batch",
    "update_running": False,
}


def build(
    module: type[nn.Module],
    gamma: Any = None,
    beta: Any = None,
    *,
    running: Moments | None = None,
    **options: Any,
) -> Converted:
    """Returns a module with those options, and the variables that hold those arrays.

    Args:
      module: the class, of `jaxnorm.linen`.
      gamma: in the module's shape, or None where the layer has none.
      beta: like `gamma`.
      running: the running mean, variance and number of updates, if any. They are widened to
        float32, in which jaxnorm keeps them.
      **options: fields of the module.
    """
    given = {"gamma": gamma, "beta": beta}
    # Copies: the layer may go on training in place.
    params = {name: jnp.array(value) for name, value in given.items() if value is not None}
    if params:
        options["param_dtype"] = next(iter(params.values())).dtype
    use = {"use_gamma": gamma is not None, "use_beta": beta is not None}
    built: Any = module(**use, **options)
    variables: dict[str, Any] = {"params": params} if params else {}
    if running is not None:
        counts = built.momentum is None or getattr(built, "debias", False)
        variables["batch_stats"] = _state(running, counts)
    return built, variables


def _state(running: Moments, counts: bool) -> dict[str, jax.Array]:
    mean, var = map(jnp.array, running[:2])
    state = {
        "mean": mean.astype(compute_dtype(mean.dtype)),
        "var": var.astype(compute_dtype(var.dtype)),
    }
    if counts:
        state["count"] = jnp.full(mean.shape, running.count, real_dtype(mean.dtype))
    return state


def promoted_dtype(*arrays: Any) -> jnp.dtype | None:
    """Returns the `dtype` of a layer whose result is that of JAX's promotion of input and arrays.

    It differs from the input's where the arrays are wider, as float32 parameters are for an input
    in bfloat16. None: it does not.
    """
    given = [jnp.asarray(array).dtype for array in arrays if array is not None]
    if not given:
        return None
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*given)
    return dtype if dtype.itemsize >= 4 else None
