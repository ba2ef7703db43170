"""A stream that is normalized chunk by chunk equals the whole, and no step sees a later one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm


@pytest.mark.parametrize("masked", [False, True])
def test_streaming_equals_the_whole(masked, rng):
    x = jnp.asarray(rng.normal(3, 2, (3, 12, 4)), jnp.float32)
    mask = jnp.asarray(rng.random((3, 12, 1)) < 0.5) if masked else jnp.ones((3, 12, 1), bool)
    mask = mask.at[0, :5].set(not masked)  # a first chunk of nothing
    norm = lambda x, mask, m=None: jaxnorm.cumulative_norm(x, axis=-1, mask=mask, initial=m)  # noqa: E731
    whole, total = norm(x, mask)
    parts, moments = [], None
    for start, stop in ((0, 4), (4, 5), (5, 12)):
        y, moments = norm(x[:, start:stop], mask[:, start:stop], moments)
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=4e-6)
    for part, all_at_once in zip(moments, total, strict=True):
        np.testing.assert_allclose(part, all_at_once, atol=2e-6, rtol=2e-6)
    exact = jaxnorm.moments(x, (1, 2), mask=mask)
    for part, once in zip(total, exact, strict=True):
        np.testing.assert_allclose(part, once, atol=2e-6, rtol=2e-6)


def test_the_future_changes_no_bit(rng):
    x = jnp.asarray(rng.normal(1e4, 2, (2, 9, 4)), jnp.float32)
    norm = jax.jit(lambda x: jaxnorm.cumulative_norm(x, axis=2)[0])
    for later in (jnp.nan, 3e38, 0.0):
        np.testing.assert_array_equal(norm(x.at[:, 6:].set(later))[:, :6], norm(x)[:, :6])


def test_over_time_alone_and_with_the_time_on_another_axis(rng):
    x = jnp.asarray(rng.normal(1, 2, (4, 3, 7)), jnp.float32)
    y, moments = jaxnorm.cumulative_norm(x, axis=(), time_axis=-1)
    assert moments.mean.shape == moments.var.shape == moments.count.shape == (4, 3)
    for t in (0, 3, 6):
        past = np.asarray(x[..., : t + 1], np.float64)
        expected = (past[..., t] - past.mean(-1)) / np.sqrt(past.var(-1) + 1e-6)
        np.testing.assert_allclose(y[..., t], expected, atol=4e-6)
    moved, _ = jaxnorm.cumulative_norm(jnp.moveaxis(x, -1, 0), axis=(0, -1), time_axis=0)
    first, _ = jaxnorm.cumulative_norm(x, axis=1, time_axis=-1)
    np.testing.assert_allclose(jnp.moveaxis(moved, 0, -1), first, atol=4e-6)


def test_gradients_reach_earlier_moments(rng):
    x = jnp.asarray(rng.normal(1, 2, (2, 6, 3)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=x.shape), jnp.float32)

    def whole(x):
        return jnp.sum(weight * jaxnorm.cumulative_norm(x, axis=-1, epsilon=0.1)[0])

    def chunks(x):
        first, moments = jaxnorm.cumulative_norm(x[:, :3], axis=-1, epsilon=0.1)
        second, _ = jaxnorm.cumulative_norm(x[:, 3:], axis=-1, epsilon=0.1, initial=moments)
        return jnp.sum(weight * jnp.concatenate([first, second], 1))

    np.testing.assert_allclose(jax.grad(chunks)(x), jax.grad(whole)(x), atol=1e-5)


def test_initial_that_does_not_fit(rng):
    wrong = jaxnorm.Moments(jnp.zeros(3), jnp.ones(3), jnp.ones(()))
    with pytest.raises(ValueError, match=r"initial.mean of shape \(3,\) does not fit an input of"):
        jaxnorm.cumulative_norm(jnp.ones((2, 4, 5)), axis=-1, initial=wrong)
