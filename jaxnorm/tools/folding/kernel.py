"""A batch norm in evaluation as part of the linear layer before it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike
from jaxnorm._core.moments import Moments
from jaxnorm._core.pool import compute_dtype


def fold_kernel(
    kernel: ArrayLike,
    bias: ArrayLike | None,
    moments: Moments,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    epsilon: float,
    feature_axis: int = -1,
) -> tuple[jax.Array, jax.Array]:
    """Computes the kernel and bias of a linear layer with a batch norm behind it.

    scale = gamma / sqrt(var + epsilon), kernel * scale, (bias - mean) * scale + beta. Gradients
    flow to everything.

    Args:
      kernel: of a dense layer or convolution, of any groups and dilation.
      bias: of shape (features,), or None for 0.
      moments: the running mean and variance, of shape (features,).
      gamma: of shape (features,), or None for 1.
      beta: of shape (features,), or None for 0.
      epsilon: of the batch norm.
      feature_axis: the axis of the kernel that the output's features lie along.

    Returns:
      The new kernel and bias, in the dtype of the kernel, computed in float32 or wider.

    Raises:
      ValueError: sizes do not fit, `feature_axis` is out of range, or `epsilon` is negative.
      TypeError: the kernel has an integer dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm import Moments, tools
      >>> moments = Moments(jnp.array([1.]), jnp.array([4.]), jnp.array([8.]))
      >>> kernel, bias = tools.fold_kernel(jnp.array([[6.]]), None, moments, epsilon=0.0)
      >>> kernel.tolist(), bias.tolist()
      ([[3.0]], [-0.5])
    """
    kernel = _axes.check_input(kernel, "kernel")
    axis = _axes.canonical_axis(feature_axis, kernel.shape, "feature_axis")
    if epsilon < 0:
        raise ValueError(f"epsilon must not be negative, got {epsilon!r}.")
    dtype = compute_dtype(kernel.dtype)
    features = (kernel.shape[axis],)
    mean, var = moments.mean, moments.var
    given = {"bias": bias, "moments.mean": mean, "moments.var": var, "gamma": gamma, "beta": beta}
    for name, value in given.items():
        if value is not None and jnp.shape(value) != features:
            raise ValueError(
                f"{name} has shape {jnp.shape(value)}, expected {features}: the kernel of shape "
                f"{kernel.shape} has that many features along feature_axis={feature_axis}."
            )

    def wide(value, missing):
        return jnp.asarray(missing if value is None else value).astype(dtype)

    var = jnp.asarray(var).astype(compute_dtype(jnp.asarray(var).dtype))
    scale = wide(gamma, 1) * jax.lax.rsqrt(var + epsilon).astype(dtype)
    shift = (wide(bias, 0) - wide(mean, 0)) * scale + wide(beta, 0)
    other = tuple(a for a in range(kernel.ndim) if a != axis)
    folded = wide(kernel, 1) * jnp.expand_dims(scale, other)
    return folded.astype(kernel.dtype), shift.astype(kernel.dtype)
