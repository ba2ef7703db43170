"""Contract 4: masked equals packed, and what stands under the mask reaches nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from tests.contract import registry
from tests.contract.test_exact import assert_exact
from tests.contract.test_gradients import assert_gradients_close
from tests.support import programs


def masks_of_every_shape(shape, rng):
    """Random masks of all broadcastable shapes: every choice of axes of size 1, and lower ranks."""
    for sizes in itertools.product(*({1, s} for s in shape)):
        yield rng.random(sizes) < 0.7
    for lead in range(1, len(shape) + 1):
        yield rng.random(shape[lead:]) < 0.8


@registry.norms("masks", core=True)
def test_every_broadcastable_mask_equals_packing(norm, rng):
    x, gamma, beta, _ = norm.draw(rng, norm.shapes["five"])
    masks = [np.asarray(m) for m in masks_of_every_shape(x.shape, rng)]

    def with_each(x, masks):
        return [norm(x, gamma, beta, m) for m in masks]

    results = programs.compiled(with_each, quickly=True)(x, masks)
    for mask, y in zip(masks, results, strict=True):
        assert_exact(y, norm.expected(x, gamma, beta, mask), mask.shape)


@registry.paths("masks", ("five",), core=("plain", "large"))
def test_masked_is_exact_at_every_mean(norm, shape, rng):
    for mean in (0.0, -1e4, 1e6):
        x, gamma, beta, mask = norm.draw(rng, shape, mask=True)
        x = x + mean
        y = programs.forward(norm)(x, gamma, beta, mask)
        assert_exact(y, norm.expected(x, gamma, beta, mask), mean)


def derivatives(norm, shape):
    """At "plain" the program that contract/test_transforms.py has, at others one of their own."""
    plain = shape == norm.shapes["plain"]
    return programs.one_of_three(norm) if plain else programs.derivatives(norm, quickly=True)


@registry.paths("masks", ("plain",), core=("large",))
def test_masked_values_and_gradients_equal_the_packed_ones(norm, shape, rng):
    compiled = derivatives(norm, shape)
    for mean in (0.0, -1e4, 1e6):
        x, gamma, beta, mask = norm.draw(rng, shape, mask=True)
        assert_gradients_close(norm, x + mean, gamma, beta, mask, rng, compiled)


@registry.paths("masks", ("plain",), core=("large",))
def test_full_and_empty_masks(norm, shape, rng):
    x, gamma, beta, _ = norm.draw(rng, shape)
    compiled = derivatives(norm, shape)
    dy = np.ones_like(x)
    y, _ = compiled(x, gamma, beta, np.ones(shape, bool), dy)
    assert_exact(y, norm.expected(x, gamma, beta))
    nothing = compiled(x, gamma, beta, np.zeros(shape, bool), dy)
    for value in jax.tree.leaves(nothing):
        np.testing.assert_array_equal(value, np.zeros_like(value))


def assert_blind(compiled, x, gamma, beta, mask, dy, *rest):
    """Asserts that what stands where the mask leaves out changes no bit of any result.

    Returns the results.
    """
    x, dy, mask = map(np.asarray, (x, dy, mask))

    def results(there):
        given = (np.where(mask, v, np.asarray(there, v.dtype)) for v in (x, dy))
        x_there, dy_there = given
        return compiled(x_there, gamma, beta, mask, dy_there, *rest)

    clean = results(0)
    for poison in (np.nan, np.inf, -np.inf, jnp.finfo(x.dtype).max):
        for a, b in zip(*map(jax.tree.leaves, (results(poison), clean)), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
            assert np.isfinite(np.asarray(a, np.float32)).all()
    return clean


@registry.norms("masks")
def test_what_is_masked_reaches_nothing(norm, rng):
    check_blindness(programs.one_of_three(norm), norm, norm.shapes["plain"], jnp.float32, rng)


@registry.norms("masks", core=True)
def test_what_is_masked_reaches_nothing_in_float16(norm, rng):
    compiled = programs.derivatives(norm, quickly=True)
    check_blindness(compiled, norm, norm.shapes["plain"], jnp.float16, rng)


@registry.norms("masks")
def test_what_is_masked_in_large_arrays_reaches_nothing(norm, rng):
    compiled = programs.derivatives(norm, quickly=True)
    check_blindness(compiled, norm, norm.shapes["large"], jnp.bfloat16, rng, jnp.bfloat16)


def check_blindness(compiled, norm, shape, dtype, rng, parameters=jnp.float32):
    x, gamma, beta, mask = norm.draw(rng, shape, dtype, mask=True)
    gamma, beta = (None if p is None else p.astype(parameters) for p in (gamma, beta))
    mask = np.array(mask)
    mask[(0,) * len(shape)] = False
    # One pool is masked altogether.
    mask.reshape(-1)[norm.pools(shape)[-1]] = False
    dy = rng.normal(size=shape).astype(dtype)
    y, (dx, *_) = assert_blind(compiled, x, gamma, beta, mask, dy)
    for value in (y, dx):
        assert not np.asarray(value)[~mask].any()
