"""Layers of flax.linen and flax.nnx."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.core import meta

import jaxnorm.linen as jnn
from jaxnorm._core.moments import Moments
from jaxnorm.tools.convert.build import Converted, build, promoted_dtype
from jaxnorm.tools.convert.recognize import name_of, names_in, recognize

Arrays = Mapping[str, Any]  # those of the layer, by their names in flax


def from_flax(module: Any, variables: Any = None) -> Converted:
    """Returns the module and variables of a normalization layer of `flax.linen` or `flax.nnx`.

    Takes BatchNorm, LayerNorm, RMSNorm, GroupNorm and InstanceNorm. Evaluation gives the same, and
    training goes on as it would have: the running variance stays biased.

    - `scale` and `bias` are called gamma and beta. (A model that is to keep flax's names and its
      checkpoint as they are needs no conversion: `param_names=("scale", "bias")` does it.)
    - Where flax has no `dtype` its result is as wide as the parameters: float32, if they are, for
      an input in bfloat16. So is the module's, by `dtype=float32`; clone it with `dtype=None` for
      results in the dtype of the input.
    - `use_fast_variance` and `force_float32_reductions` have no counterpart: variances are exact,
      and statistics in float32.

    Args:
      module: the layer.
      variables: of a linen layer, its own: `{"params": params["BatchNorm_0"], "batch_stats": ...}`.
        An NNX layer holds its arrays itself.

    Returns:
      The module of `jaxnorm.linen`, and its variables.

    Raises:
      TypeError: the layer is none of these, or a subclass with a `__call__` of its own.
      ValueError: variables lack an array of the layer, or are given for an NNX layer; or an
        instance norm has several feature axes.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> from jaxnorm import tools
      >>> x = jnp.array([[1., 10.], [3., 30.]])
      >>> norm = nn.BatchNorm(momentum=0.5)
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=False)
      >>> module, variables = tools.from_flax(norm, variables)
      >>> y, updates = module.apply(
      ...     variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> updates["batch_stats"]["mean"].tolist(), updates["batch_stats"]["var"].tolist()
      ([1.0, 10.0], [1.0, 50.5])
    """
    convert = recognize(module, "from_flax", "flax", _CONVERTERS, "__call__")
    if _is_nnx(module):
        if variables is not None:
            raise ValueError(
                f"from_flax got variables for a {name_of(module)}, which holds its own arrays; "
                "put them into it by nnx.update(module, state), and give the module alone."
            )
        names = ("scale", "bias", "mean", "var")
        held = {name: getattr(module, name, None) for name in names}
        return convert(module, {name: v[...] for name, v in held.items() if v is not None})
    return convert(module, _arrays(module, variables))


def _is_nnx(module: Any) -> bool:
    return isinstance(module, nnx.Module)


def _arrays(module: Any, variables: Any) -> Arrays:
    """Returns the arrays of a linen module."""
    needed = [n for n in ("scale", "bias") if getattr(module, f"use_{n}", False)]
    places = [("params", name) for name in needed]
    if hasattr(module, "momentum"):
        places += [("batch_stats", "mean"), ("batch_stats", "var")]
    variables = meta.unbox({} if variables is None else variables)
    for collection, name in places:
        if name not in variables.get(collection, {}):
            raise ValueError(
                f"the variables of the {name_of(module)} lack {collection}/{name}: they hold "
                f"{names_in(variables)}. Give from_flax the layer's own "
                'part, such as {"params": variables["params"]["BatchNorm_0"], ...}.'
            )
    return {name: variables[collection][name] for collection, name in places}


def _batch(module: Any, arrays: Arrays) -> Converted:
    running = Moments(arrays["mean"], arrays["var"], jnp.zeros(()))
    # NNX promotes with the running statistics, too.
    promoting = arrays if _is_nnx(module) else _affine(arrays)
    return _build(
        jnn.BatchNorm,
        module,
        arrays,
        promoting,
        running=running,
        use_running_average=module.use_running_average,
        feature_axes=module.axis,
        momentum=module.momentum,
        unbiased=False,
    )


def _features(kind: Any, module: Any, arrays: Arrays) -> Converted:
    axes = {name: getattr(module, name) for name in ("reduction_axes", "feature_axes")}
    return _build(kind, module, arrays, arrays, **axes)


def _group(module: Any, arrays: Arrays) -> Converted:
    groups = {"group_size": module.group_size}
    if module.num_groups is not None:
        groups = {"num_groups": module.num_groups}
    axes = module.reduction_axes  # in flax the channels are among them
    return _build(jnn.GroupNorm, module, arrays, arrays, reduction_axes=axes, **groups)


def _instance(module: Any, arrays: Arrays) -> Converted:
    axes = module.feature_axes
    given = (axes,) if isinstance(axes, int) else tuple(axes)
    if len(given) != 1:
        raise ValueError(
            f"the {name_of(module)} has feature_axes={axes!r}, and an instance norm of jaxnorm has "
            "one axis of channels; use jaxnorm.linen.LayerNorm with reduction_axes, the positions, "
            "and these feature_axes."
        )
    return _build(jnn.InstanceNorm, module, arrays, arrays, channel_axis=given[0])


def _build(kind: Any, module: Any, arrays: Arrays, promoting: Arrays, **options: Any) -> Converted:
    """Builds with what all of flax's layers have."""
    dtype = module.dtype
    if dtype is None:
        dtype = promoted_dtype(*promoting.values())
    for ours, theirs in (("gamma_init", "scale_init"), ("beta_init", "bias_init")):
        if getattr(module, theirs, None) is not None:
            options[ours] = getattr(module, theirs)
    options |= {name: getattr(module, name) for name in ("axis_name", "axis_index_groups")}
    affine = (arrays.get("scale"), arrays.get("bias"))
    return build(kind, *affine, epsilon=module.epsilon, dtype=dtype, **options)


def _affine(arrays: Arrays) -> Arrays:
    return {name: arrays[name] for name in ("scale", "bias") if name in arrays}


_CONVERTERS = {
    "BatchNorm": _batch,
    "LayerNorm": functools.partial(_features, jnn.LayerNorm),
    "RMSNorm": functools.partial(_features, jnn.RMSNorm),
    "GroupNorm": _group,
    "InstanceNorm": _instance,
}
