"""Contract 1 and 2: exact in float32 whatever the mean, and a constant gives exactly beta."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.contract import registry
from tests.support import programs

MEANS = (0.0, 1.0, -1e2, 1e4, -1e4, 1e6, -1e6)

# The contract's bound: float32 has 24 bits, 6e-8; a result of size 3 passes through about ten
# roundings (shift, remainder, mean of the remainder, root, products).
TOLERANCE = 4e-6


def patterns(rng, pools, size):
    """Names and arrays (pools, size) with a standard deviation of about 1 and mean 0."""
    noise = rng.normal(size=(pools, size))
    yield "normal", noise
    for name, place in (("first", 0), ("middle", size // 2), ("last", size - 1)):
        outlier = noise.copy()
        outlier[:, place] += 1000 * (-1) ** np.arange(pools)
        yield f"outlier {name}", outlier
    yield "ramp", np.linspace(-1.7, 1.7, size) + 0.01 * noise
    yield "two clusters", np.where(np.arange(size) % 2, 1, -1) + 0.1 * noise
    yield "two halves", np.where(np.arange(size) < size // 2, 1, -1) + 0.1 * noise


def place(values, pools, shape):
    """Puts the values (pools, size) at their pools' places in an array of `shape`."""
    x = np.empty(int(np.prod(shape)), np.float32)
    x[pools] = values
    return x.reshape(shape)


def excess(y, expected):
    """The error as a multiple of what the contract allows."""
    allowed = TOLERANCE * max(1, np.abs(expected).max() / 3)
    return float(np.abs(np.asarray(y, np.float64) - expected).max() / allowed)


def assert_exact(y, expected, *case):
    """Asserts that `y` is as near to `expected` as the contract demands."""
    assert y.shape == expected.shape and excess(y, expected) <= 1, (excess(y, expected), *case)


def x_is_small(shape):
    return np.prod(shape) <= 10_000


@registry.paths("exact", ("five", "many"), core=("plain",))
def test_exact_at_every_mean(norm, shape, rng):
    compiled = programs.forward(norm)
    _, gamma, beta, _ = norm.draw(rng, shape)
    pools = norm.pools(shape)
    for name, values in patterns(rng, *pools.shape):
        for mean in MEANS if name == "normal" or x_is_small(shape) else MEANS[3::3]:
            x = place(values + mean, pools, shape)
            y = compiled(x, gamma, beta)
            assert_exact(y, norm.expected(x, gamma, beta), name, mean)


@registry.norms("exact", core=True)
def test_exact_without_jit(norm, rng):
    shape = norm.shapes["five"]
    pools = norm.pools(shape)
    values = dict(patterns(rng, *pools.shape))
    for name, mean in (("normal", 1e6), ("outlier first", -1e4), ("ramp", 1e2)):
        x = place(values[name] + mean, pools, shape)
        with jax.disable_jit():
            y = norm(x)
        assert_exact(y, norm.expected(x), name, mean)
        # Operation by operation and compiled together, the order of roundings may differ.
        assert_exact(norm(x), np.asarray(y, np.float64), name, mean)


@registry.norms("exact")
def test_exact_on_large_arrays(norm, rng):
    # As in training: the program is that whose gradients contract/test_gradients.py compares.
    shape = norm.shapes["large"]
    _, gamma, beta, _ = norm.draw(rng, shape)
    pools = norm.pools(shape)
    values = dict(patterns(rng, *pools.shape))
    for name, mean in (("normal", 1e6), ("outlier last", -1e4), ("two halves", 1e6)):
        x = place(values[name] + mean, pools, shape)
        y = in_training(norm, x, gamma, beta)
        assert_exact(y, norm.expected(x, gamma, beta), name)


@registry.norms("exact")
def test_exact_when_fused_with_neighbours(norm, rng):
    # Whatever XLA fuses the input and the result with, the remainder and its correction must
    # belong together. Multiplying by 2 and taking absolute values are exact.
    def surrounded(x):
        y = norm(x * 2)
        return y, y + 0 * x, jnp.stack([y, jnp.abs(x)]), jnp.exp(-jnp.abs(y)), norm(y)

    shape = norm.shapes["plain"]
    pools = norm.pools(shape)
    compiled = jax.jit(surrounded)
    for name, values in patterns(rng, *pools.shape):
        for mean in MEANS:
            x = place(values + mean, pools, shape)
            y, added, stacked, decayed, twice = map(np.asarray, compiled(x))
            expected = norm.expected(x * 2)
            for each in (y, added, stacked[0]):
                assert_exact(each, expected, name, mean)
            assert_exact(decayed, np.exp(-np.abs(expected)), name, mean)
            if name != "normal" or abs(mean) < 1e4:
                continue
            # The input of the second differs by the error of the first, or is the first's result: a
            # mean that stays in it, large beside its spread, magnifies its rounding.
            inputs = (expected, np.asarray(y, np.float64))
            assert min(excess(twice, norm.expected(given)) for given in inputs) <= 2.5


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((8, 5, 16), 1), ((5, 8, 16), 0), ((3, 5), 0), ((100_003, 3), 0), ((3, 7, 11, 13), (0, 2))],
    ids=str,
)
def test_exact_where_xla_fuses_badly(shape, axis, rng):
    # Shapes at which earlier cores were wrong: XLA contracted the division by the size into the
    # subtraction in one fusion and not in another.
    import jaxnorm
    from tests.support import reference

    axes = axis if isinstance(axis, tuple) else (axis,)
    pools = reference.pools_over(shape, axes)
    compiled = jax.jit(lambda x: jaxnorm.layer_norm(x, axis=axis))
    for mean in MEANS:
        x = place(rng.normal(mean, 1, pools.shape), pools, shape)
        expected = reference.apply_over_pools(
            lambda v: reference.standardized(v, 1e-6), pools, None, x
        )
        assert excess(compiled(x), expected) <= 1


def in_training(norm, x, gamma, beta):
    return programs.derivatives(norm)(x, gamma, beta, None, x)[0]


@registry.paths("constant", ("five", "many", "large"))
def test_constant_gives_exactly_beta(norm, shape, rng):
    pools = norm.pools(shape)
    _, gamma, beta, mask = norm.draw(rng, shape, mask=True)
    compiled = programs.forward(norm)
    if shape == norm.shapes["large"]:
        compiled = functools.partial(in_training, norm)
    # Masked, a size is compiled anyway for what contract/test_masks.py does.
    masked = mask is not None and shape == norm.shapes["five"]
    expected = norm.expected(np.zeros(shape), None if gamma is None else 0 * gamma, beta)
    for constant in (0.0, 1.0, 1 / 3, -1e6 / 7, 1e15, 3.3e-20, -2.7e30):
        per_pool = constant * (1 + rng.random((len(pools), 1)))
        x = place(np.broadcast_to(per_pool, pools.shape), pools, shape)
        y = compiled(x, gamma, beta)
        np.testing.assert_array_equal(y, expected, err_msg=f"constant {constant}")
        if masked:
            y = compiled(x, gamma, beta, mask)
            np.testing.assert_array_equal(y, np.where(mask, expected, 0))
