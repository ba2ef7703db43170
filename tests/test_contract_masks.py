"""Contract 4: masked equals packed, and what stands under the mask reaches nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import registry
from tests.test_contract_exact import excess
from tests.test_contract_gradients import assert_gradients_close


def masks_of_every_shape(shape, rng):
    """Random masks of all broadcastable shapes: every choice of axes of size 1, and lower ranks."""
    for sizes in itertools.product(*({1, s} for s in shape)):
        yield rng.random(sizes) < 0.7
    for lead in range(1, len(shape) + 1):
        yield rng.random(shape[lead:]) < 0.8


@registry.norms("masks")
def test_every_broadcastable_mask_equals_packing(norm, rng):
    x, gamma, beta, _ = norm.draw(rng, norm.shapes["five"])
    masks = [np.asarray(m) for m in masks_of_every_shape(x.shape, rng)]
    results = jax.jit(lambda x, masks: [norm(x, gamma, beta, m) for m in masks])(x, masks)
    for mask, y in zip(masks, results, strict=True):
        assert excess(y, norm.expected(x, gamma, beta, mask)) <= 1, mask.shape


@registry.paths("masks")
@pytest.mark.parametrize("mean", [0.0, -1e4, 1e6])
def test_masked_is_exact_at_every_mean(norm, shape, mean, rng):
    x, gamma, beta, mask = norm.draw(rng, shape, mask=True)
    x = x + mean
    y = jax.jit(norm)(x, gamma, beta, mask)
    assert excess(y, norm.expected(x, gamma, beta, mask)) <= 1


@registry.paths("masks")
def test_full_and_empty_masks(norm, shape, rng):
    x, gamma, beta, _ = norm.draw(rng, shape)

    @jax.jit
    def results(x, mask):
        y, vjp = jax.vjp(lambda x, gamma, beta: norm(x, gamma, beta, mask), x, gamma, beta)
        return y, vjp(jnp.ones_like(y))

    y, _ = results(x, np.ones(shape, bool))
    assert excess(y, norm.expected(x, gamma, beta)) <= 1
    nothing = results(x, np.zeros(shape, bool))
    for value in jax.tree.leaves(nothing):
        np.testing.assert_array_equal(value, np.zeros_like(value))


@registry.paths("masks", dtypes={"plain": jnp.float32, "large": jnp.bfloat16})
def test_what_is_masked_reaches_nothing(norm, shape, dtype, rng):
    x, gamma, beta, mask = norm.draw(rng, shape, dtype, mask=True)
    mask = mask.at[(0,) * len(shape)].set(False)
    pools = norm.pools(shape)
    # One pool is masked altogether.
    flat = np.array(mask).reshape(-1)
    flat[pools[-1]] = False
    mask = jnp.asarray(flat.reshape(shape))

    @jax.jit
    def results(x, dy):
        f = lambda x, gamma, beta: norm(x, gamma, beta, mask)  # noqa: E731
        y, vjp = jax.vjp(f, x, gamma, beta)
        _, tangent = jax.jvp(f, (x, gamma, beta), (dy, gamma, beta))
        return y, vjp(dy), tangent

    dy = jnp.asarray(rng.normal(size=shape), dtype)
    clean = results(jnp.where(mask, x, 0), jnp.where(mask, dy, 0))
    for poison in (jnp.nan, jnp.inf, -jnp.inf, jnp.finfo(dtype).max):
        dirty = results(jnp.where(mask, x, poison), jnp.where(mask, dy, poison))
        for a, b in zip(jax.tree.leaves(dirty), jax.tree.leaves(clean), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    y, (dx, *_), tangent = clean
    for value in (y, dx, tangent):
        assert np.isfinite(np.asarray(value, np.float32)).all()
        assert not np.asarray(value)[~np.asarray(mask)].any()


@registry.paths("masks")
def test_masked_gradients_equal_the_packed_ones(norm, shape, rng):
    x, gamma, beta, mask = norm.draw(rng, shape, mask=True)
    assert_gradients_close(norm, x, gamma, beta, mask, rng)


@registry.norms("masks")
def test_second_derivatives_are_blind_to_what_is_masked(norm, rng):
    x, gamma, beta, mask = norm.draw(rng, norm.shapes["five"], mask=True)

    @jax.jit
    def curvature(x):
        loss = lambda x: jnp.sum(norm(x, gamma, beta, mask) ** 3)  # noqa: E731
        return jax.jvp(jax.grad(loss), (x,), (jnp.cos(jnp.arange(x.size)).reshape(x.shape),))[1]

    clean = curvature(jnp.where(mask, x, 0))
    np.testing.assert_array_equal(curvature(jnp.where(mask, x, jnp.nan)), clean)
    assert np.isfinite(clean).all()
