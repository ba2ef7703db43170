"""Weights that a style scales, and that are made unit length again."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.pool import compute_dtype
from jaxnorm._core.residuals import recomputed
from jaxnorm.functional.weight import weight_norm


def demodulate(
    w: ArrayLike,
    style: ArrayLike | None = None,
    *,
    axis: Axes,
    style_axis: int = -2,
    epsilon: float = 1e-8,
) -> jax.Array:
    """Scales the inputs of weights by a style, then gives each output unit length 1.

    y = s w / sqrt(sum(|s w|^2) + epsilon), with the sum over `axis`: what instance norm would do to
    the results of a convolution, if its inputs were white noise.

    Args:
      w: floating-point or complex array of rank 1 or more; `axis=(0, 1, 2)` for a convolution
        kernel [height, width, in, out].
      style: one factor for each input, or a batch of them: [..., in]. Default: 1.
      axis: the axes that the norm is taken over, in any order and sign.
      style_axis: the axis of the inputs.
      epsilon: added to the sum of squares.

    Returns:
      The weights in the dtype of `w`, in its shape, or with the batch axes of the style before.

    Raises:
      TypeError: `w` or `style` has an integer dtype.
      ValueError: an axis is out of range or given twice, the style does not fit, or epsilon is
        negative.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> w, style = jnp.array([[1.], [1.]]), jnp.array([[3., 4.], [1., 0.]])
      >>> jaxnorm.demodulate(w, style, axis=0).round(3).tolist()
      [[[0.6000000238418579], [0.800000011920929]], [[1.0], [0.0]]]

    Reference: Karras et al. 2020, Analyzing and Improving the Image Quality of StyleGAN,
    arXiv:1912.04958.
    """
    w = _axes.check_input(w, "w")
    axes = _axes.canonical_axes(axis, w.shape)
    if style is None:
        return weight_norm(w, axis=axes, epsilon=epsilon)
    style = _axes.check_input(style, "style")
    inputs = _axes.canonical_axis(style_axis, w.shape, "style_axis")
    if style.shape[-1] != w.shape[inputs]:
        raise ValueError(
            f"style of shape {style.shape} must have {w.shape[inputs]} factors on its last axis, "
            f"one for each input on axis {inputs} of w of shape {w.shape}."
        )
    behind = tuple(a - w.ndim for a in axes)
    return _demodulate(w, style, behind, inputs, _axes.check_epsilon(epsilon))


@functools.partial(jax.jit, static_argnums=(2, 3, 4), inline=True)
def _demodulate(w, style, axes, inputs, epsilon):
    @recomputed
    def compute(w, style):
        wide = compute_dtype(w.dtype)
        batch = style.shape[:-1]
        place = [1] * w.ndim
        place[inputs] = w.shape[inputs]
        factors = style.astype(wide).reshape(*batch, *place)
        product = jnp.expand_dims(w.astype(wide), tuple(range(len(batch)))) * factors
        return weight_norm(product, axis=axes, epsilon=epsilon).astype(w.dtype)

    return compute(w, style)
