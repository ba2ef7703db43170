"""Each check of the contract fails when what it checks is broken, in that alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.contract import registry
from tests.contract import test_dtypes as dtypes
from tests.contract import test_errors as errors
from tests.contract import test_exact as exact
from tests.contract import test_gradients as gradients
from tests.contract import test_masks as masks
from tests.contract import test_memory as memory
from tests.contract import test_transforms as transforms
from tests.core import test_sharding

(NORM,) = (norm for norm in registry.NORMS if norm.name == "layer_norm")


def zero_of(value):
    """0, whose derivatives are those of `value`."""
    return value - jax.lax.stop_gradient(value)


def one_pass(f, x, **given):
    """E[x^2] - E[x]^2, by as much as the variance of that is off."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(-1, keepdims=True)
    var = (wide * wide).mean(-1, keepdims=True) - mean * mean
    off = jnp.sqrt(jnp.abs(var) / jnp.maximum(wide.var(-1, keepdims=True), 1e-30))
    return f(x, **given) * off.astype(x.dtype)


def beta_too_late(f, x, gamma=None, beta=None, **given):
    """The affine folded into one product and one sum, as inference does it."""
    mean = x.mean(-1, keepdims=True)
    scale = f(x, gamma, **given) / jnp.where(x == mean, 1, x - mean)
    return x * jnp.where(scale == 0, 1, scale) - mean * jnp.where(scale == 0, 1, scale)


def mask_ignored(f, x, mask=None, **given):
    return f(x, **given)


def masked_value_leaks(f, x, mask=None, **given):
    return f(x, mask=mask, **given) + (0 if mask is None else 0 * x)


def masked_derivatives_leak(f, x, mask=None, **given):
    y = f(x, mask=mask, **given)
    return y if mask is None else y + jnp.where(mask, 0 * x * x * x, 0)


def gradient_of_x(f, x, **given):
    return f(x, **given) + zero_of(jnp.asarray(0.01, x.dtype) * x)


def gradient_of_gamma(f, x, gamma=None, **given):
    return f(x, None if gamma is None else jax.lax.stop_gradient(gamma), **given)


def curvature(f, x, **given):
    return f(x, **given) + zero_of(x) ** 2


def second_rounding(f, x, **given):
    y = f(x, **given)
    return y.astype(jnp.bfloat16).astype(y.dtype) if x.dtype in HALF else y


HALF = (jnp.float16, jnp.bfloat16)


def sums_in_half(f, x, gamma=None, beta=None, **given):
    if x.dtype not in HALF or beta is None:
        return f(x, gamma, beta, **given)
    # beta's gradient is added up row by row, in its own dtype.
    rows = jax.lax.scan(lambda b, _: (b, b), beta, None, length=x.shape[0])[1]
    return f(x, gamma, **given) + rows


def dtype_of_result(f, x, **given):
    return f(x, **given).astype(jnp.float32)


def dtype_ignored(f, x, dtype=None, **given):
    y = f(x, **given)
    return y if dtype is None else y.astype(dtype)


def infinite_slope(f, x, **given):
    return f(x, **given) + 0 * jnp.sqrt(x.var(-1, keepdims=True))


def more_kept(f, x, **given):
    y = f(x, **given)
    return y + zero_of(0 * jnp.sin(x)).astype(y.dtype)


def any_epsilon(f, x, epsilon, **given):
    return f(x, epsilon=abs(np.nan_to_num(epsilon)), **given)


def any_dtype(f, x, **given):
    return f(x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32), **given)


def any_mask(f, x, mask=None, **given):
    return f(x, mask=None if mask is None else mask != 0, **given)


def any_gamma(f, x, gamma=None, **given):
    return f(x, None if gamma is None else gamma.ravel()[: x.shape[-1]], **given)


def size_needed(f, x, **given):
    return f(x, **given) if x.shape[0] > 7 else 1 * f(x, **given)


def gathered(f, x, **given):
    everywhere = jax.NamedSharding(test_sharding.mesh(), P())
    return f(jax.lax.with_sharding_constraint(x, everywhere), **given)


def resharded(f, x, **given):
    return jax.sharding.reshard(f(x, **given), P(*[None] * x.ndim))


# Each defect, and the checks that must see it.
DEFECTS = {
    one_pass: [
        (exact.test_exact_at_every_mean, "five"),
        (exact.test_exact_on_large_arrays,),
    ],
    beta_too_late: [
        (exact.test_constant_gives_exactly_beta, "five"),
        (exact.test_constant_gives_exactly_beta, "large"),
    ],
    mask_ignored: [
        (gradients.test_without_parameters_and_epsilon,),
        (masks.test_masked_is_exact_at_every_mean, "five"),
        (masks.test_masked_values_and_gradients_equal_the_packed_ones, "plain"),
        (masks.test_full_and_empty_masks, "plain"),
        (transforms.test_first_and_second_derivatives,),
        (dtypes.test_half_is_rounded_once,),
    ],
    masked_value_leaks: [(masks.test_what_is_masked_reaches_nothing,)],
    masked_derivatives_leak: [
        (masks.test_what_is_masked_reaches_nothing,),
        (transforms.test_first_and_second_derivatives,),
    ],
    gradient_of_x: [
        (gradients.test_gradients_equal_the_closed_form, "large"),
        (gradients.test_without_parameters_and_epsilon,),
        (masks.test_masked_values_and_gradients_equal_the_packed_ones, "plain"),
        (gradients.test_half_precision_gradients,),
        (gradients.test_gradient_sums_to_zero,),
        (gradients.test_gradient_is_orthogonal_to_the_normalized_input,),
        (transforms.test_vmap_of_grad_and_grad_of_vmap,),
        (transforms.test_first_and_second_derivatives,),
        (transforms.test_remat_and_scan_over_layers,),
        (transforms.test_export_with_a_symbolic_batch_size,),
        (dtypes.test_complex,),
    ],
    gradient_of_gamma: [
        (gradients.test_gradients_equal_the_closed_form, "large"),
        (transforms.test_vmap_of_grad_and_grad_of_vmap,),
        (transforms.test_first_and_second_derivatives,),
        (transforms.test_remat_and_scan_over_layers,),
    ],
    curvature: [(transforms.test_first_and_second_derivatives,)],
    second_rounding: [
        (dtypes.test_half_is_rounded_once,),
    ],
    sums_in_half: [(gradients.test_half_precision_gradients,)],
    dtype_of_result: [
        (dtypes.test_dtypes_of_results_and_gradients,),
        (dtypes.test_half_is_rounded_once,),
    ],
    dtype_ignored: [(dtypes.test_float16_near_its_largest_value,)],
    infinite_slope: [
        (gradients.test_finite_at_zero_variance_and_zero_input,),
        (gradients.test_without_parameters_and_epsilon,),
    ],
    more_kept: [
        (memory.test_only_the_input_and_statistics_are_kept,),
        (memory.test_what_runs_holds_what_its_program_hands_over,),
        (memory.test_little_is_kept_with_a_mask_in_every_dtype,),
    ],
    any_epsilon: [(errors.test_epsilon_that_makes_no_sense, -1e-6)],
    any_dtype: [(errors.test_integer_input, np.int32)],
    any_mask: [(errors.test_mask_that_is_not_boolean,)],
    any_gamma: [(errors.test_parameter_that_does_not_fit, "gamma")],
    size_needed: [(transforms.test_export_with_a_symbolic_batch_size,)],
    gathered: [(test_sharding.test_sharded_jit_of_what_composes_the_core, 0)],
    resharded: [(test_sharding.test_explicit_mesh_axes_of_what_composes_the_core, 0)],
}
# What JAX refuses before the check sees a result.
BY_JAX = {
    dtype_of_result: (ValueError, "unexpected JAX type"),
    resharded: (ValueError, "unexpected JAX type"),
    size_needed: (Exception, "Symbolic dimension comparison"),
}
CASES = [(defect, *case) for defect, cases in DEFECTS.items() for case in cases]


@pytest.mark.parametrize(
    ("defect", "check", "options"),
    [(defect, check, options) for defect, check, *options in CASES],
    ids=[f"{defect.__name__}-{check.__name__}" for defect, check, *_ in CASES],
)
def test_a_check_fails_of_a_defect(defect, check, options, rng):
    options = [NORM.shapes.get(o, o) if isinstance(o, str) else o for o in options]
    names = check.__code__.co_varnames[: check.__code__.co_argcount]
    given = {"rng": rng} if names[-1] == "rng" else {}
    error, text = BY_JAX.get(defect, ((AssertionError, pytest.fail.Exception), None))
    with pytest.raises(error, match=text):
        check(broken(defect), *options, **given)


@functools.cache
def broken(defect):
    """The entry with a defect, the same for all checks: these share its programs."""
    return dataclasses.replace(NORM, function=functools.partial(defect, NORM.function))
