"""Moments: computed, differentiated, merged, and averaged over time."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
import jaxnorm.linen as jnn
from jaxnorm import Moments
from tests.support.reference import wide

pytestmark = pytest.mark.quickly_compiled


def exact(x, axis, mask=None):
    """Mean, variance and count in float64, of packed elements."""
    x = np.moveaxis(wide(x), axis, -1)
    kept = np.ones(x.shape, bool)
    if mask is not None:
        kept = np.moveaxis(np.broadcast_to(mask, np.moveaxis(x, -1, axis).shape), axis, -1)
    rows = [
        row[keep] if keep.any() else np.zeros(1)
        for row, keep in zip(x.reshape(-1, x.shape[-1]), kept.reshape(-1, x.shape[-1]), strict=True)
    ]
    shape = x.shape[:-1]
    return Moments(
        np.array([r.mean() for r in rows]).reshape(shape),
        np.array([r.var() for r in rows]).reshape(shape),
        kept.sum(-1),
    )


def assert_moments(got, expected, mean_scale=1.0):
    # A float32 mean has 24 bits; the variance is a sum of squares of the exact remainder.
    np.testing.assert_allclose(got.mean, expected.mean, atol=2e-7 * mean_scale, rtol=2e-7)
    np.testing.assert_allclose(got.var, expected.var, rtol=4e-6, atol=4e-6)
    count = np.broadcast_to(got.count, expected.count.shape)
    np.testing.assert_array_equal(count, expected.count)


@pytest.mark.parametrize("mean", [0.0, 1e2, -1e4, 1e6])
def test_moments(mean, rng):
    x = jnp.asarray(rng.normal(mean, 2, (5, 40)), jnp.float32)
    mask = rng.random((5, 40)) < 0.6
    mask[2] = False
    plain, masked = jax.jit(
        lambda x: (jaxnorm.moments(x, axis=1), jaxnorm.moments(x, axis=1, mask=mask))
    )(x)
    assert_moments(plain, exact(x, 1), max(1, abs(mean)))
    assert_moments(masked, exact(x, 1, mask), max(1, abs(mean)))


def test_moments_of_complex_values(rng):
    x = rng.normal(1, 2, (6, 30)) + 1j * rng.normal(-3, 1, (6, 30))
    got = jaxnorm.moments(jnp.asarray(x, jnp.complex64), axis=1)
    assert (got.mean.dtype, got.var.dtype) == (jnp.complex64, jnp.float32)
    assert_moments(got, exact(x.astype(np.complex64), 1), 3.0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_statistics_are_float32(dtype, rng):
    x = rng.normal(100, 1, (8, 3)).astype(dtype)
    both = jax.jit(lambda x: (jaxnorm.moments(x, axis=0), jaxnorm.batch_norm(x, axis=0)[1]))
    for moments in both(x):
        assert [m.dtype for m in moments] == [jnp.float32] * 3
        assert_moments(moments, exact(np.asarray(x, np.float64), 0), 100)


def test_statistics_of_float16_near_its_largest_value():
    # Their sum, and the squares, are beyond float16.
    x = jnp.asarray([6e4, 6e4, -6e4, 5e4] * 4, jnp.float16)
    got = jaxnorm.moments(x, axis=0)
    assert_moments(got, exact(np.asarray(x, np.float64), 0), 6e4)


def test_what_is_masked_reaches_no_statistic(rng):
    x = rng.normal(size=(4, 6)).astype(np.float32)
    mask = rng.random((4, 6)) < 0.5
    mask[0] = False

    @jax.jit
    def statistics(x):
        def loss(x):
            m = jaxnorm.moments(x, axis=1, mask=mask)
            both = m, jaxnorm.batch_norm(x, axis=1, mask=mask)[1]
            return sum(jnp.sum(m.mean + m.var) for m in both), both

        gradient, both = jax.grad(loss, has_aux=True)(x)
        return both, gradient

    clean, _ = statistics(x)
    for poison in (np.nan, np.inf):
        found, gradient = statistics(np.where(mask, x, np.float32(poison)))
        chex.assert_trees_all_equal(found, clean)
        assert np.isfinite(gradient).all() and not np.asarray(gradient)[~mask].any()
    assert all(float(value[0]) == 0 for value in clean[0])


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_gradients(offset, rng):
    x = rng.normal(offset, 2, (3, 20)).astype(np.float32)
    weights = rng.normal(size=(2, 3)).astype(np.float32)

    def loss(x):
        m = jaxnorm.moments(x, axis=1)
        return jnp.sum(weights[0] * m.mean + weights[1] * m.var)

    # d mean / dx = 1 / n and d var / dx = 2 (x - mean) / n.
    centered = wide(x) - wide(x).mean(1, keepdims=True)
    expected = (weights[0][:, None] + 2 * weights[1][:, None] * centered) / 20
    both = jax.jit(lambda x, t: (jax.grad(loss)(x), jax.jvp(loss, (x,), (t,))[1]))
    gradient, tangent = both(x, np.cos(x))
    np.testing.assert_allclose(gradient, expected, atol=2e-6)
    np.testing.assert_allclose(tangent, (expected * np.cos(x)).sum(), atol=2e-5)


def test_moments_keep_only_their_input(rng):
    x = jnp.asarray(rng.normal(size=(64, 128)), jnp.bfloat16)
    _, vjp = jax.vjp(lambda x: jaxnorm.moments(x, axis=0)[:2], x)
    kept = {a.unsafe_buffer_pointer(): a.nbytes for a in jax.tree.leaves(vjp)}
    assert sum(kept.values()) <= 1.05 * x.nbytes + 4 * 4 * 128


def test_constants_have_no_variance():
    for constant in (0.1, 1e15, -3.3e-20):
        x = jnp.full((3, 1000), constant, jnp.float32)
        got = jaxnorm.moments(x, axis=1)
        np.testing.assert_array_equal(got.mean, x[:, 0])
        # At most what a hundredth of the distance between neighbouring values would give.
        assert float(got.var.max()) ** 0.5 <= 0.01 * np.spacing(np.float32(abs(constant)))


@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_merged_in_any_order_equals_the_whole(mean, rng):
    x = rng.normal(mean, 2, (60, 3)).astype(np.float32)
    moments = jax.jit(lambda x: [jaxnorm.moments(p, 0) for p in jnp.split(x, [1, 8, 30])])
    parts = jax.tree.map(np.asarray, moments(x))
    whole = exact(x, 0)
    merge = jax.jit(jaxnorm.merge_moments)
    for order in itertools.permutations(parts):
        merged = merge(*order)
        assert_moments(merged, whole._replace(count=np.full(3, 60)), max(1, mean))
    a, b, c, d = parts
    nested = merge(merge(a, b), merge(c, d))
    assert_moments(nested, whole._replace(count=np.full(3, 60)), max(1, mean))


def test_count_zero_is_neutral_whatever_it_carries(rng):
    zero = np.zeros(3, np.float32)
    nothing = Moments(zero + np.nan, zero + np.inf, zero)

    @jax.jit
    def results(x, nothing):
        def total(x):
            some = jaxnorm.moments(x, axis=0)
            merged = jaxnorm.merge_moments(nothing, some)
            others = jaxnorm.merge_moments(some, nothing), jaxnorm.merge_moments(nothing, nothing)
            return jnp.sum(merged.var), (some, merged, *others)

        return jax.grad(total, has_aux=True)(x)

    gradient, (some, *merged, both) = results(np.float32(rng.normal(size=(7, 3))), nothing)
    for each in merged:
        chex.assert_trees_all_close(each, some._replace(count=zero + 7))
    chex.assert_trees_all_equal(both, Moments(zero, zero, zero))
    assert np.isfinite(gradient).all()


def test_merging_one_gives_it_back(rng):
    one = jaxnorm.moments(jnp.asarray(rng.normal(size=(7, 3)), jnp.float32), axis=0)
    chex.assert_trees_all_equal(jaxnorm.merge_moments(one), one)


def test_update_moves_towards_the_batch():
    running = Moments(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0]), jnp.zeros(2))
    batch = Moments(jnp.array([3.0, 0.0]), jnp.array([2.0, 1.0]), jnp.array([5.0, 0.0]))
    new = jaxnorm.update_moments(running, batch, momentum=0.75)
    # new = 0.75 old + 0.25 batch, the batch's variance times 5 / 4; a count of 0 changes nothing.
    np.testing.assert_allclose(new.mean, [1.5, 2.0])
    np.testing.assert_allclose(new.var, [0.75 + 0.25 * 2.5, 4.0])
    biased = jaxnorm.update_moments(running, batch, momentum=0.75, unbiased=False)
    np.testing.assert_allclose(biased.var, [0.75 + 0.25 * 2.0, 4.0])
    half = Moments(*(m.astype(jnp.bfloat16) for m in running))
    assert [m.dtype for m in jaxnorm.update_moments(half, batch, momentum=0.5)] == [
        jnp.bfloat16
    ] * 3


def test_one_element_leaves_the_running_variance_finite():
    running = Moments(jnp.zeros(2), jnp.ones(2), jnp.zeros(2))
    batch = jaxnorm.moments(jnp.array([[3.0, 4.0]]), axis=0)
    new = jaxnorm.update_moments(running, batch, momentum=0.9)
    assert np.isfinite(new.var).all()


STEPS = 30_000  # rounded weights that do not add up to 1 cost 2e-4 of the variance here


def one_by_one(step, state):
    """Returns the state after single observations, and their mean and variance."""
    data = np.random.default_rng(0).normal(3, 2, (STEPS, 1, 1)).astype(np.float32)
    state, _ = jax.jit(lambda s: jax.lax.scan(lambda s, x: (step(s, x), None), s, data))(state)
    return state, data.astype(np.float64).mean(), data.astype(np.float64).var()


def assert_has_not_drifted(moments, mean, var):
    """Each step rounds by 2^-25 at random, so that many are off by sqrt(STEPS) times that."""
    np.testing.assert_allclose(np.squeeze(moments[0]), mean, rtol=1e-5)
    np.testing.assert_allclose(np.squeeze(moments[1]), var, rtol=1e-5)
    assert np.squeeze(moments[2]) == STEPS


@pytest.mark.parametrize("order", [1, -1])
def test_many_small_sets_merge_without_drift(order):
    def step(state, x):
        return jaxnorm.merge_moments(*(state, jaxnorm.moments(x, axis=0))[::order])

    assert_has_not_drifted(*one_by_one(step, Moments(*jnp.zeros((3, 1)))))


def test_a_stream_of_single_steps_does_not_drift():
    def step(state, x):
        return jaxnorm.cumulative_norm(x[None], axis=-1, initial=state)[1]

    assert_has_not_drifted(*one_by_one(step, Moments(*jnp.zeros((3, 1)))))


def test_an_input_norm_of_single_observations_does_not_drift():
    norm = jnn.InputNorm(use_running_average=False)

    def step(variables, x):
        return norm.apply(variables, x, mutable=["batch_stats"])[1]

    variables, *expected = one_by_one(step, norm.init(jax.random.key(0), jnp.zeros((1, 1))))
    stats = variables["batch_stats"]
    moments = [stats[f"population_{name}"] for name in Moments._fields]
    assert_has_not_drifted(moments, *expected)


def test_a_float32_count_stops_at_2_to_24():
    many = Moments(*map(jnp.float32, (1.0, 2.0, 2.0**24)))
    one = Moments(*map(jnp.float32, (5.0, 0.0, 1.0)))
    for merged in (jaxnorm.merge_moments(many, one), jaxnorm.merge_moments(one, many)):
        chex.assert_trees_all_close(merged, many, rtol=1e-6)
    sets = jaxnorm.merge_moments(Moments(*(jnp.repeat(v, 64) for v in one)), axis=0)
    assert jaxnorm.merge_moments(many, sets).count == 2**24 + 64


def test_infinite_variances_merge():
    inf = Moments(*map(jnp.float32, (0.0, np.inf, 2.0)))
    one = Moments(*map(jnp.float32, (1.0, 2.0, 3.0)))
    for pair in ((inf, one), (one, inf), (inf, inf)):
        assert jaxnorm.merge_moments(*pair).var == np.inf
