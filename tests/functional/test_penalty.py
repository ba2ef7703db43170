"""The penalty on activation statistics."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm

pytestmark = pytest.mark.quickly_compiled


def penalty(x, axis):
    """The mean over units of mean^2 + (var - 1)^2, and its gradient, in float64."""
    axis = tuple(np.atleast_1d(axis))
    x = np.asarray(x, np.float64)
    mean, var = x.mean(axis, keepdims=True), x.var(axis, keepdims=True)
    count = x.size / mean.size
    gradient = (2 * mean + 4 * (var - 1) * (x - mean)) / count / mean.size
    return (mean**2 + (var - 1) ** 2).mean(), gradient


@pytest.mark.parametrize("axis", [0, -1, (0, 1), (2, -3), (1, 0, 2)])
def test_value_and_gradient(axis, rng):
    x = jnp.asarray(rng.normal(0.5, 2, (6, 4, 5)), jnp.float32)
    function = functools.partial(jaxnorm.statistics_penalty, axis=axis)
    value, gradient = jax.jit(jax.value_and_grad(function))(x)
    expected, expected_gradient = penalty(x, axis)
    # Statistics within 4e-6, as contract point 1 has them, squared.
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_zero_for_standardized_units_and_only_for_these(rng):
    x = jnp.asarray(rng.normal(3, 2, (50, 4)), jnp.float32)
    y, _ = jaxnorm.batch_norm(x, axis=0, epsilon=0.0)
    function = jax.jit(functools.partial(jaxnorm.statistics_penalty, axis=0))
    assert function(y) < 1e-10
    for moved in (y + 0.1, y * 1.1):
        assert function(moved) > 5e-3


def test_gradient_descent_on_it_standardizes(rng):
    x = jnp.asarray(rng.normal(2, 3, (40, 3)), jnp.float32)
    function = functools.partial(jaxnorm.statistics_penalty, axis=0)

    @jax.jit
    def descend(scale, shift):
        def loss(parameters):
            scale, shift = parameters
            return function(x * scale[None] + shift[None])

        def step(parameters, _):
            gradient = jax.grad(loss)(parameters)
            return jax.tree.map(lambda p, g: p - 0.005 * g, parameters, gradient), None

        return jax.lax.scan(step, (scale, shift), length=3000)[0]

    scale, shift = descend(jnp.ones(3), jnp.zeros(3))
    y = x * scale[None] + shift[None]
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-2)
    np.testing.assert_allclose(y.var(0), 1, atol=1e-2)


def test_masks(rng):
    x = np.asarray(rng.normal(size=(6, 5, 3)), np.float32)
    mask = rng.random((6, 5, 1)) < 0.6
    function = jax.jit(
        jax.value_and_grad(lambda x, m: jaxnorm.statistics_penalty(x, axis=(0, 1), mask=m))
    )
    value, gradient = function(np.where(mask, x, np.nan), mask)
    expected, packed = penalty(x[mask[..., 0]], 0)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient[mask[..., 0]], packed, rtol=1e-5, atol=1e-6)
    assert not np.any(gradient[~mask[..., 0]])
    # Units without elements do not count; without any, nothing is left to penalize.
    units = mask & np.array([True, False, True])
    value, _ = function(np.where(units, x, np.nan), units)
    np.testing.assert_allclose(value, penalty(x[mask[..., 0]][:, [0, 2]], 0)[0], rtol=1e-5)
    value, gradient = function(np.full_like(x, np.nan), mask & False)
    assert value == 0 and not np.any(gradient)


def test_dtypes(rng):
    x = rng.normal(0.5, 2, (64, 4))
    function = functools.partial(jaxnorm.statistics_penalty, axis=0)
    for dtype in (jnp.bfloat16, jnp.float16):
        half = x.astype(dtype)
        value, gradient = jax.jit(jax.value_and_grad(function))(half)
        assert value.dtype == jnp.float32 and gradient.dtype == dtype
        np.testing.assert_allclose(value, penalty(half, 0)[0], rtol=1e-5)
    z = (x + 1j * x[::-1]).astype(np.complex64)
    value = jax.jit(function)(z)
    assert value.dtype == jnp.float32
    mean, var = z.mean(0), z.var(0)
    np.testing.assert_allclose(value, (np.abs(mean) ** 2 + (var - 1) ** 2).mean(), rtol=1e-5)
    with jax.enable_x64(True):
        value = jax.jit(function)(x)
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, penalty(x, 0)[0], rtol=1e-12)


def test_synchronised(rng):
    x = jnp.asarray(rng.normal(0.5, 2, (4, 6, 3)), jnp.float32)
    function = functools.partial(jaxnorm.statistics_penalty, axis=0, axis_name="d")
    values = jax.jit(jax.vmap(function, axis_name="d"))(x)
    np.testing.assert_allclose(values, penalty(x.reshape(24, 3), 0)[0], rtol=1e-5)


def test_errors():
    for call, error, text in (
        (
            functools.partial(jaxnorm.statistics_penalty, jnp.ones((2, 2), jnp.int32), axis=0),
            TypeError,
            "x must have a floating-point or complex dtype, got int32; convert it first, for "
            "example with x.astype(jnp.float32).",
        ),
        (
            functools.partial(jaxnorm.statistics_penalty, jnp.ones((2, 2)), axis=2),
            ValueError,
            "axis=2 is out of range for an input of shape (2, 2): each axis must lie in [-2, 1].",
        ),
    ):
        with pytest.raises(error, match="^" + re.escape(text) + "(\n|$)"):
            call()
