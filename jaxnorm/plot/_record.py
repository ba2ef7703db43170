"""What the normalizations of a Flax model see and give, recorded while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.core import Tracer

from jaxnorm._core.moments import Moments
from jaxnorm._layers.layer import AffineLayer
from jaxnorm.functional.moments import moments
from jaxnorm.linen.batch import BatchNorm


class Record(NamedTuple):
    """What each normalization of a model saw, by its path in the model.

    Attributes:
      before: its input.
      after: its output.
      running: its running moments as they were before the call, where it keeps them.
      batch: the moments of the input over the same axes, for the same modules as `running`.
    """

    before: dict[str, jax.Array]
    after: dict[str, jax.Array]
    running: dict[str, Moments]
    batch: dict[str, Moments]


def record(apply: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Record]:
    """Runs a Flax model and records what its normalizations see and give.

    Args:
      apply: a model's `apply`, or any function that calls it, not jitted.
      *args: its arguments.
      **kwargs: its keyword arguments.

    Returns:
      What `apply` returns, and a `Record` of all modules of `jaxnorm.linen` that normalize
      activations, in the order they ran. A module that runs again is recorded again, as
      "name (2)".

    Raises:
      ValueError: no such module ran, or one ran inside jit, scan or remat, where its values
        are not known.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> from jaxnorm import plot
      >>> model = nn.Sequential([nn.Dense(3), jnn.LayerNorm()])
      >>> x = jnp.ones((2, 4))
      >>> y, seen = plot.record(model.apply, model.init(jax.random.key(0), x), x)
      >>> {name: value.shape for name, value in seen.before.items()}
      {'layers_1': (2, 3)}
    """
    seen = Record({}, {}, {}, {})

    def intercept(call, call_args, call_kwargs, context):
        module = context.module
        if not isinstance(module, AffineLayer) or not isinstance(module, nn.Module):
            return call(*call_args, **call_kwargs)
        if context.method_name != "__call__":
            return call(*call_args, **call_kwargs)
        name = _new_name("/".join(module.path) or type(module).__name__, seen.before)
        x = call_args[0] if call_args else call_kwargs["x"]
        if isinstance(module, BatchNorm) and module.has_variable("batch_stats", "mean"):
            axes, _ = module._axes_of(x.shape)
            batch = moments(x, axes, mask=call_kwargs.get("mask"))
            mean, var = (module.get_variable("batch_stats", key) for key in ("mean", "var"))
            if mean.shape == batch.mean.shape:  # else there are statistics per domain
                seen.running[name] = Moments(mean, var, batch.count)
                seen.batch[name] = batch
        y = call(*call_args, **call_kwargs)
        seen.before[name], seen.after[name] = x, y
        return y

    with nn.intercept_methods(intercept):
        result = apply(*args, **kwargs)
    if not seen.before:
        raise ValueError(
            "no module of jaxnorm.linen that normalizes activations ran. Pass a model that holds "
            "one, and its apply as it is: a jitted function that is compiled already runs no "
            "Python code."
        )
    for name, value in (*seen.before.items(), *seen.after.items()):
        if isinstance(value, Tracer):
            raise ValueError(
                f"{name} ran inside jit, scan or remat, so its values are not known. Pass apply "
                "without jax.jit, of a model without nn.scan and nn.remat."
            )
    return result, seen


def _new_name(name: str, taken: dict[str, Any]) -> str:
    """Returns `name`, numbered if it is taken."""
    if name not in taken:
        return name
    number = 2
    while f"{name} ({number})" in taken:
        number += 1
    return f"{name} ({number})"
