"""One number for the mean in half precision: right to half a unit of the result."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxnorm import batch_norm, group_norm, layer_norm
from tests.support.plans import PLANS, plan_of, planned_as

DTYPES = [jnp.bfloat16, jnp.float16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]


def draw(dtype, size, mean, rng):
    """Rows around a mean of so many deviations; the last is constant but for one element."""
    x = (rng.standard_normal((6, size)) + mean).astype(dtype)
    x[-1] = x.dtype.type(mean + 1)
    x[-1, size // 3] += np.spacing(x[-1, 0])
    return x


def expect(x, epsilon):
    wide = x.astype(np.float64)
    deviations = wide - wide.mean(-1, keepdims=True)
    return deviations / np.sqrt(wide.var(-1, keepdims=True) + epsilon)


def assert_half_a_unit(y, expected):
    """Of the largest result in each row, and what ten roundings in float32 add."""
    y, dtype = np.asarray(y), y.dtype
    largest = np.abs(expected).max(-1, keepdims=True)
    unit = np.spacing(largest.astype(dtype)).astype(np.float64)
    assert (np.abs(y.astype(np.float64) - expected) <= unit / 2 + 4e-6 * largest).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("size", [96, 5000])
def test_half_a_unit_at_every_mean(dtype, size, rng):
    norm = jax.jit(functools.partial(layer_norm, epsilon=1e-12))
    columns = jax.jit(lambda x: batch_norm(x, axis=0, epsilon=1e-12)[0])
    largest = float(ml_dtypes.finfo(dtype).max)
    for mean in (0.0, *(2.0**power for power in range(7, 12))):
        if mean * 1.5 > largest:
            continue
        x = draw(dtype, size, mean, rng)
        expected = expect(x, 1e-12)
        assert_half_a_unit(norm(x), expected)
        assert_half_a_unit(np.asarray(columns(x.T)).T, expected)


@pytest.mark.parametrize("plan", PLANS)
def test_half_a_unit_on_every_platform(plan, rng):
    with planned_as(plan_of(plan)):
        norm = jax.jit(functools.partial(layer_norm, epsilon=1e-12))
        groups = jax.jit(lambda x: group_norm(x, num_groups=1, axis=(1,), epsilon=1e-12))
        for mean in (0.0, 2.0**7, 2.0**11):
            x = draw(jnp.bfloat16, 768, mean, rng)
            assert_half_a_unit(norm(x), expect(x, 1e-12))
            assert_half_a_unit(groups(x.reshape(6, 96, 8)).reshape(6, 768), expect(x, 1e-12))


def test_a_wide_result_of_half_precision_has_the_mean_in_two_parts(rng):
    x = draw(jnp.bfloat16, 5000, 2.0**11, rng)[:-1]
    y = jax.jit(functools.partial(layer_norm, dtype=jnp.float32))(x)
    np.testing.assert_allclose(y, expect(x, 1e-6), atol=4e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_one_number_is_kept_for_the_mean(dtype):
    """For the backward pass: beside x and gamma the mean and the variance of each row."""
    x, gamma = jnp.ones((8, 64), dtype), jnp.ones(64)

    def kept(x, gamma):
        return jax.tree.leaves(jax.vjp(layer_norm, x, gamma)[1])

    shapes = sorted(leaf.shape for leaf in jax.eval_shape(kept, x, gamma) if leaf.size == 8)
    assert len(shapes) == 2
