"""Functions of single elements that take a norm's place, and norms joined to an activation."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.flags import check_flag
from jaxnorm._core.formula import Options, apply_affine, inverse_root
from jaxnorm._core.mesh import spec_of, without_explicit_axes
from jaxnorm._core.plan import PORTABLE
from jaxnorm._core.pool import Pool, abs2, compute_dtype, real_dtype, widen, zero_masked
from jaxnorm._core.residuals import recomputed, save
from jaxnorm._core.statistics import local_count, mean_square
from jaxnorm.functional._arguments import check_real
from jaxnorm.functional._length import largest


def dynamic_tanh(
    x: ArrayLike,
    alpha: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    feature_axes: Axes = -1,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Squashes each element, in place of layer norm.

    y = tanh(alpha * x) * gamma + beta. Nothing is pooled: what layer norm does to most elements of
    a trained transformer, a learned slope and a soft limit do, too.

    Args:
      x: floating-point or complex array of rank 1 or more.
      alpha: the slope, which the paper starts at 0.5; has the sizes of `x` along `feature_axes` in
        ascending order, or the rank of `x` (broadcast), or rank 0.
      gamma: scale; like `alpha`.
      beta: offset; like `alpha`.
      feature_axes: the axes that alpha, gamma and beta vary along.
      dtype: of the result; default: that of `x`.

    Returns:
      An array in the shape of `x`.

    Raises:
      TypeError: `x` or `dtype` is of integers.
      ValueError: an axis is out of range or given twice, or alpha, gamma or beta does not fit.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> jaxnorm.dynamic_tanh(jnp.array([0., 1., 100.]), 0.5, 2.0).round(3).tolist()
      [0.0, 0.9240000247955322, 2.0]

    Reference: Zhu, Chen, He, LeCun & Liu 2025, Transformers without Normalization,
    arXiv:2503.10622.
    """
    x = _axes.check_input(x)
    return _squash(jnp.tanh, x, alpha, None, gamma, beta, feature_axes, dtype)


def dynamic_erf(
    x: ArrayLike,
    alpha: ArrayLike,
    shift: ArrayLike = 0.0,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    feature_axes: Axes = -1,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Squashes each element by the error function, in place of layer norm.

    y = erf(alpha * x + shift) * gamma + beta. Nothing is pooled.

    Args:
      x: floating-point array of rank 1 or more.
      alpha: the slope, which the paper starts at 0.5; has the sizes of `x` along `feature_axes` in
        ascending order, or the rank of `x` (broadcast), or rank 0.
      shift: added before; like `alpha`.
      gamma: scale; like `alpha`.
      beta: offset; like `alpha`.
      feature_axes: the axes that alpha, shift, gamma and beta vary along.
      dtype: of the result; default: that of `x`.

    Returns:
      An array in the shape of `x`.

    Raises:
      TypeError: `x` or `dtype` is of integers, or `x` is complex.
      ValueError: an axis is out of range or given twice, or a parameter does not fit.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> jaxnorm.dynamic_erf(jnp.array([0., 1., 100.]), 0.5, 0.0, 2.0).round(3).tolist()
      [0.0, 1.0410000085830688, 2.0]

    Reference: Chen et al. 2025, Stronger Normalization-Free Transformers, arXiv:2512.10938.
    """
    x = check_real(x, "the error function is that of a real number")
    return _squash(jax.lax.erf, x, alpha, shift, gamma, beta, feature_axes, dtype)


def _squash(function, x, alpha, shift, gamma, beta, feature_axes, dtype):
    features = _axes.canonical_axes(feature_axes, x.shape, "feature_axes")
    given = {"alpha": alpha, "shift": shift, "gamma": gamma, "beta": beta}
    expanded = {
        name: _axes.expand_parameter(value, x, features, features, name)
        for name, value in given.items()
        if value is not None
    }
    return _squashed(x, expanded, function, _axes.result_dtype(x, dtype))


@functools.partial(jax.jit, static_argnums=(2, 3), inline=True)
def _squashed(x, parameters, function, dtype):
    @recomputed
    def compute(x, parameters):
        wide = widen(x, None)
        alpha, shift = parameters["alpha"], parameters.get("shift")
        inner = apply_affine(wide, alpha, shift, 0.0)
        y = apply_affine(function(inner), parameters.get("gamma"), parameters.get("beta"), 0.0)
        return y.astype(dtype)

    return compute(x, parameters)


def poly_norm(
    x: ArrayLike,
    weights: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-6,
    mask: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """A polynomial of normalized powers, which is an activation and a norm in one.

    y = weights[0] * n(x^3) + weights[1] * n(x^2) + weights[2] * n(x) + bias, with
    n(u) = u / sqrt(mean(|u|^2) + epsilon) over `axis`.

    Args:
      x: floating-point or complex array of rank 1 or more.
      weights: three numbers, of the cube, the square and `x` itself; the paper starts at 1 / 3.
      bias: of rank 0.
      axis: the axes pooled, in any order and sign.
      epsilon: added to each mean square.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      dtype: of the result; default: that of `x`.

    Returns:
      An array in the shape of `x`.

    Raises:
      TypeError: `x` or `dtype` is of integers, or `mask` is not boolean.
      ValueError: weights or bias has another shape, an axis is out of range or given twice, the
        mask does not fit, or epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([1., -1., 1., -1.])
      >>> jaxnorm.poly_norm(x, jnp.array([1., 2., 4.]), 0.5, epsilon=0.0).tolist()
      [7.5, -2.5, 7.5, -2.5]

    Reference: Zhuo et al. 2024, Polynomial Composition Activations, arXiv:2411.03884.
    """
    x = _axes.check_input(x)
    axes = _axes.canonical_axes(axis, x.shape)
    weights = jnp.asarray(weights)
    if weights.shape != (3,):
        raise ValueError(
            f"weights must have shape (3,), for the cube, the square and x, got {weights.shape}."
        )
    if bias is not None:
        bias = jnp.asarray(bias)
        if bias.ndim:
            raise ValueError(f"bias must be a single number, of rank 0, got shape {bias.shape}.")
    mask = _axes.expand_mask(mask, x)
    epsilon, dtype = _axes.check_epsilon(epsilon), _axes.result_dtype(x, dtype)
    return _poly_norm(x, weights, bias, mask, axes, epsilon, dtype)


@functools.partial(jax.jit, static_argnums=(4, 5, 6), inline=True)
def _poly_norm(x, weights, bias, mask, axes, epsilon, dtype):
    def compute(x, weights, bias, mask):
        wide = compute_dtype(x.dtype)
        pool, real = Pool(axes), real_dtype(x.dtype)

        @recomputed
        def combine(x, weights, bias):
            # In units of the largest, if that is large: its sixth power would be infinite.
            unit = jnp.maximum(largest(widen(x, mask), axes), 1)
            part = widen(x, mask) / unit.astype(wide)
            count = jnp.maximum(local_count(part, mask, pool), 1)
            square, factors = abs2(part), []
            for power in (3, 2, 1):
                total = pool.sum(square**power)
                var = save(total / count + epsilon * (1 / unit) ** (2 * power))
                factors.append(inverse_root(var, 0.0).astype(wide))
            # By Horner's rule: no power is an array of its own.
            y = jnp.zeros_like(part)
            for weight, factor in zip(weights.astype(wide), factors, strict=True):
                y = part * (y + factor * weight)
            y = y if bias is None else y + bias.astype(wide)
            return zero_masked(mask, y).astype(dtype)

        return combine(x, weights.astype(real if not jnp.iscomplexobj(weights) else wide), bias)

    return without_explicit_axes(compute, spec_of(x))(x, weights, bias, mask)


def gated_rms_norm(
    x: ArrayLike,
    gate: ArrayLike,
    gamma: ArrayLike | None = None,
    *,
    group_size: int | None = None,
    norm_before_gate: bool = False,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.silu,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """RMS norm of a gated input, or gated RMS norm, as in state space models.

    y = v / sqrt(mean(|v|^2) + epsilon) * gamma with v = x * activation(gate), or with
    `norm_before_gate` y = x / sqrt(mean(|x|^2) + epsilon) * gamma * activation(gate). The mean is
    over `axis`, or over groups of neighbouring features there. All in float32 or wider.

    Args:
      x: floating-point or complex array of rank 1 or more.
      gate: an array in the shape of `x`.
      gamma: scale; has the sizes of `x` along `axis` in ascending order (the last axis for a gamma
        of rank 1 where `axis` has several), or the rank of `x` (broadcast), or rank 0.
      group_size: features of a group; default: all. Needs a single axis.
      norm_before_gate: whether the gate multiplies the normalized input.
      activation: of the gate, a function of arrays.
      axis: the axes pooled, in any order and sign.
      epsilon: added to the mean square.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, in the shape of `x`.

    Raises:
      TypeError: `x`, `gate` or `dtype` is of integers.
      ValueError: the gate has another shape, groups do not divide the features or `axis` has
        several, an axis is out of range or given twice, gamma does not fit, or epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x, gate = jnp.array([3., -3., 2., 2.]), jnp.array([1., 1., 2., -2.])
      >>> jaxnorm.gated_rms_norm(x, gate, group_size=2, activation=abs, epsilon=0.0).tolist()
      [1.0, -1.0, 1.0, 1.0]

    Reference: Dao & Gu 2024, Transformers are SSMs (Mamba-2), arXiv:2405.21060.
    """
    x, gate = _axes.check_input(x), _axes.check_input(gate, "gate")
    if gate.shape != x.shape:
        raise ValueError(f"gate of shape {gate.shape} must have the shape of the input, {x.shape}.")
    axes = _axes.canonical_axes(axis, x.shape)
    groups = None if group_size is None else _count_groups(group_size, axes, x.shape)
    gamma = _axes.expand_parameter(gamma, x, None, axes, "gamma")
    options = Options(
        Pool(axes), _axes.check_epsilon(epsilon), _axes.result_dtype(x, dtype), center=False
    )
    if groups is not None:
        options = options._replace(pool=Pool((), (axes[0], groups)))
    return _gated_rms_norm(
        x, gate, gamma, options, check_flag(norm_before_gate, "norm_before_gate"), activation
    )


def _count_groups(group_size, axes, shape) -> int:
    size = _axes.check_int(group_size, "group_size")
    if len(axes) != 1:
        raise ValueError(f"group_size={group_size!r} needs a single axis, got {axes}.")
    features = shape[axes[0]]
    if size < 1 or features % size:
        raise ValueError(
            f"group_size={group_size!r} does not divide the {features} features on axis {axes[0]} "
            f"of the input of shape {shape}; choose a divisor of {features}."
        )
    return features // size


@functools.partial(jax.jit, static_argnums=(3, 4, 5), inline=True)
def _gated_rms_norm(x, gate, gamma, options: Options, norm_before_gate, activation):
    def compute(x, gate, gamma):
        @recomputed
        def normalize(x, gate, gamma):
            opened = activation(gate.astype(compute_dtype(gate.dtype)))
            wide = widen(x, None)
            value = wide if norm_before_gate else wide * opened.astype(wide.dtype)
            # In everyday operations: a primitive would need the product as an array.
            stats, _ = mean_square(value, None, options.pool, PORTABLE)
            scale = inverse_root(save(stats.var), options.epsilon).astype(value.dtype)
            y = apply_affine(
                value * options.pool.broadcast_to_input(scale, x.shape), gamma, None, 0.0
            )
            y = y * opened.astype(y.dtype) if norm_before_gate else y
            return y.astype(options.dtype)

        return normalize(x, gate, gamma)

    return without_explicit_axes(compute, spec_of(x))(x, gate, gamma)
