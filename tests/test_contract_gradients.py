"""Contract 8: gradients equal the closed form, are finite, and obey the two identities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import registry
from tests.test_contract_dtypes import half_spacing


def gradients(norm, x, gamma, beta, mask, dy, **options):
    """dx, dgamma and dbeta, each None where the function does not take it."""

    def f(x, gamma, beta):
        return norm(x, gamma, beta, mask, **options)

    return jax.vjp(f, x, gamma, beta)[1](dy)


def assert_gradients_close(norm, x, gamma, beta, mask, rng, compiled=None):
    """Compares the gradients of a random projection with the closed form."""
    dy = jnp.asarray(rng.normal(size=x.shape), x.dtype)
    compiled = compiled or jax.jit(functools.partial(gradients, norm))
    got = compiled(x, gamma, beta, mask, dy)
    expected = norm.expected_vjp(x, gamma, beta, mask, dy)
    # dx is the difference of terms as large as g = dy * gamma / sigma, each within the 4e-6 that
    # x_hat is, so its error is measured by the largest g, not by what the difference leaves.
    scale = max(1.0, np.abs(expected[0]).max())
    np.testing.assert_allclose(got[0], expected[0], atol=8e-6 * scale, rtol=0)
    for value, exact in zip(got[1:], expected[1:], strict=True):
        if value is not None:
            # A sum of n terms, each within 4e-6 of its size: the errors add up as a random walk.
            largest = np.abs(dy).max() * max(1.0, np.abs(norm.expected(x, mask=mask)).max())
            terms = x.size / value.size
            np.testing.assert_allclose(value, exact, atol=4e-6 * largest * terms**0.5, rtol=4e-6)


@registry.paths("gradients", ("five", "plain", "large"))
def test_gradients_equal_the_closed_form(norm, shape, rng):
    compiled = jax.jit(functools.partial(gradients, norm))
    for mean in (0.0, 1e3, -1e6):
        x, gamma, beta, _ = norm.draw(rng, shape)
        assert_gradients_close(norm, x + mean, gamma, beta, None, rng, compiled)


@registry.paths("gradients")
def test_gradients_without_parameters(norm, shape, rng):
    x, *_ = norm.draw(rng, shape)
    assert_gradients_close(norm, x, None, None, None, rng)


@registry.paths("gradients", dtypes={"plain": jnp.float16, "large": jnp.bfloat16})
def test_half_precision_gradients_are_accumulated_in_float32(norm, shape, dtype, rng):
    x, gamma, beta, _ = norm.draw(rng, shape, dtype)
    gamma, beta = (None if p is None else p.astype(dtype) for p in (gamma, beta))
    dy = jnp.asarray(rng.normal(size=shape), dtype)
    got = jax.jit(lambda *args: gradients(norm, *args))(x, gamma, beta, None, dy)
    expected = norm.expected_vjp(x, gamma, beta, None, dy)
    for value, exact in zip(got, expected, strict=True):
        if value is not None:
            # A float32 sum rounded once: summed in bfloat16, the parameters' gradients at the
            # large shapes would be wrong in the first digit.
            terms = x.size / value.size
            allowed = half_spacing(exact, dtype) + 2e-5 * terms**0.5
            assert value.dtype == dtype
            assert (np.abs(np.asarray(value, np.float64) - exact) <= allowed).all()


@registry.norms("zero_variance")
@pytest.mark.parametrize("epsilon", [1e-6, 0.0])
def test_finite_at_zero_variance_and_zero_input(norm, epsilon, rng):
    shape = norm.shapes["plain"]
    _, gamma, beta, mask = norm.draw(rng, shape, mask=True)

    @jax.jit
    def derivatives(x, dy):
        def loss(x, gamma, beta, m):
            return jnp.sum(dy * norm(x, gamma, beta, m, epsilon=epsilon) ** 2)

        first = [jax.grad(loss, (0, 1, 2))(x, gamma, beta, m) for m in (None, mask)]
        if not epsilon:
            return first
        second = jax.jvp(jax.grad(loss), (x, gamma, beta, None), (dy, gamma, beta, None))
        return first, second

    dy = jnp.asarray(rng.normal(size=shape), jnp.float32)
    for constant in (0.0, -0.0, 1.0, 1e6, 1e-20, 1e-42):
        for value in jax.tree.leaves(derivatives(jnp.full(shape, constant, jnp.float32), dy)):
            assert np.isfinite(value).all(), constant


@registry.paths("shift", ("large",))
def test_gradient_sums_to_zero(norm, shape, rng):
    # Adding a constant to a pool changes nothing: the gradient is orthogonal to it.
    x, gamma, beta, _ = norm.draw(rng, shape)
    dy = jnp.asarray(rng.normal(size=shape), jnp.float32)
    pools = norm.pools(shape)
    for mean in (0.0, 1e4):
        dx = np.asarray(gradients(norm, x + mean, gamma, beta, None, dy)[0], np.float64)
        dx = dx.reshape(-1)[pools]
        # Each element carries about 1e-6 of the largest; their errors add up as a random walk.
        allowed = 8e-6 * np.abs(dx).max() * pools.shape[1] ** 0.5
        assert np.abs(dx.sum(1)).max() <= allowed


@registry.paths("scale", ("large",))
def test_gradient_is_orthogonal_to_the_normalized_input(norm, shape, rng):
    # Scaling a pool (about its mean) changes nothing, if epsilon is negligible beside the variance.
    x, gamma, beta, _ = norm.draw(rng, shape)
    dy = jnp.asarray(rng.normal(size=shape), jnp.float32)
    pools = norm.pools(shape)
    dx = gradients(norm, x, gamma, beta, None, dy, epsilon=1e-12)[0]
    dx = np.asarray(dx, np.float64).reshape(-1)[pools]
    hat = norm.expected(x, epsilon=1e-12)
    if norm.gamma_offset:
        hat = hat / norm.gamma_offset
    hat = hat.reshape(-1)[pools]
    allowed = 8e-6 * np.abs(dx).max() * np.abs(hat).max() * pools.shape[1] ** 0.5
    assert np.abs((dx * hat).sum(1)).max() <= allowed
