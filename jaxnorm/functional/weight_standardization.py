"""Weight standardization: the weights of each output unit get a fixed mean and variance."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.pool import compute_dtype, real_dtype
from jaxnorm.functional import feature


def weight_standardize(
    w: ArrayLike,
    gain: ArrayLike | None = None,
    *,
    axis: Axes,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-5,
) -> jax.Array:
    """Gives the weights of each output unit mean 0 and variance 1.

    y = (w - mean) / sqrt(var + epsilon) * gain, with the mean and the biased variance over `axis`.

    Args:
      w: floating-point or complex array of rank 1 or more; `axis=(0, 1, 2)` for a convolution
        kernel [height, width, in, out].
      gain: has the shape of `w` along `feature_axes`, or the rank of `w` (broadcast).
      axis: the axes pooled, in any order and sign: all inputs of an output unit.
      feature_axes: the axes that gain varies along. Default: all that are not in `axis`.
      epsilon: added to the variance.

    Returns:
      The standardized weights, in the shape and dtype of `w`.

    Raises:
      TypeError: `w` has an integer dtype.
      ValueError: an axis is out of range or given twice, gain does not fit, or epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> w = jnp.array([[1., 10.], [3., 30.]])
      >>> jaxnorm.weight_standardize(w, axis=0, epsilon=0.0).tolist()
      [[-1.0, -1.0], [1.0, 1.0]]

    Reference: Qiao, Wang, Liu, Shen & Yuille 2019, Micro-Batch Training with Batch-Channel
    Normalization and Weight Standardization, arXiv:1903.10520.
    """
    w, gain, axes = _check_weights(w, gain, axis, feature_axes)
    return feature.layer_norm(w, gain, axis=axes, epsilon=epsilon)


def scaled_weight_standardize(
    w: ArrayLike,
    gain: ArrayLike | None = None,
    *,
    axis: Axes,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-6,
) -> jax.Array:
    """Gives the weights of each output unit mean 0 and length 1, which preserves variance.

    y = (w - mean) / sqrt(N var + epsilon) * gain, with the mean and the biased variance over the N
    weights in `axis`. Inputs of variance 1 then give outputs of variance gain^2.

    Args:
      w: floating-point or complex array of rank 1 or more; `axis=(0, 1, 2)` for a convolution
        kernel [height, width, in, out].
      gain: has the shape of `w` along `feature_axes`, or the rank of `w` (broadcast). To undo the
        shrinking by an activation, multiply it by that one's gain, sqrt(2 / (1 - 1 / pi)) for relu.
      axis: the axes pooled, in any order and sign: all inputs of an output unit.
      feature_axes: the axes that gain varies along. Default: all that are not in `axis`.
      epsilon: added to N var. The authors' implementation has a floor of 1e-4 in its place, which
        is the same for any weights but tiny ones.

    Returns:
      The standardized weights, in the shape and dtype of `w`.

    Raises:
      TypeError: `w` has an integer dtype.
      ValueError: an axis is out of range or given twice, gain does not fit, or epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> w = jnp.array([[1., 10.], [3., 30.], [1., 10.], [3., 30.]])
      >>> jaxnorm.scaled_weight_standardize(w, axis=0, epsilon=0.0).tolist()
      [[-0.5, -0.5], [0.5, 0.5], [-0.5, -0.5], [0.5, 0.5]]

    Reference: Brock, De & Smith 2021, Characterizing signal propagation to close the performance
    gap in unnormalized ResNets, arXiv:2101.08692.
    """
    w, gain, axes = _check_weights(w, gain, axis, feature_axes)
    count = math.prod(w.shape[a] for a in axes)
    # Dividing gain and epsilon by N leaves one normalization to do, the exact one.
    gain = jnp.ones((1,) * w.ndim, real_dtype(w.dtype)) if gain is None else gain
    gain = gain.astype(compute_dtype(gain.dtype))
    epsilon = _axes.check_epsilon(epsilon) / count
    return feature.layer_norm(w, gain / math.sqrt(count), axis=axes, epsilon=epsilon)


def _check_weights(w, gain, axis, feature_axes):
    w = _axes.check_input(w, "w")
    axes = _axes.canonical_axes(axis, w.shape)
    if gain is not None:
        kept = _axes.other_axes(axes, w.ndim)
        gain = _axes.expand_parameter(gain, w, feature_axes, kept, "gain")
    return w, gain, axes
