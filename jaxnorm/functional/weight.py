"""Normalizations of weights by their length or their largest singular value."""

from __future__ import annotations

import functools
import math
import operator

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxnorm._core import axes as _axes
from jaxnorm._core import residuals
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.mesh import spec_of, without_explicit_axes
from jaxnorm._core.pool import abs2, compute_dtype, real_dtype
from jaxnorm._core.sums import sum_axes
from jaxnorm.functional import feature


def weight_norm(
    v: ArrayLike,
    g: ArrayLike | None = None,
    *,
    axis: Axes,
    feature_axes: Axes | None = None,
    epsilon: float = 1e-12,
) -> jax.Array:
    """Separates the length of weight vectors from their direction.

    w = g * v / sqrt(sum(|v|^2) + epsilon), with the sum over `axis`, so that the norm of w is |g|
    whatever that of v. With g = sqrt(sum(|v|^2) + epsilon) it gives back v.

    Args:
      v: floating-point or complex array of rank 1 or more; `axis=0` for a dense kernel [in, out],
        `axis=(0, 1, 2)` for a convolution kernel [height, width, in, out].
      g: the norms wanted; has the shape of `v` along `feature_axes`, or the rank of `v`
        (broadcast). Default: 1.
      axis: the axes that the norm is taken over, in any order and sign.
      feature_axes: the axes that g varies along. Default: all that are not in `axis`.
      epsilon: added to the sum of squares.

    Returns:
      The weights, in the shape and dtype of `v`. A vector of zeros stays zero.

    Raises:
      TypeError: `v` has an integer dtype.
      ValueError: an axis is out of range or given twice, g does not fit, or epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> v = jnp.array([[1., 0.], [1., 2.], [1., 0.], [1., 0.]])
      >>> jaxnorm.weight_norm(v, jnp.array([6., 1.]), axis=0).tolist()
      [[3.0, 0.0], [3.0, 1.0], [3.0, 0.0], [3.0, 0.0]]

    Reference: Salimans & Kingma 2016, Weight Normalization, arXiv:1602.07868.
    """
    v = _axes.check_input(v, "v")
    axes = _axes.canonical_axes(axis, v.shape)
    if g is None:
        g = jnp.ones((1,) * v.ndim, real_dtype(v.dtype))
    else:
        g = _axes.expand_parameter(g, v, feature_axes, _axes.other_axes(axes, v.ndim), "g")
    # The length is sqrt(N) times the root mean square.
    count = math.prod(v.shape[a] for a in axes)
    g = g.astype(compute_dtype(g.dtype)) / math.sqrt(count)
    epsilon = _axes.check_epsilon(epsilon) / count
    return feature.rms_norm(v, g, axis=axes, epsilon=epsilon)


def weight_length(v: jax.Array, axes: tuple[int, ...], epsilon: float) -> jax.Array:
    """Returns the g for which `weight_norm` gives back `v`: its norms, without the axes `axes`."""
    wide = v.astype(compute_dtype(v.dtype))
    return jnp.sqrt(jnp.squeeze(sum_axes(abs2(wide), axes), axes) + epsilon)


def spectral_norm(
    w: ArrayLike,
    u: ArrayLike,
    *,
    n_steps: int = 1,
    feature_axes: Axes = -1,
    epsilon: float = 1e-12,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Divides weights by their largest singular value, estimated by power iteration.

    `w` is taken as a matrix W of [all other axes, `feature_axes`]. A step of the iteration is
    v = W u / |W u|, u = W^H v / |W^H v|. Then sigma = |W u| = v^H W u with v = W u / |W u|, where u
    and v are constants for differentiation, as in the paper. Pass the new u to the next call: it
    converges while the weights change slowly.

    Args:
      w: floating-point or complex array of rank 2 or more.
      u: a vector of the shape of `w` along `feature_axes`, not 0; its length does not matter.
      n_steps: how many steps to take; 0 uses `u` as it is.
      feature_axes: the axes of the output units.
      epsilon: vectors and singular values that are not longer are taken as 0, as are those whose
        squares underflow; a matrix of zeros stays zero.

    Returns:
      w / sigma in the shape and dtype of `w`; the new u, of length 1, and sigma, a scalar, in
      float32 or wider.

    Raises:
      TypeError: `w` or `u` has an integer dtype.
      ValueError: `w` has no axis beside `feature_axes`, u does not fit, n_steps or epsilon is
        negative, or an axis is out of range or given twice.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> w = jnp.array([[4., 0.], [0., 1.]])
      >>> y, u, sigma = jaxnorm.spectral_norm(w, jnp.array([1., 1.]), n_steps=20)
      >>> y.tolist(), float(sigma)
      ([[1.0, 0.0], [0.0, 0.25]], 4.0)

    Reference: Miyato, Kataoka, Koyama & Yoshida 2018, Spectral Normalization for Generative
    Adversarial Networks, arXiv:1802.05957.
    """
    w, u = _axes.check_input(w, "w"), _axes.check_input(u, "u")
    features = _axes.canonical_axes(feature_axes, w.shape, "feature_axes")
    if len(features) == w.ndim:
        raise ValueError(
            f"w of shape {w.shape} has no axis beside feature_axes={feature_axes!r}; spectral "
            "norm needs a matrix, with input axes and output axes."
        )
    expected = tuple(w.shape[a] for a in features)
    if u.shape != expected:
        raise ValueError(
            f"u of shape {u.shape} does not fit w of shape {w.shape}: expected {expected}, the "
            f"sizes of feature_axes={feature_axes!r}."
        )
    steps = operator.index(n_steps)
    if steps < 0:
        raise ValueError(f"n_steps must be at least 0, got {n_steps!r}.")
    return _spectral_norm(w, u, features, steps, _axes.check_epsilon(epsilon))


def _product(matrix: jax.Array, vector: jax.Array, axis: int) -> jax.Array:
    """Returns `matrix` times `vector`, summed over `axis` by `jnp.sum`.

    A matrix product adds thousands of numbers in one sequence on CPU, and rounds its factors on
    GPU and TPU; with a single vector it is no faster either.
    """
    return jnp.sum(matrix * jnp.expand_dims(vector, 1 - axis), axis)


@functools.partial(jax.jit, static_argnums=(2, 3, 4), inline=True)
def _spectral_norm(w, u, features, n_steps, epsilon):
    dtype = compute_dtype(w.dtype)
    # Below that squares are not exact, or 0, and derivatives not finite, as the backend has it.
    epsilon = max(epsilon, float(jnp.finfo(dtype).tiny) ** 0.5)

    def as_matrix(w):
        last = jnp.moveaxis(w.astype(dtype), features, range(-len(features), 0))
        return last.reshape(-1, math.prod(w.shape[a] for a in features))

    def unit(x):
        length = jnp.sqrt(jnp.sum(abs2(x)))
        return x / jnp.where(length > epsilon, length, 1).astype(dtype)

    def compute(w, u):
        matrix = as_matrix(lax.stop_gradient(w))
        right = unit(lax.stop_gradient(u).astype(dtype).reshape(-1))

        def step(_, right):
            return unit(_product(matrix.conj(), unit(_product(matrix, right, 1)), 0))

        right = lax.fori_loop(0, n_steps, step, right)
        left = unit(_product(matrix, right, 1))

        @residuals.recomputed
        def divide(w, left, right):
            # Widened once: the gradients of its two uses are added before they are rounded.
            wide = w.astype(dtype)
            sigma = residuals.save(jnp.sum(left.conj() * _product(as_matrix(wide), right, 1)).real)
            y = wide / jnp.where(sigma > epsilon, sigma, 1).astype(dtype)
            return y.astype(w.dtype), sigma

        y, sigma = divide(w, left, right)
        return y, right.reshape(u.shape), sigma

    spec = spec_of(w)
    out = (spec, P(*(spec[a] for a in features)), P())
    return without_explicit_axes(compute, out)(w, u)
