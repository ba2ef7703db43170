"""y for given moments, all arrays at the rank of the input."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._core.formula import apply_affine, full_gamma, inverse_root
from jaxnorm._core.mesh import spec_of, without_explicit_axes
from jaxnorm._core.pool import compute_dtype, real_dtype, widen, zero_masked
from jaxnorm._core.residuals import recomputed


def expand_moment(value, shape, axes, name) -> jax.Array:
    value = jnp.asarray(value)
    kept = tuple(s for a, s in enumerate(shape) if a not in axes)
    if value.shape == kept:
        return jnp.expand_dims(value, tuple(axes))
    if value.ndim == len(shape) and all(
        v in (1, s) for v, s in zip(value.shape, shape, strict=True)
    ):
        return value
    raise ValueError(
        f"{name} of shape {value.shape} does not fit an input of shape {shape} reduced over axes "
        f"{axes}: expected {kept}, or rank {len(shape)} with every size 1 or the input's."
    )


@functools.partial(jax.jit, static_argnums=(6, 7, 8), inline=True)
def standardize_full(x, mean, var, gamma, beta, mask, epsilon, gamma_offset, dtype) -> jax.Array:
    """`standardize` with moments, parameters and mask of the rank of `x`."""
    wide = compute_dtype(x.dtype)
    scales_as_var = gamma is None or np.broadcast_shapes(var.shape, gamma.shape) == var.shape

    def compute(x, mean, var, gamma, beta, mask):
        scale = inverse_root(var.astype(real_dtype(x.dtype)), epsilon).astype(wide)
        if scales_as_var and (gamma is not None or gamma_offset):
            scale = scale * full_gamma(gamma, gamma_offset, wide)
        y = (widen(x, mask) - mean.astype(wide)) * scale
        left = (None, 0.0) if scales_as_var else (gamma, gamma_offset)
        y = apply_affine(y, left[0], beta, left[1])
        return zero_masked(mask, y).astype(dtype)

    # Where the one product over the array is of the input's own size, nothing else is kept.
    if not (scales_as_var and x.dtype == wide):
        compute = recomputed(compute)
    return without_explicit_axes(compute, spec_of(x))(x, mean, var, gamma, beta, mask)
