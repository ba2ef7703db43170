"""Layers of Haiku."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import jaxnorm.linen as jnn
from jaxnorm._core.axes import other_axes
from jaxnorm._core.moments import Moments
from jaxnorm.tools.convert.build import Converted, build, promoted_dtype
from jaxnorm.tools.convert.recognize import name_of, names_in, recognize

Affine = tuple[jax.Array | None, jax.Array | None]


def from_haiku(module: Any, params: Mapping[str, Any], state: Any = None) -> Converted:
    """Returns the module and variables of a normalization layer of Haiku.

    Takes BatchNorm, LayerNorm, RMSNorm, GroupNorm and InstanceNorm. Evaluation gives the same, and
    training goes on as it would have: the running statistics are debiased averages, whose counter
    goes on, and the running variance is biased.

    - Haiku's modules are made in transformed functions; take the object from there, and the
      parameters that belong to it:
      `hk.transform_with_state(lambda x: layers.append(hk.BatchNorm(...)) or layers[-1](x, True))`.
    - Whether to train or to evaluate is said in the call, `use_running_average=...`;
      `test_local_stats` is `eval_statistics="batch"`.
    - Haiku's result is as wide as the parameters: float32, if they are, for an input in bfloat16.
      So is the module's, by `dtype=float32`.

    Args:
      module: the layer.
      params: the parameters of the layer, or of the model that it is in, by the modules' names.
      state: like `params`, the state; of batch norm alone.

    Returns:
      The module of `jaxnorm.linen`, and its variables.

    Raises:
      TypeError: the layer is none of these, or a subclass with a `__call__` of its own.
      ValueError: params or state lack an array of the layer, or its axes have no counterpart.

    Example (where Haiku is installed):
      >>> from importlib.util import find_spec
      >>> from jaxnorm import tools
      >>> if find_spec("haiku"):
      ...     import haiku as hk, jax, jax.numpy as jnp
      ...     layers = []
      ...     def model(x):
      ...         layers.append(hk.RMSNorm(-1, eps=0.25))
      ...         return layers[-1](x)
      ...     params = hk.transform(model).init(jax.random.key(0), jnp.ones((2, 3)))
      ...     module, variables = tools.from_haiku(layers[-1], params)
      ...     assert module.epsilon == 0.25 and variables["params"]["gamma"].shape == (3,)
    """
    convert = recognize(module, "from_haiku", "haiku", _CONVERTERS, "__call__")
    names = [n for n in ("scale", "offset") if getattr(module, f"create_{n}", False)]
    held = _held(module, module.module_name, params, "params", names)
    return convert(module, (held.get("scale"), held.get("offset")), state)


def _held(module: Any, name: str, tree: Any, what: str, names: Sequence[str]) -> dict[str, Any]:
    """Returns the arrays of the module called `name`."""
    node = (tree or {}).get(name, {})
    missing = [n for n in names if n not in node]
    if missing:
        raise ValueError(
            f"{what} of the {name_of(module)} {name!r} lacks {', '.join(missing)}: it holds "
            f"{names_in(tree)}. Give from_haiku the {what} of the transformed function in which "
            "this module was made."
        )
    return {n: jnp.asarray(node[n]) for n in names}


def _batch(module: Any, affine: Affine, state: Any) -> Converted:
    mean, var = (
        _held(module, ema.module_name, state, "state", ("average", "counter"))
        for ema in (module.mean_ema, module.var_ema)
    )
    shape = mean["average"].shape  # of the rank of the input, with sizes of 1
    if module.axis is None:
        kept = features = (module.channel_index % len(shape),)
        axes: dict[str, Any] = {"feature_axes": module.channel_index}
    else:
        pooled = tuple(a % len(shape) for a in module.axis)
        kept = other_axes(pooled, len(shape))
        # Haiku's parameters have all sizes but those along what is literally in `axis`.
        features = other_axes(module.axis, len(shape))
        axes = {"reduction_axes": pooled, "feature_axes": features}
    averages = (_drop_ones(m["average"], kept) for m in (mean, var))
    running = Moments._make((*averages, mean["counter"]))
    gamma, beta = affine = _of_features(affine, features)
    return build(
        jnn.BatchNorm,
        gamma,
        beta,
        running=running,
        epsilon=module.eps,
        dtype=promoted_dtype(*affine),
        momentum=module.mean_ema.decay,
        debias=True,
        unbiased=False,
        axis_name=module.cross_replica_axis,
        axis_index_groups=module.cross_replica_axis_index_groups,
        **axes,
    )


def _features(kind: Any, module: Any, affine: Affine, state: Any) -> Converted:
    del state
    array = next((a for a in affine if a is not None), None)
    options: dict[str, Any] = {"epsilon": module.eps, "dtype": promoted_dtype(*affine)}
    # Parameters of the last axis have one axis, others the rank of the input.
    rank = None if array is None or array.ndim == 1 else array.ndim
    features: tuple[int, ...] = (-1,)
    if rank is not None:
        features = _numbers(module.param_axis, rank)
        affine = _of_features(affine, tuple(sorted(a % rank for a in features)))
    axis = module.axis
    if isinstance(axis, slice) and rank is None and not _counts_from_the_end(axis):
        if kind is jnn.LayerNorm and axis == slice(1, None):
            return build(jnn.GroupNorm, *affine, num_groups=1, **options)
        raise ValueError(
            f"the {name_of(module)} has axis={axis!r}, which is other axes for inputs of another "
            "rank; make it with the numbers of its axes, such as (1, 2, 3), before from_haiku."
        )
    axes = {"reduction_axes": _numbers(axis, rank), "feature_axes": features}
    return build(kind, *affine, **axes, **options)


def _instance(module: Any, affine: Affine, state: Any) -> Converted:
    del state
    gamma, beta = (None if a is None else a.reshape(-1) for a in affine)
    options = {"epsilon": module.eps, "dtype": promoted_dtype(*affine)}
    return build(jnn.InstanceNorm, gamma, beta, channel_axis=module.param_axis[0], **options)


def _group(module: Any, affine: Affine, state: Any) -> Converted:
    del state
    gamma, beta = (None if a is None else a.reshape(-1) for a in affine)
    return build(
        jnn.GroupNorm,
        gamma,
        beta,
        num_groups=module.groups,
        channel_axis=module.channel_index,
        reduction_axes=_positions(module),
        epsilon=module.eps,
        dtype=promoted_dtype(*affine),
    )


def _positions(module: Any) -> tuple[int, ...] | None:
    """Returns the axes pooled beside the channels of a group; None: all but axis 0."""
    axis = module.axis
    if axis == slice(1, None):
        return None
    problem = "which has no counterpart where a group's channels are not pooled"
    if module.rank is None:
        problem = "which says what it pools once it has been called"
    else:
        # Then the axes are those of an input whose channels are two axes: groups, and channels.
        axes = {a % (module.rank + 1) for a in axis}
        groups = 1 if module.channel_index == 1 else module.rank - 1
        if groups not in axes and groups + 1 in axes:
            positions = {a - (a > groups) for a in axes - {groups + 1}}
            usual = set(range(1, module.rank)) - {groups}
            return None if positions == usual else tuple(sorted(positions))
    raise ValueError(
        f"the {name_of(module)} has axis={axis!r}, {problem}; make it with the default axis, or "
        "take the module from a transformed function that has run."
    )


def _numbers(axis: Any, rank: int | None) -> tuple[int, ...]:
    """Returns the axes of a tuple or slice."""
    if not isinstance(axis, slice):
        return tuple(axis)
    return tuple(range(*axis.indices(rank)) if rank else range(axis.start, axis.stop or 0))


def _counts_from_the_end(axis: slice) -> bool:
    stop = 0 if axis.stop is None else axis.stop
    return axis.step is None and axis.start is not None and axis.start < stop <= 0


def _of_features(affine: Affine, features: Sequence[int]) -> Affine:
    gamma, beta = (None if a is None else _drop_ones(a, features) for a in affine)
    return gamma, beta


def _drop_ones(array: jax.Array, kept: Sequence[int]) -> jax.Array:
    return array.reshape([array.shape[a] for a in kept])


_CONVERTERS = {
    "BatchNorm": _batch,
    "LayerNorm": functools.partial(_features, jnn.LayerNorm),
    "RMSNorm": functools.partial(_features, jnn.RMSNorm),
    "GroupNorm": _group,
    "InstanceNorm": _instance,
}
