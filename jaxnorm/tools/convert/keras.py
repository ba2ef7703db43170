"""Layers of Keras."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxnorm.linen as jnn
from jaxnorm._core.moments import Moments
from jaxnorm.tools.convert.build import Converted, build
from jaxnorm.tools.convert.recognize import name_of, recognize
from jaxnorm.tools.convert.tensor import to_array


def from_keras(layer: Any) -> Converted:
    """Returns the module and variables of a normalization layer of Keras 3, of any backend.

    Takes BatchNormalization, LayerNormalization, GroupNormalization, RMSNormalization and
    UnitNormalization. Evaluation gives the same, and training goes on as it would have: the running
    variance stays biased, and the dtype of the result is Keras's `compute_dtype`.

    - Whether to train or to evaluate is said in the call, `use_running_average=...`; with
      `layer.trainable=False`, by which Keras freezes a batch norm, the module is frozen.
    - A batch norm with `synchronized=True` becomes `BatchNorm`, which pools over all devices in a
      sharded jit; in shard_map or pmap `module.clone(axis_name="batch")` does.
    - A unit normalization has no arrays; it is a `ScaleNorm` without gamma.

    Args:
      layer: the layer, built.

    Returns:
      The module of `jaxnorm.linen`, and its variables.

    Raises:
      TypeError: the layer is none of these, or a subclass with a `call` of its own.
      ValueError: the layer is not built, or has something that no module has: regularizers and
        constraints of gamma and beta, renorm, rms_scaling.

    Example (where Keras is installed):
      >>> from importlib.util import find_spec
      >>> from jaxnorm import tools
      >>> if find_spec("keras"):
      ...     import os
      ...     backend = os.environ.setdefault("KERAS_BACKEND", "jax")
      ...     import keras
      ...     layer = keras.layers.BatchNormalization(momentum=0.75)
      ...     layer.build((None, 3))
      ...     module, variables = tools.from_keras(layer)
      ...     assert module.momentum == 0.75 and variables["batch_stats"]["mean"].shape == (3,)
    """
    convert = recognize(layer, "from_keras", "keras", _CONVERTERS, "call")
    if not layer.built:
        raise ValueError(
            f"the {name_of(layer)} is not built and has no arrays yet; call it once, or "
            "layer.build(input_shape), before from_keras."
        )
    for setting, remedy in _WITHOUT_COUNTERPART.items():
        if getattr(layer, setting, None):
            raise ValueError(
                f"the {name_of(layer)} has {setting}={getattr(layer, setting)!r}, which no module "
                f"of jaxnorm has; {remedy}"
            )
    return convert(layer)


_OPTIMIZER = (
    "set it to None before from_keras, and have the optimizer or the loss do it for the parameter."
)
_WITHOUT_COUNTERPART = {
    **dict.fromkeys(("gamma_constraint", "beta_constraint"), _OPTIMIZER),
    **dict.fromkeys(("gamma_regularizer", "beta_regularizer"), _OPTIMIZER),
    "renorm": "Keras has statistics of its own for it. To evaluate, set it to False before "
    'from_keras; to train, clone the module with train_statistics="renorm", which corrects by the '
    "running statistics.",
    "rms_scaling": "it divides by the deviation and subtracts no mean; use RMSNormalization.",
    "fused": "the layer is of Keras 2, whose fused running variance is another; load its weights "
    "into a layer of Keras 3.",
}


def _batch(layer: Any) -> Converted:
    mean, var = _array(layer.moving_mean), _array(layer.moving_variance)
    return _build(
        jnn.BatchNorm,
        layer,
        running=Moments(mean, var, jnp.zeros(())),
        feature_axes=layer.axis,
        momentum=layer.momentum,
        unbiased=False,
        frozen=None if layer.trainable else "all",
    )


def _features(layer: Any) -> Converted:
    axes = tuple(layer.axis)
    return _build(jnn.LayerNorm, layer, reduction_axes=axes, feature_axes=axes)


def _group(layer: Any) -> Converted:
    return _build(jnn.GroupNorm, layer, num_groups=layer.groups, channel_axis=layer.axis)


def _rms(layer: Any) -> Converted:
    axes = tuple(layer.axis)
    options = {"reduction_axes": axes, "feature_axes": axes, "epsilon": layer.epsilon}
    return build(jnn.RMSNorm, _array(layer.scale), dtype=_dtype(layer), **options)


def _unit(layer: Any) -> Converted:
    axes = layer.axis if isinstance(layer.axis, int) else tuple(layer.axis)
    options: dict[str, Any] = {"reduction_axes": axes, "epsilon": 1e-12, "dtype": _dtype(layer)}
    return jnn.ScaleNorm(use_gamma=False, **options), {}


def _build(kind: Any, layer: Any, **options: Any) -> Converted:
    """Builds with what most of Keras's layers have."""
    affine = [None if value is None else _array(value) for value in (layer.gamma, layer.beta)]
    return build(kind, *affine, epsilon=layer.epsilon, dtype=_dtype(layer), **options)


def _dtype(layer: Any) -> jnp.dtype:
    return jnp.dtype(layer.compute_dtype)


def _array(variable: Any) -> jax.Array:
    value = variable.value  # of Keras's backend
    return to_array(value) if hasattr(value, "detach") else jnp.asarray(np.asarray(value))


_CONVERTERS = {
    "BatchNormalization": _batch,
    "LayerNormalization": _features,
    "GroupNormalization": _group,
    "RMSNormalization": _rms,
    "UnitNormalization": _unit,
}
