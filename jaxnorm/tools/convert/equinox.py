"""Layers of Equinox."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp

import jaxnorm.linen as jnn
from jaxnorm._core.moments import Moments
from jaxnorm.tools.convert.build import Converted, build, promoted_dtype
from jaxnorm.tools.convert.recognize import name_of, recognize


def from_equinox(layer: Any, state: Any = None) -> Converted:
    """Returns the module and variables of a normalization layer of `equinox.nn`.

    Takes BatchNorm, LayerNorm, RMSNorm and GroupNorm. Evaluation gives the same, and training goes
    on as it would have.

    - Equinox's layers take one example and are mapped over the batch; the module takes the batch,
      on axis 0, and the channels of batch and group norm are axis 1, as they then are.
    - Whether batch norm trains or evaluates is said in the call, `use_running_average=...`,
      whatever `layer.inference`. Its running variance is biased.
    - `mode="batch"`: debiased averages, whose counter goes on. Of a layer that has not seen a batch
      the mean is Equinox's and the variance is not: its own is too large by m^t / (1 - m^t) after t
      batches, for a momentum of m.
    - `mode="ema"`: in training the running statistics normalize as soon as the batch has moved
      them, which is `train_statistics=1 - momentum`. The first batch of all, whose statistics they
      become, must have been seen.
    - The results of batch norm are as wide as its arrays: float32, if they are, for an input in
      bfloat16. So are the module's, by `dtype=float32`.

    Args:
      layer: the layer.
      state: of batch norm, the `equinox.nn.State` that belongs to it, or to its model.

    Returns:
      The module of `jaxnorm.linen`, and its variables.

    Raises:
      TypeError: the layer is none of these, or a subclass with a `__call__` of its own.
      ValueError: batch norm's state is missing, its mode is "ema" and it has seen no batch, or it
        pools over several named axes.

    Example (where Equinox is installed):
      >>> from importlib.util import find_spec
      >>> from jaxnorm import tools
      >>> if find_spec("equinox"):
      ...     import equinox as eqx
      ...     make = eqx.nn.make_with_state(eqx.nn.BatchNorm)
      ...     layer, state = make(3, "batch", momentum=0.75, mode="batch")
      ...     module, variables = tools.from_equinox(layer, state)
      ...     assert module.momentum == 0.75 and variables["batch_stats"]["mean"].shape == (3,)
    """
    convert = recognize(layer, "from_equinox", "equinox", _CONVERTERS, "__call__")
    return convert(layer, state)


def _features(kind: Any, layer: Any, state: Any) -> Converted:
    del state
    axes = tuple(range(-len(layer.shape), 0))
    options = {"reduction_axes": axes, "feature_axes": axes, "epsilon": layer.eps}
    return build(kind, layer.weight, layer.bias, **options)


def _group(layer: Any, state: Any) -> Converted:
    del state
    options = {"num_groups": layer.groups, "channel_axis": 1, "epsilon": layer.eps}
    return build(jnn.GroupNorm, layer.weight, layer.bias, **options)


def _batch(layer: Any, state: Any) -> Converted:
    if isinstance(layer.axis_name, (tuple, list)) and len(layer.axis_name) > 1:
        raise ValueError(
            f"the {name_of(layer)} pools over the axes {layer.axis_name!r}, one of which is that "
            "of the examples, axis 0 of the module's input. Give from_equinox a layer with that "
            'name alone, eqx.tree_at(lambda l: l.axis_name, layer, "batch"), and the module the '
            'others: module.clone(axis_name="devices").'
        )
    running, options = _ema(layer, state) if layer.mode == "ema" else _debiased(layer, state)
    return build(
        jnn.BatchNorm,
        layer.weight,
        layer.bias,
        running=running,
        epsilon=layer.eps,
        momentum=layer.momentum,
        unbiased=False,
        feature_axes=1,
        dtype=promoted_dtype(layer.weight, layer.bias, running.mean),
        **options,
    )


def _debiased(layer: Any, state: Any) -> tuple[Moments, dict[str, Any]]:
    count = _get(layer, state, "batch_counter")
    hidden = _get(layer, state, "batch_state_index")
    weight = 1 - layer.momentum ** int(count) if count > 0 else 1.0
    mean, var = (value / weight for value in hidden)
    return Moments(mean, var, count), {"debias": True}


def _ema(layer: Any, state: Any) -> tuple[Moments, dict[str, Any]]:
    if _get(layer, state, "ema_first_time_index"):
        raise ValueError(
            f'the {name_of(layer)} has mode="ema" and has seen no batch: its running statistics '
            "have no values yet. Call it once in training, and give from_equinox the new state."
        )
    mean, var = _get(layer, state, "ema_state_index")
    return Moments(mean, var, jnp.zeros(())), {"train_statistics": 1 - layer.momentum}


def _get(layer: Any, state: Any, index: str) -> Any:
    try:
        return state.get(getattr(layer, index))
    except (AttributeError, KeyError):
        raise ValueError(
            f"the {name_of(layer)} keeps its running statistics in a state, and from_equinox got "
            f"{'none' if state is None else 'another'}; give it the one that "
            "eqx.nn.make_with_state made with the layer, or a later one."
        ) from None


_CONVERTERS = {
    "BatchNorm": _batch,
    "LayerNorm": functools.partial(_features, jnn.LayerNorm),
    "RMSNorm": functools.partial(_features, jnn.RMSNorm),
    "GroupNorm": _group,
}
