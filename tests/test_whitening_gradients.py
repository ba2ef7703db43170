"""The derivatives of whitening: their values, under transformations, and what they keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from tests.whitening import METHODS, close, correlated


def orthogonal(m, d):
    """Columns orthogonal to each other and to 1: a covariance of one repeated eigenvalue."""
    grid = np.arange(m)[:, None] * np.arange(1, d + 1)
    return np.sqrt(2) * np.cos(np.pi * (grid + np.arange(1, d + 1) / 2) / m)


def degenerate(rng):
    twins = rng.normal(size=(12, 4))
    return {
        "generic": correlated(rng, 12, 4),
        "repeated eigenvalues": orthogonal(12, 4),
        "fewer examples than units": rng.normal(size=(3, 4)),
        "equal units": np.concatenate([twins[:, :2], twins[:, :2]], 1),
        "constant": np.full((12, 4), 3.0),
        "zero": np.zeros((12, 4)),
    }


@pytest.mark.parametrize("method", METHODS)
def test_derivatives_of_both_orders(method, rng):
    # A large epsilon, so that finite differences see a smooth function everywhere.
    whiten = functools.partial(jaxnorm.whiten, axis=0, epsilon=0.1, method=method)

    def loss(x, weight):
        y, w = whiten(x)
        return jnp.sum(jnp.sin(y) * weight) + jnp.sum(w.mean**2) + jnp.sum(jnp.sin(w.projection))

    @jax.jit
    @jax.vmap
    def derivatives(x, dx, weight):
        def slope(x):
            return jax.jvp(lambda x: loss(x, weight), (x,), (dx,))[1]

        gradient = jax.grad(loss)
        _, forward_over_reverse = jax.jvp(lambda x: gradient(x, weight), (x,), (dx,))
        reverse_over_reverse = jax.grad(lambda x: jnp.sum(gradient(x, weight) * dx))(x)
        second = forward_over_reverse, reverse_over_reverse, jax.grad(slope)(x)
        steps = [x + s * dx for s in (1e-5, -1e-5)]
        values, gradients = ([f(step, weight) for step in steps] for f in (loss, gradient))
        by_steps = [(ahead - behind) / 2e-5 for ahead, behind in (values, gradients)]
        first = slope(x), jnp.sum(gradient(x, weight) * dx)
        return first, second, *by_steps

    cases = degenerate(rng)
    few = cases.pop("fewer examples than units")
    with jax.enable_x64(True):
        for x in (np.stack(list(cases.values())), few[None]):
            dx, weight = rng.normal(size=(2, *x.shape))
            first, second, slope, bend = derivatives(x, dx, weight)
            # Central differences in float64: h^2 = 1e-10 and rounding 1e-16 / h = 1e-11, times the
            # higher derivatives, of order epsilon^-2.
            for value in first:
                np.testing.assert_allclose(value, slope, rtol=1e-6, atol=1e-6)
            for value in second:
                np.testing.assert_allclose(value, bend, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("epsilon", [1e-5, 0.0])
def test_gradients_are_finite_in_float32(method, epsilon, rng):
    def loss(x, weight):
        return jnp.sum(jaxnorm.whiten(x, axis=0, method=method, epsilon=epsilon)[0] * weight)

    @jax.jit
    def derivatives(x, weight):
        gradient, again = jax.jvp(lambda x: jax.grad(loss)(x, weight), (x,), (weight,))
        return gradient, again, jax.jvp(lambda x: loss(x, weight), (x,), (weight,))

    for name, x in degenerate(rng).items():
        for scale in (1.0, 1e-20, 1e3):
            x_ = jnp.asarray(scale * x, jnp.float32)
            weight = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
            for value in jax.tree.leaves(derivatives(x_, weight)):
                assert np.isfinite(value).all(), (name, scale)


def test_gradient_equals_the_one_in_float64(rng):
    values = {
        name: x.astype(np.float32)
        for name, x in degenerate(rng).items()
        if name in ("generic", "repeated eigenvalues", "fewer examples than units")
    }
    weight = rng.normal(size=(12, 4)).astype(np.float32)

    def gradient(x, weight):
        def loss(x):
            return jnp.sum(jnp.sin(jaxnorm.whiten(x, axis=0)[0]) * weight)

        return jax.grad(loss)(x)

    for x in values.values():
        w = weight[: len(x)]
        single = jax.jit(gradient)(x, w)
        with jax.enable_x64(True):
            double = jax.jit(gradient)(x.astype(np.float64), w.astype(np.float64))
            projection = jaxnorm.whiten(x.astype(np.float64), axis=0)[1].projection
        # The gradient is a difference of terms as large as the projection: 316 = 1e-5^(-1/2) in
        # directions without variance.
        np.testing.assert_allclose(single, double, rtol=0, atol=1e-5 * np.abs(projection).max())
    # y does not change when a constant is added to a unit, or when x is rotated and scaled back.
    assert np.abs(np.asarray(single).sum(0)).max() < 1e-4


def test_under_vmap_and_scan_and_remat(rng):
    x = jnp.asarray(correlated(rng, 3, 20, 4), jnp.float32)

    def loss(x):
        return jnp.sum(jnp.sin(jaxnorm.whiten(x, axis=0)[0]))

    looped = jnp.stack([jax.grad(loss)(one) for one in x])
    close(jax.jit(jax.vmap(jax.grad(loss)))(x), looped)
    close(jax.vmap(jax.grad(loss), in_axes=1, out_axes=1)(x.swapaxes(0, 1)).swapaxes(0, 1), looped)
    close(jax.jit(lambda x: jax.lax.map(jax.grad(jax.checkpoint(loss)), x))(x), looped)
    # A kept axis is a vmap.
    close(jax.vmap(lambda x: jaxnorm.whiten(x, axis=0)[0])(x), jaxnorm.whiten(x, axis=1)[0])
    _, tangent = jax.linearize(loss, x[0])
    close(tangent(x[1]), np.sum(looped[0] * x[1]), rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_little_is_kept_for_the_backward_pass(method, rng):
    x = jnp.asarray(correlated(rng, 4000, 16), jnp.bfloat16)
    function = functools.partial(jaxnorm.whiten, axis=0, num_groups=2, method=method)
    _, vjp = jax.vjp(lambda x: function(x)[0], x)
    kept = sum({a.unsafe_buffer_pointer(): a.nbytes for a in jax.tree.leaves(vjp)}.values())
    # Per group of 8 units: a shift and an offset, and a few matrices of 8 x 8.
    assert kept <= 1.05 * x.nbytes + 2 * 4 * (2 * 8 + 8 * 8 * 8)
