"""The derivatives of whitening: their values, under transformations, and what they keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from tests.techniques.whitening import METHODS, close, correlated, zca

pytestmark = pytest.mark.quickly_compiled


def orthogonal(m, d):
    """Columns orthogonal to each other and to 1: a covariance of one repeated eigenvalue."""
    grid = np.arange(m)[:, None] * np.arange(1, d + 1)
    return np.sqrt(2) * np.cos(np.pi * (grid + np.arange(1, d + 1) / 2) / m)


def degenerate(rng):
    twins, few = rng.normal(size=(12, 4)), rng.normal(size=(3, 4))
    return {
        "generic": correlated(rng, 12, 4),
        "repeated eigenvalues": orthogonal(12, 4),
        # Of the covariance and the gradients of the three, in the shape of the others.
        "fewer examples than units": np.repeat(few, 4, 0),
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
            return jax.jvp(lambda x: loss(x, weight), (x,), (dx,))

        gradient = jax.grad(loss)
        at, forward_over_reverse = jax.jvp(lambda x: gradient(x, weight), (x,), (dx,))
        reverse_over_reverse = jax.grad(lambda x: jnp.sum(gradient(x, weight) * dx))(x)
        (_, along), pull = jax.vjp(slope, x)
        (reverse_over_forward,) = pull((0.0 * along, jnp.ones_like(along)))
        steps = jnp.stack([x + 1e-5 * dx, x - 1e-5 * dx])
        values, gradients = jax.vmap(jax.value_and_grad(loss), (0, None))(steps, weight)
        by_steps = [(ahead - behind) / 2e-5 for ahead, behind in (values, gradients)]
        second = forward_over_reverse, reverse_over_reverse, reverse_over_forward
        return (along, jnp.sum(at * dx)), second, *by_steps

    x = np.stack(list(degenerate(rng).values()))
    dx, weight = rng.normal(size=(2, *x.shape))
    with jax.enable_x64(True):
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
    @jax.vmap
    def derivatives(x, weight):
        gradient, again = jax.jvp(lambda x: jax.grad(loss)(x, weight), (x,), (weight,))
        return gradient, again, jax.jvp(lambda x: loss(x, weight), (x,), (weight,))

    names, cases = zip(*degenerate(rng).items(), strict=True)
    for scale in (1.0, 1e-20, 1e3):
        x = (scale * np.stack(cases)).astype(np.float32)
        results = derivatives(x, rng.normal(size=x.shape).astype(np.float32))
        for value in jax.tree.leaves(results):
            for name, each in zip(names, np.asarray(value), strict=True):
                assert np.isfinite(each).all(), (name, scale)


def test_gradient_equals_the_one_in_float64(rng):
    cases = degenerate(rng)
    values = [cases["generic"], cases["repeated eigenvalues"], rng.normal(size=(3, 4))]
    weight = rng.normal(size=(12, 4)).astype(np.float32)

    @jax.jit
    def gradient(x, weight):
        def loss(x):
            return jnp.sum(jnp.sin(jaxnorm.whiten(x, axis=0)[0]) * weight)

        return jax.grad(loss)(x)

    for x in (value.astype(np.float32) for value in values):
        w = weight[: len(x)]
        single = gradient(x, w)
        with jax.enable_x64(True):
            double = gradient(x.astype(np.float64), w.astype(np.float64))
        projection = zca(x.astype(np.float64))[2]
        # The gradient is a difference of terms as large as the projection: 316 = 1e-5^(-1/2) in
        # directions without variance.
        np.testing.assert_allclose(single, double, rtol=0, atol=1e-5 * np.abs(projection).max())
    # y does not change when a constant is added to a unit, or when x is rotated and scaled back.
    assert np.abs(np.asarray(single).sum(0)).max() < 1e-4


def test_under_vmap_and_scan_and_remat(rng):
    x = correlated(rng, 3, 20, 4).astype(np.float32)

    def loss(x):
        return jnp.sum(jnp.sin(jaxnorm.whiten(x, axis=0)[0]))

    gradient = jax.grad(loss)

    @jax.jit
    def transformed(x):
        mapped = jax.vmap(gradient, in_axes=1, out_axes=1)(x.swapaxes(0, 1)).swapaxes(0, 1)
        scanned = jax.lax.map(jax.grad(jax.checkpoint(loss)), x)
        # A kept axis is a vmap.
        by_vmap = jax.vmap(lambda x: jaxnorm.whiten(x, axis=0)[0])(x)
        kept = jaxnorm.whiten(x, axis=1)[0]
        tangent = jax.linearize(loss, x[0])[1](x[1])
        return (jax.vmap(gradient)(x), mapped, scanned), (by_vmap, kept), tangent

    alone = jax.jit(gradient)
    looped = np.stack([alone(one) for one in x])
    gradients, values, tangent = transformed(x)
    for each in gradients:
        close(each, looped)
    close(*values)
    close(tangent, np.sum(looped[0] * x[1]), rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_little_is_kept_for_the_backward_pass(method, rng):
    x = jnp.asarray(correlated(rng, 4000, 16), jnp.bfloat16)
    function = functools.partial(jaxnorm.whiten, axis=0, num_groups=2, method=method)
    _, vjp = jax.vjp(lambda x: function(x)[0], x)
    kept = sum({a.unsafe_buffer_pointer(): a.nbytes for a in jax.tree.leaves(vjp)}.values())
    # Per group of 8 units: a shift and an offset, and a few matrices of 8 x 8.
    assert kept <= 1.05 * x.nbytes + 2 * 4 * (2 * 8 + 8 * 8 * 8)
