"""The state of a layer, as Flax NNX variables, of the kind `nnx.BatchStat` if nothing else."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._layers.call import Context, State, StateInit
from jaxnorm._layers.running import ACCUMULATORS


def context_of(label: str, module: nnx.Module) -> Context:
    """Returns what NNX says of a call of `module`, which errors call `label`."""
    return Context(
        label=label,
        accumulates=hasattr(module, ACCUMULATORS[0]),
        evaluation="use_running_average=True, as model.eval() sets it",
        widening=(
            "Keep those in float32 and cast the parameters alone: nnx.update(model, jax.tree.map("
            "lambda a: a.astype(jnp.bfloat16), nnx.state(model, nnx.Param)))."
        ),
    )


def make_state(
    module: nnx.Module, first: StateInit, kind: type[nnx.Variable] = nnx.BatchStat
) -> None:
    """Gives `module` the variables of a state, or lets those that it has start anew."""
    for name, make in first.items():
        if hasattr(module, name):
            getattr(module, name).set_value(make())
        else:
            setattr(module, name, kind(make()))


def state_of(
    module: Any, first: StateInit, shape: tuple[int, ...], remedy: str | None = None
) -> dict[str, jax.Array]:
    """Returns the values of a state that would start as `first`, for an input of shape `shape`.

    Errors say what to do, which is `remedy` if it is given.
    """
    label, state = getattr(module, "_label", None) or module.label, {}
    for name, make in first.items():
        if not hasattr(module, name):
            raise ValueError(
                f"{label} was made without a running {name}, which its options of now need. "
                f"{remedy or 'Give them when it is made.'}"
            )
        state[name] = getattr(module, name)[...]
        expected = jax.eval_shape(make)
        if jnp.iscomplexobj(expected) and not jnp.iscomplexobj(state[name]):
            raise TypeError(
                f"{label} has a running {name} of dtype {state[name].dtype}, which cannot "
                f"hold that of complex inputs; make it with dtype={expected.dtype}."
            )
        if state[name].shape != expected.shape:
            sizes = "Give the sizes of the features as num_features"
            if hasattr(module, "input_shape"):
                sizes += "; and input_shape, if some axes are neither pooled nor of features"
            raise ValueError(
                f"{label} has a running {name} of shape {state[name].shape}, which does not "
                f"fit an input of shape {shape}: expected {expected.shape}. {remedy or sizes + '.'}"
            )
    return state


def keep(module: nnx.Module, new: State | None) -> None:
    """Takes over a new state, of some of the variables or all, if there is one."""
    for name, value in (new or {}).items():
        getattr(module, name).set_value(value)
