"""A stream that is normalized chunk by chunk equals the whole, and no step sees a later one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm

pytestmark = pytest.mark.quickly_compiled


@jax.jit
def whole_and_in_parts(x, mask):
    norm = functools.partial(jaxnorm.cumulative_norm, axis=-1)
    parts, moments = [], None
    for start, stop in ((0, 4), (4, 5), (5, 12)):
        chunk = slice(start, stop)
        y, moments = norm(x[:, chunk], mask=mask[:, chunk], initial=moments)
        parts.append(y)
    exact = jaxnorm.moments(x, (1, 2), mask=mask)
    return norm(x, mask=mask), (jnp.concatenate(parts, 1), moments), exact


@pytest.mark.parametrize("masked", [False, True])
def test_streaming_equals_the_whole(masked, rng):
    x = rng.normal(3, 2, (3, 12, 4)).astype(np.float32)
    mask = rng.random((3, 12, 1)) < (0.5 if masked else 2)
    mask[0, :5] = not masked  # a first chunk of nothing
    (whole, total), (parts, moments), exact = whole_and_in_parts(x, mask)
    np.testing.assert_allclose(parts, whole, atol=4e-6)
    for part, all_at_once in zip(moments, total, strict=True):
        np.testing.assert_allclose(part, all_at_once, atol=2e-6, rtol=2e-6)
    for part, once in zip(total, exact, strict=True):
        np.testing.assert_allclose(part, once, atol=2e-6, rtol=2e-6)


def test_the_future_changes_no_bit(rng):
    x = rng.normal(1e4, 2, (2, 9, 4)).astype(np.float32)
    norm = jax.jit(lambda x: jaxnorm.cumulative_norm(x, axis=2)[0])
    expected = np.asarray(norm(x))[:, :6]
    for later in (np.nan, 3e38, 0.0):
        x[:, 6:] = later
        np.testing.assert_array_equal(np.asarray(norm(x))[:, :6], expected)


def test_over_time_alone_and_with_the_time_on_another_axis(rng):
    x = rng.normal(1, 2, (4, 3, 7)).astype(np.float32)

    @jax.jit
    def results(x):
        moved, _ = jaxnorm.cumulative_norm(jnp.moveaxis(x, -1, 0), axis=(0, -1), time_axis=0)
        first, _ = jaxnorm.cumulative_norm(x, axis=1, time_axis=-1)
        return jaxnorm.cumulative_norm(x, axis=(), time_axis=-1), moved, first

    (y, moments), moved, first = results(x)
    assert moments.mean.shape == moments.var.shape == moments.count.shape == (4, 3)
    for t in (0, 3, 6):
        past = np.asarray(x[..., : t + 1], np.float64)
        expected = (past[..., t] - past.mean(-1)) / np.sqrt(past.var(-1) + 1e-6)
        np.testing.assert_allclose(y[..., t], expected, atol=4e-6)
    np.testing.assert_allclose(np.moveaxis(moved, 0, -1), first, atol=4e-6)


def test_gradients_reach_earlier_moments(rng):
    x = rng.normal(1, 2, (2, 6, 3)).astype(np.float32)
    weight = rng.normal(size=x.shape).astype(np.float32)

    def whole(x):
        return jnp.sum(weight * jaxnorm.cumulative_norm(x, axis=-1, epsilon=0.1)[0])

    def chunks(x):
        first, moments = jaxnorm.cumulative_norm(x[:, :3], axis=-1, epsilon=0.1)
        second, _ = jaxnorm.cumulative_norm(x[:, 3:], axis=-1, epsilon=0.1, initial=moments)
        return jnp.sum(weight * jnp.concatenate([first, second], 1))

    both = jax.jit(lambda x: (jax.grad(chunks)(x), jax.grad(whole)(x)))
    np.testing.assert_allclose(*both(x), atol=1e-5)


def test_initial_that_does_not_fit(rng):
    wrong = jaxnorm.Moments(jnp.zeros(3), jnp.ones(3), jnp.ones(()))
    with pytest.raises(ValueError, match=r"initial.mean of shape \(3,\) does not fit an input of"):
        jaxnorm.cumulative_norm(jnp.ones((2, 4, 5)), axis=-1, initial=wrong)
