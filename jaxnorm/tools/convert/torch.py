"""Layers of torch.nn."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import jaxnorm.linen as jnn
from jaxnorm._core.moments import Moments
from jaxnorm._core.pool import compute_dtype
from jaxnorm.tools.convert.build import BY_BATCH, Converted, build
from jaxnorm.tools.convert.recognize import name_of, recognize
from jaxnorm.tools.convert.tensor import to_array
from jaxnorm.tools.convert.tracked import TrackedInstanceNorm


def from_torch(layer: Any, *, channel_axis: int = -1) -> Converted:
    """Returns the module and variables of a normalization layer of `torch.nn`.

    Takes BatchNorm1d to 3d, SyncBatchNorm, InstanceNorm1d to 3d, GroupNorm, LayerNorm and RMSNorm.
    Evaluation gives the same, and training goes on as it would have: torch's `momentum` is the
    weight of the new value and becomes 1 - momentum, `momentum=None` goes on averaging from
    `num_batches_tracked`, and the running variance is unbiased.

    - The batch is axis 0. Layer and RMS norm normalize the last axes, in torch's order, whatever
      `channel_axis`.
    - Whether to train or to evaluate is said in the call, `use_running_average=...`, whatever
      `layer.training`. Without running statistics (`track_running_stats=False`) the batch's
      normalize in both, and nothing has to be said.
    - SyncBatchNorm becomes `BatchNorm`, which pools over all devices in a sharded jit; in
      shard_map or pmap `module.clone(axis_name="batch")` does.
    - An InstanceNorm with `track_running_stats=True` has no counterpart in `jaxnorm.linen`; its
      module is called as `BatchNorm` is.
    - Running statistics are kept in float32 where torch has them in half precision.

    Args:
      layer: the layer; on any device, in any dtype.
      channel_axis: the axis of the channels in the module's inputs: -1, as is usual in JAX, or 1,
        as in torch.

    Returns:
      The module of `jaxnorm.linen`, and its variables.

    Raises:
      TypeError: the layer is none of these, or a subclass with a `forward` of its own.
      ValueError: the layer's arrays have no values, being on torch's device meta.

    Example (where torch is installed):
      >>> from importlib.util import find_spec
      >>> from jaxnorm import tools
      >>> if find_spec("torch"):
      ...     import torch
      ...     module, variables = tools.from_torch(torch.nn.BatchNorm2d(3, momentum=0.25))
      ...     assert module.momentum == 0.75 and variables["batch_stats"]["mean"].shape == (3,)
    """
    convert = recognize(layer, "from_torch", "torch.nn", _CONVERTERS, "forward")
    return convert(layer, channel_axis)


def _batch(layer: Any, channel_axis: int) -> Converted:
    options: dict[str, Any] = {"epsilon": layer.eps, "feature_axes": channel_axis}
    if layer.running_mean is None:
        return build(jnn.BatchNorm, *_affine(layer), **options, **BY_BATCH)
    if not layer.track_running_stats:
        options["update_running"] = False
    options["momentum"] = None if layer.momentum is None else 1 - layer.momentum
    return build(jnn.BatchNorm, *_affine(layer), running=_running(layer), **options)


def _instance(layer: Any, channel_axis: int) -> Converted:
    options: dict[str, Any] = {"epsilon": layer.eps, "channel_axis": channel_axis}
    if not layer.track_running_stats:
        return build(jnn.InstanceNorm, *_affine(layer), **options)
    # In torch's instance norm `momentum=None` is 0: nothing moves.
    options["momentum"] = 1 - (layer.momentum or 0)
    return build(TrackedInstanceNorm, *_affine(layer), running=_running(layer), **options)


def _group(layer: Any, channel_axis: int) -> Converted:
    options = {"num_groups": layer.num_groups, "channel_axis": channel_axis}
    return build(jnn.GroupNorm, *_affine(layer), epsilon=layer.eps, **options)


def _layer(layer: Any, channel_axis: int) -> Converted:
    del channel_axis
    return build(jnn.LayerNorm, *_affine(layer), epsilon=layer.eps, **_last_axes(layer))


def _rms(layer: Any, channel_axis: int) -> Converted:
    del channel_axis
    gamma = _array(layer, "weight")
    epsilon = layer.eps
    if epsilon is None:
        # That of the dtype that torch computes in.
        dtype = compute_dtype(jnp.float32 if gamma is None else gamma.dtype)
        epsilon = float(jnp.finfo(dtype).eps)
    return build(jnn.RMSNorm, gamma, epsilon=epsilon, **_last_axes(layer))


def _last_axes(layer: Any) -> dict[str, Any]:
    axes = tuple(range(-len(layer.normalized_shape), 0))
    return {"reduction_axes": axes, "feature_axes": axes}


def _affine(layer: Any) -> tuple[jax.Array | None, jax.Array | None]:
    return _array(layer, "weight"), _array(layer, "bias")


def _running(layer: Any) -> Moments:
    names = ("running_mean", "running_var", "num_batches_tracked")
    arrays: Any = [_array(layer, name) for name in names]
    return Moments(*arrays)


def _array(layer: Any, name: str) -> jax.Array | None:
    """Returns an array of the layer, in its dtype."""
    tensor = getattr(layer, name)
    if tensor is None:
        return None
    if tensor.device.type == "meta":
        raise ValueError(
            f"the {name} of the {name_of(layer)} is on torch's device meta, without values; load "
            "the layer's state_dict before from_torch."
        )
    return to_array(tensor)


_CONVERTERS = {
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"), _batch),
    **dict.fromkeys(("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"), _instance),
    "GroupNorm": _group,
    "LayerNorm": _layer,
    "RMSNorm": _rms,
}
