"""Contract 3: statistics in float32 or wider, one cast at the end, every inexact dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import registry
from tests.test_contract_exact import excess, patterns, place

HALF = (jnp.float16, jnp.bfloat16)


def half_spacing(values, dtype):
    """Half the distance between neighbours of `dtype` at `values`: the error of one rounding."""
    info = jnp.finfo(dtype)
    exponent = np.floor(np.log2(np.maximum(np.abs(values), float(info.tiny))))
    return 0.5 * float(info.eps) * 2.0**exponent


def assert_one_rounding(y, exact, dtype):
    """`y` is `exact` (float32 or float64) rounded once, up to a float32's own error."""
    assert y.dtype == dtype
    y, exact = np.asarray(y, np.float64), np.asarray(exact, np.float64)
    # 4e-6 is what contract 1 allows between two float32 evaluations.
    allowed = half_spacing(exact, dtype) + 4e-6 * np.maximum(1, np.abs(exact) / 3)
    assert (np.abs(y - exact) <= allowed).all(), np.abs(y - exact).max()


@registry.norms("dtypes")
@pytest.mark.parametrize("dtype", HALF, ids=lambda d: d.__name__)
def test_half_is_one_rounding_from_float32(norm, dtype, rng):
    shape = norm.shapes["plain"]
    x, gamma, beta, mask = norm.draw(rng, shape, dtype, mask=True)
    small = [p if p is None else p.astype(dtype) for p in (gamma, beta)]

    @jax.jit
    def results(x):
        single = x.astype(jnp.float32)
        return [
            (norm(x, gamma, beta), norm(single, gamma, beta)),
            (norm(x, gamma, beta, mask), norm(single, gamma, beta, mask)),
            (norm(x, *small), norm(single, *small)),
        ]

    for mean in (0.0, 100.0):
        for y, exact in results(x + jnp.asarray(mean, dtype)):
            assert exact.dtype == jnp.float32
            assert_one_rounding(y, exact, dtype)


@registry.norms("dtypes")
def test_float16_near_its_largest_value(norm, rng):
    pools = norm.pools(norm.shapes["plain"])
    count, size = pools.shape
    compiled = jax.jit(norm)
    for values in (
        np.full((count, size), 6e4),
        np.where(rng.random((count, size)) < 0.5, -6e4, 6e4),
        6e4 + 32 * rng.integers(-40, 40, (count, size)),
    ):
        x = place(values, pools, norm.shapes["plain"]).astype(np.float16)
        assert_one_rounding(compiled(x), norm.expected(x), jnp.float16)


@registry.norms("dtypes")
def test_result_dtype_is_that_of_x_or_the_one_given(norm, rng):
    x, gamma, beta, mask = norm.draw(rng, norm.shapes["plain"], jnp.bfloat16, mask=True)
    assert norm(x, gamma, beta, mask).dtype == jnp.bfloat16
    if "dtype" not in norm.takes:
        return
    exact = norm(x, gamma, beta, mask, dtype=jnp.float32)
    assert exact.dtype == jnp.float32
    # The widest result is not cast to bfloat16 on the way.
    assert excess(exact, norm.expected(x, gamma, beta, mask)) <= 1
    single = x.astype(jnp.float32)
    assert_one_rounding(norm(single, gamma, beta, dtype="float16"), norm(single, gamma, beta), "f2")


@registry.norms("dtypes")
def test_gradients_have_the_dtypes_of_their_inputs(norm, rng):
    x, gamma, beta, _ = norm.draw(rng, norm.shapes["plain"], jnp.float16)
    gamma = None if gamma is None else gamma.astype(jnp.bfloat16)

    def loss(x, gamma, beta):
        return jnp.sum(norm(x, gamma, beta).astype(jnp.float32) ** 2)

    given = (x, gamma, beta)
    for value, gradient in zip(given, jax.grad(loss, (0, 1, 2))(*given), strict=True):
        if value is not None:
            assert gradient.dtype == value.dtype and gradient.shape == value.shape


@registry.norms("dtypes")
def test_float64(norm, rng):
    # The reference is evaluated in long double, wider than what it judges on most platforms, and
    # exact enough where it is not: it subtracts the mean of the remainder too.
    with jax.enable_x64(True):
        compiled = jax.jit(norm)
        pools = norm.pools(norm.shapes["plain"])
        for name, values in patterns(rng, *pools.shape):
            for mean in (0.0, 1e2, -1e6):
                x = np.empty(pools.size)
                x[pools] = values + mean
                x = x.reshape(norm.shapes["plain"])
                y = compiled(x)
                assert y.dtype == jnp.float64
                expected = norm.expected(x.astype(np.longdouble))
                # The float32 bound times the ratio of the two roundings, 2^-29.
                allowed = 4e-6 * 2.0**-29 * max(1, np.abs(expected).max() / 3)
                assert np.abs(np.asarray(y) - expected).max() <= allowed, (name, mean)


@registry.norms("complex")
def test_complex(norm, rng):
    shape = norm.shapes["plain"]
    x, gamma, beta, mask = norm.draw(rng, shape, jnp.complex64, mask=True)
    compiled = jax.jit(lambda x, mask: norm(x, gamma, beta, mask))
    for mean in (0.0, 1e4 - 2e4j):
        moved = x + jnp.asarray(mean, x.dtype)
        y = compiled(moved, mask)
        assert y.dtype == jnp.complex64
        expected = norm.expected(moved, gamma, beta, mask)
        assert np.abs(y - expected).max() <= 4e-6 * max(1, np.abs(expected).max() / 3)
    # A real array, given as complex, has the real result.
    real = np.asarray(norm(x.real, gamma, beta, mask))
    np.testing.assert_allclose(compiled(x.real.astype(x.dtype), mask), real, atol=2e-6, rtol=0)
    with jax.enable_x64(True):
        x = np.asarray(x, np.complex128)
        y = jax.jit(norm)(x)
        assert y.dtype == jnp.complex128
        np.testing.assert_allclose(y, norm.expected(x), atol=1e-13)


@registry.norms("complex", variants=False)
def test_complex_gradient_is_that_of_its_parts(norm, rng):
    x, gamma, beta, mask = norm.draw(rng, norm.shapes["plain"], jnp.complex64, mask=True)
    weight = jnp.asarray(rng.normal(size=x.shape), jnp.float32)

    def loss(x):
        y = norm(x, gamma, beta, mask)
        return jnp.sum(weight * (y.real**2 + y.real * y.imag))

    # JAX's gradient of a real function of a complex input is du - i dv.
    gradient = jax.jit(jax.grad(loss))(x)
    du, dv = jax.jit(jax.grad(lambda u, v: loss(jax.lax.complex(u, v)), (0, 1)))(x.real, x.imag)
    np.testing.assert_allclose(gradient, jax.lax.complex(du, -dv), atol=1e-5, rtol=1e-5)
    # And it is the directional derivative, seen from forward mode.
    step = jnp.asarray(rng.normal(size=x.shape) + 1j * rng.normal(size=x.shape), x.dtype)
    _, moved = jax.jvp(loss, (x,), (step,))
    terms = np.asarray(gradient) * np.asarray(step)
    np.testing.assert_allclose(moved, terms.sum().real, atol=1e-6 * np.abs(terms).sum())
