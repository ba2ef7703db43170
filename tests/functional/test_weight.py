"""Weight norm, spectral norm and weight standardization as functions.

The registry holds the first and the last to the contract; here is what it does not reach.
"""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm
from jaxnorm.functional.weight import weight_length

pytestmark = pytest.mark.quickly_compiled

SHAPE = (3, 4, 2, 5)


def as_matrices(w, axes):
    """`w` in float64 as (units, inputs), and the way back."""
    w = np.asarray(w, np.float64)
    axes = sorted(a % w.ndim for a in np.atleast_1d(axes))
    kept = [a for a in range(w.ndim) if a not in axes]
    order = [*kept, *axes]
    moved = w.transpose(order)
    size = int(np.prod([w.shape[a] for a in axes]))

    def back(m):
        return m.reshape(moved.shape).transpose(np.argsort(order))

    return moved.reshape(-1, size), back


def weight_norm(m, g, epsilon):
    """Salimans & Kingma 2016, equation 2, over the last axis."""
    return g * m / np.sqrt((m**2).sum(-1, keepdims=True) + epsilon)


def standardized(m, epsilon):
    """Qiao et al. 2019, equations 7 and 8."""
    return (m - m.mean(-1, keepdims=True)) / np.sqrt(m.var(-1, keepdims=True) + epsilon)


# Bounds of float32 results of order 1: contract point 1 allows 4e-6.
close = functools.partial(np.testing.assert_allclose, rtol=0, atol=4e-6)


@pytest.mark.parametrize("axis", [0, -1, (0, 1, 2), (2, -4), (-2, 1, 0), (3, 0, 2, 1)])
def test_values_over_any_axes(axis, rng):
    w = jnp.asarray(rng.normal(0.3, 2, SHAPE), jnp.float32)
    m, back = as_matrices(w, axis)
    kept = [a for a in range(4) if a not in [b % 4 for b in np.atleast_1d(axis)]]
    g = rng.normal(size=[SHAPE[a] for a in kept])
    flat, gain = g.reshape(-1, 1), jnp.asarray(g, jnp.float32)
    full = jnp.expand_dims(gain, [a for a in range(4) if a not in kept])

    @jax.jit
    def results(w):
        calls = (
            jaxnorm.weight_norm,
            jaxnorm.weight_standardize,
            jaxnorm.scaled_weight_standardize,
        )
        return [[f(w, p, axis=axis, epsilon=1e-3) for p in (None, gain, full)] for f in calls]

    by_norm, by_variance, scaled = results(w)
    n = m.shape[-1]
    for values, expected in (
        (by_norm, weight_norm(m, 1.0, 1e-3)),
        (by_variance, standardized(m, 1e-3)),
        (scaled, standardized(m, 1e-3 / n) / np.sqrt(n)),
    ):
        close(values[0], back(expected))
        close(values[1], back(expected * flat))
        close(values[2], back(expected * flat))


def test_weight_norm_separates_length_and_direction(rng):
    v = rng.normal(size=(6, 3)).astype(np.float32)
    g = np.array([2.0, -0.5, 0.0], np.float32)
    # Three roundings of 6e-8 relative each, in the norm and in the weights.
    length = np.linalg.norm(np.asarray(jaxnorm.weight_norm(v, g, axis=0), np.float64), axis=0)
    np.testing.assert_allclose(length, np.abs(g), rtol=3e-7)
    by_feature = jaxnorm.weight_norm(
        v, np.arange(3, dtype=np.float32), axis=1, feature_axes=1, epsilon=0.0
    )
    expected = np.asarray(v, np.float64) / np.linalg.norm(v, axis=1, keepdims=True)
    close(by_feature, expected * np.arange(3.0))


def test_g_equal_to_the_length_gives_back_the_weights(rng):
    v = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)

    def function(v, axis):
        return jaxnorm.weight_norm(v, weight_length(v, axis, 1e-12), axis=axis)

    axes = (0,), (1, 2), (0, 1, 2)
    # Some four float32 operations lie between v and the result, each wrong by 6e-8 at most.
    for result in (function(v, axes[0]), *jax.jit(lambda v: [function(v, a) for a in axes])(v)):
        np.testing.assert_allclose(result, v, rtol=3e-7)


def test_zero_weights_stay_zero_with_finite_gradients():
    w = np.zeros((4, 3), np.float32)
    functions = (
        functools.partial(jaxnorm.weight_norm, axis=0),
        functools.partial(jaxnorm.weight_standardize, axis=0),
        functools.partial(jaxnorm.scaled_weight_standardize, axis=0),
        lambda w, epsilon: jaxnorm.spectral_norm(w, jnp.ones(3), epsilon=epsilon)[0],
    )

    @jax.jit
    def run(w):
        results = []
        for function, epsilon in itertools.product(functions, (0.0, 1e-12)):
            y, pull = jax.vjp(functools.partial(function, epsilon=epsilon), w)
            results.append((y, *pull(jnp.ones_like(y))))
        return results

    for y, gradient in run(w):
        np.testing.assert_array_equal(y, w)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_spectral_norm_in_half_precision(dtype, rng):
    w, u = jnp.asarray(rng.normal(size=(8, 4)), dtype), jnp.ones(4)

    def function(w):
        y, u_, sigma = jaxnorm.spectral_norm(w, u, n_steps=3)
        return jnp.sum(y.astype(jnp.float32) ** 2), (y, u_, sigma)

    gradient, (y, new, sigma) = jax.jit(jax.grad(function, has_aux=True))(w)
    _, (wide, wide_new, wide_sigma) = jax.jit(function)(np.asarray(w, np.float32))
    assert y.dtype == gradient.dtype == dtype and new.dtype == sigma.dtype == jnp.float32
    # One rounding of the float32 result, and no other.
    np.testing.assert_array_equal(np.asarray(y), np.asarray(wide.astype(dtype)))
    close(new, wide_new)
    np.testing.assert_allclose(sigma, wide_sigma, rtol=1e-6)


def test_complex_spectral_norm(rng):
    w = (rng.normal(size=(8, 4)) + 1j * rng.normal(size=(8, 4))).astype(np.complex64)
    y, u, sigma = jaxnorm.spectral_norm(w, jnp.ones(4, jnp.complex64), n_steps=100)
    assert sigma.dtype == jnp.float32 and u.dtype == jnp.complex64
    np.testing.assert_allclose(sigma, np.linalg.svd(w)[1][0], rtol=1e-5)
    close(y, w / np.asarray(sigma))


def test_spectral_norm_in_float64(rng):
    with jax.enable_x64(True):
        w = rng.normal(size=(8, 4))
        y, u, sigma = jaxnorm.spectral_norm(w, jnp.ones(4), n_steps=300)
        assert {y.dtype, u.dtype, sigma.dtype} == {jnp.dtype("float64")}
        np.testing.assert_allclose(sigma, np.linalg.svd(w)[1][0], rtol=1e-13)


def iterate(m, u, n_steps):
    """Power iteration (Miyato et al. 2018, algorithm 1); ends with the matching v."""
    for _ in range(n_steps):
        v = m @ u
        v /= np.linalg.norm(v)
        u = m.T @ v
        u /= np.linalg.norm(u)
    v = m @ u / np.linalg.norm(m @ u)
    return u, v, v @ m @ u


@pytest.mark.parametrize(("feature_axes", "n_steps"), [(-1, 1), (-2, 3), ((1, -1), 2), (0, 0)])
def test_spectral_norm_equals_power_iteration(feature_axes, n_steps, rng):
    w = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    axes = [a % 4 for a in np.atleast_1d(feature_axes)]
    rows = [a for a in range(4) if a not in axes]
    u = rng.normal(size=[SHAPE[a] for a in axes])
    u /= np.linalg.norm(u)
    m = np.asarray(w, np.float64).transpose(rows + axes).reshape(-1, u.size)
    right, left, sigma = iterate(m, u.reshape(-1), n_steps)

    def back(m):
        shape = [SHAPE[a] for a in rows + axes]
        return m.reshape(shape).transpose(np.argsort(rows + axes))

    def function(w, u):
        return jaxnorm.spectral_norm(w, u, n_steps=n_steps, feature_axes=feature_axes)

    y, pull, (new, s) = jax.vjp(
        lambda w: (lambda y, *rest: (y, rest))(*function(w, jnp.asarray(u, jnp.float32))),
        w,
        has_aux=True,
    )
    close(y, back(m / sigma))
    close(new, right.reshape(u.shape))
    np.testing.assert_allclose(s, sigma, rtol=1e-6)
    # d(W / sigma) = dW / sigma - W / sigma^2 v^T dW u: u and v are constants (their equation 12).
    dy = rng.normal(size=m.shape)
    expected = (dy - (dy * m).sum() / sigma * np.outer(left, right)) / sigma
    close(pull(jnp.asarray(back(dy), jnp.float32))[0], back(expected))


def test_spectral_norm_reaches_the_largest_singular_value(rng):
    w = jnp.asarray(rng.normal(size=(3, 3, 16, 32)), jnp.float32)
    largest = np.linalg.svd(np.asarray(w, np.float64).reshape(-1, 32))[1][0]
    u = jnp.ones(32)
    step = jax.jit(jaxnorm.spectral_norm)
    for _ in range(60):
        y, u, sigma = step(w, u)
    np.testing.assert_allclose(sigma, largest, rtol=1e-2)
    y, u, sigma = jaxnorm.spectral_norm(w, u, n_steps=500)
    np.testing.assert_allclose(sigma, largest, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.svd(np.reshape(y, (-1, 32)))[1][0], 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(u), 1, rtol=1e-6)


def test_spectral_norm_under_vmap_and_jvp(rng):
    w = jnp.asarray(rng.normal(size=(3, 6, 4)), jnp.float32)
    u = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)

    @jax.jit
    def both(w, u):
        alone = [jaxnorm.spectral_norm(*each) for each in zip(w, u, strict=True)]
        return jax.vmap(jaxnorm.spectral_norm)(w, u), [
            jnp.stack(a) for a in zip(*alone, strict=True)
        ]

    for all_, each in zip(*both(w, u), strict=True):
        close(all_, each)

    def function(w):
        return jaxnorm.spectral_norm(w, u[0])[0]

    # Forward and reverse mode are transposes of each other.
    dw, dy = rng.normal(size=(2, 6, 4)).astype(np.float32)

    @jax.jit
    def moves(w):
        return jax.jvp(function, (w,), (dw,))[1], jax.vjp(function, w)[1](dy)[0]

    moved, pulled = map(np.asarray, moves(np.asarray(w)[0]))
    np.testing.assert_allclose(np.sum(moved * dy), np.sum(pulled * dw), rtol=1e-4)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_sharded_weights(kind, rng):
    w = jnp.asarray(rng.normal(size=(3, 8, 16)), jnp.float32)
    u = jnp.asarray(rng.normal(size=16), jnp.float32)

    def function(w, u):
        def loss(w):
            y, new, sigma = jaxnorm.spectral_norm(w, u, n_steps=2)
            normed = jaxnorm.weight_norm(w, axis=(0, 1))
            return jnp.sum(jnp.sin(y) * normed), (y, new, sigma, normed)

        return jax.value_and_grad(loss, has_aux=True)(w)

    expected = jax.jit(function)(w, u)
    mesh = jax.make_mesh((8,), ("model",), (kind,))
    with jax.set_mesh(mesh):
        for spec in (P(None, None, "model"), P(None, "model", None)):
            split = jax.device_put(w, NamedSharding(mesh, spec))
            results = jax.jit(function)(split, jax.device_put(u, NamedSharding(mesh, P())))
            jax.tree.map(close, results, expected)
            for divided in (results[0][1][0], results[1]):
                assert divided.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)


def raises(error, message):
    # JAX may add a note on its own line.
    return pytest.raises(error, match="^" + re.escape(message) + "(\n|$)")


def test_errors():
    w = jnp.ones((3, 4))
    both = (jaxnorm.weight_norm, jaxnorm.weight_standardize, jaxnorm.scaled_weight_standardize)
    for function, names in zip(both, (("v", "g"), ("w", "gain"), ("w", "gain")), strict=True):
        with raises(
            TypeError,
            f"{names[0]} must have a floating-point or complex dtype, got int32; convert it "
            f"first, for example with {names[0]}.astype(jnp.float32).",
        ):
            function(jnp.ones((3, 4), jnp.int32), axis=0)
        with raises(
            ValueError,
            "axis=2 is out of range for an input of shape (3, 4): each axis must lie in [-2, 1].",
        ):
            function(w, axis=2)
        with raises(
            ValueError,
            f"{names[1]} of shape (3,) does not fit an input of shape (3, 4): expected (4,), the "
            "sizes of the feature axes (1,) in ascending order, or rank 2 with every size 1 or the "
            "input's, or one value of rank 0. Pass feature_axes to say which axes "
            f"{names[1]} varies along.",
        ):
            function(w, jnp.ones(3), axis=0)
        with raises(ValueError, "epsilon must be finite and at least 0, got -1."):
            function(w, axis=0, epsilon=-1)
    with raises(
        ValueError,
        "u of shape (3,) does not fit w of shape (3, 4): expected (4,), the sizes of "
        "feature_axes=-1.",
    ):
        jaxnorm.spectral_norm(w, jnp.ones(3))
    with raises(
        ValueError,
        "w of shape (4,) has no axis beside feature_axes=-1; spectral norm needs a matrix, with "
        "input axes and output axes.",
    ):
        jaxnorm.spectral_norm(jnp.ones(4), jnp.ones(4))
    with raises(ValueError, "n_steps must be at least 0, got -1."):
        jaxnorm.spectral_norm(w, jnp.ones(4), n_steps=-1)
