"""Each way of finding statistics, also of data that it is not made for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm import batch_norm, layer_norm
from jaxnorm._core.formula import Options
from jaxnorm._core.normalize import forward
from jaxnorm._core.plan import Plan
from jaxnorm._core.pool import Pool
from jaxnorm._core.statistics import compute_statistics
from tests.contract.test_exact import TOLERANCE, excess
from tests.support.plans import counted_passes, plan_of, planned_as

WAYS = {
    "shifted": Plan("shifted", one_device=True),
    "sampled_shift": Plan("sampled_shift", one_device=True),
    "two_pass": Plan("two_pass", one_device=True),
}
each_way = pytest.mark.parametrize("plan", WAYS.values(), ids=WAYS)
COLUMNS = Pool((0,))
SIZES = (1000, 3)

jitted = functools.partial(jax.jit, static_argnums=(2, 4))(compute_statistics)
STATIC = ("options", "plan", "statistics_unused")
normalized = functools.partial(jax.jit, static_argnames=STATIC)(forward)


def draw(name, rng):
    """Returns columns of a kind; the deviations of all are about `scale`."""
    noise = rng.standard_normal(SIZES)
    outlier = noise.copy()
    outlier[[17, 3, 999], range(3)] = 1e6, -1e6, 1e6
    ramp = np.linspace(-1.7, 1.7, SIZES[0])[:, None] + np.array([0, 5, -3e3])
    one_far = noise + np.array([0, 1e6, 0])
    values = {
        "standard normal": noise,
        "means of 2 deviations": noise + np.array([2, -2, 0]),
        "means of 1e6 deviations": noise + np.array([1e6, -1e6, 0]),
        "one mean of 1e6 deviations": one_far,
        "means of 1e4 deviations": noise + 1e4,
        "outlier": outlier,
        "outlier, mean": outlier - 1e4,
        "ramp": ramp,
        "ramp, mean": ramp + 1e6,
        "constants": 0 * noise + np.array([3, -1.5, 0.25]),
        # Of the means the squares are beyond float32.
        "large": 1e17 * one_far,
    }
    return np.asarray(values[name], np.float32)


KINDS = (
    "standard normal",
    "means of 2 deviations",
    "means of 1e4 deviations",
    "means of 1e6 deviations",
    "one mean of 1e6 deviations",
    "outlier",
    "outlier, mean",
    "ramp",
    "ramp, mean",
    "large",
)
# In deviations from the mean, from 1e9 on in numbers; None: there is no such value.
NEARS = (None, 0.0, 0.1, -3.0, 1e4, 1e8, 1e20, 3e38, -1e30, np.nan, np.inf, -np.inf)


def near_of(x, distance, columns=slice(None)):
    """Returns a value at a distance from the mean in some columns, and at the mean in others."""
    if distance is None:
        return None
    mean, std = x.astype(np.float64).mean(0, keepdims=True), x.astype(np.float64).std(0)
    with np.errstate(over="ignore", invalid="ignore"):
        mean[:, columns] += distance * std[columns] if abs(distance) < 1e9 else distance
        return mean.astype(np.float32)


def error(x, stats, mask=None):
    """Returns the error of x - mean, and of the variance, as multiples of what is allowed."""
    shift, offset, var = map(np.asarray, stats)
    wide = np.ma.masked_array(x, None if mask is None else ~mask, dtype=np.float64)
    mean, exact = wide.mean(0), wide.var(0)
    rest = np.ma.masked_array(x, wide.mask) - shift - offset
    of_mean = excess((rest / exact**0.5).filled(0), ((wide - mean) / exact**0.5).filled(0))
    # The root of the variance divides the largest result: half of the variance's error is its.
    return max(of_mean, (abs(var - exact) / exact).max() / (2 * TOLERANCE))


@each_way
@pytest.mark.parametrize("kind", KINDS)
def test_exact_whatever_is_given_as_near(kind, plan, rng):
    x = draw(kind, rng)
    for distance in NEARS:
        for columns in (slice(None), slice(1, 2)):
            stats, count = jitted(x, None, COLUMNS, near_of(x, distance, columns), plan)
            assert error(x, stats) <= 1, (distance, columns)
            assert count == len(x)


@each_way
@pytest.mark.parametrize("kind", ["means of 1e6 deviations", "outlier, mean", "large"])
def test_masked_exact_whatever_is_given_as_near(kind, plan, rng):
    x = draw(kind, rng)
    mask = rng.random(SIZES) < 0.7
    nothing = mask.copy()
    nothing[:, 2] = False
    poisoned = np.where(mask, x, np.nan)
    for distance in NEARS:
        shift_hint = near_of(x, distance)
        stats, count = jitted(poisoned, mask, COLUMNS, shift_hint, plan)
        assert error(x, stats, mask) <= 1, distance
        np.testing.assert_array_equal(count, mask.sum(0, keepdims=True))
        # The last pool keeps nothing: the others are as exact.
        stats, count = jitted(np.where(nothing, x, np.nan), nothing, COLUMNS, shift_hint, plan)
        assert error(x[:, :2], [s[:, :2] for s in stats], nothing[:, :2]) <= 1, distance
        assert count[0, 2] == 0
        for statistic in stats:
            assert np.isfinite(statistic).all()
        # And so does every pool.
        stats, count = jitted(
            np.full(SIZES, np.nan, np.float32), mask & False, COLUMNS, shift_hint, plan
        )
        assert not np.asarray(count).any()
        assert not np.asarray(stats.var).any()
        for statistic in stats:
            assert np.isfinite(statistic).all()


@each_way
@pytest.mark.parametrize("size", [1, 5, 7, 1000, 4096])
def test_nothing_remains_of_a_constant(size, plan):
    for constant in (0.0, 1.0, 1 / 3, -1e6 / 7, 1e15, 3.3e-20, -2.7e20):
        x = np.full((size, 3), constant, np.float32) * np.float32([1, 1.1, 0.7])
        mean = x[:1].astype(np.float64)
        # Another value than the constant in one column, or in all.
        other = np.where([0, 1, 0], mean + 1e-3 * abs(mean) + 1, mean)
        for shift_hint in (
            None,
            mean,
            mean * 0,
            mean + 1,
            other,
            mean * 0 + 1e20,
            mean * 0 + np.nan,
        ):
            shift_hint = None if shift_hint is None else shift_hint.astype(np.float32)
            (shift, offset, var), _ = jitted(x, None, COLUMNS, shift_hint, plan)
            given = (constant, None if shift_hint is None else shift_hint.tolist())
            np.testing.assert_array_equal(x - shift - offset, np.zeros_like(x), err_msg=f"{given}")
            # What is left of the squares' difference is nothing beside epsilon.
            assert (np.asarray(var) <= 1e-10 * np.maximum(mean**2, 1e-30)).all(), given


@each_way
def test_values_whose_squares_vanish(plan, rng):
    """Their variance is 0 in float32, and their mean is right."""
    values = 1e-25 * (rng.standard_normal(SIZES) + np.array([0, 1, 1e4]))
    x = values.astype(np.float32)
    for shift_hint in (None, 0.0, 1e-25, 1.0, 1e20):
        shift_hint = None if shift_hint is None else np.full((1, 3), shift_hint, np.float32)
        (shift, offset, var), _ = jitted(x, None, COLUMNS, shift_hint, plan)
        assert not np.asarray(var).any()
        rest = (x - np.asarray(shift) - np.asarray(offset)) / 1e-25
        wide = x.astype(np.float64)
        assert excess(rest, (wide - wide.mean(0)) / 1e-25) <= 1


@each_way
@pytest.mark.parametrize(
    "values",
    [
        [3e38, -3e38, 0, 1e38],
        [3e38, -3e38, -3e38, -3e38],
        [3.4e38, 3.4e38, 3.3e38, -1],
        [1e38] * 1000,
        [*[3.4e38] * 500, *[-3.4e38] * 500],
    ],
    ids=["both signs", "one sign but one", "one sign", "constant", "halves"],
)
def test_variances_beyond_float32_give_0(values, plan):
    """The inputs are finite, and so must be the result."""
    x = np.float32([values, [1.0, -1.0] * (len(values) // 2)])
    options = Options(Pool((1,)), 1e-6, jnp.dtype(jnp.float32))
    for shift_hint in (None, 0, 1e38, -3.4e38, np.inf):
        shift_hint = None if shift_hint is None else np.full((2, 1), shift_hint, np.float32)
        y, *stats = normalized(
            x, None, None, None, shift_hint, options=options, plan=plan, statistics_unused=False
        )
        np.testing.assert_array_equal(y[0], np.zeros(len(values)))
        # The other row is normalized all the same: 1 / sqrt(1 + epsilon).
        np.testing.assert_allclose(y[1], x[1], rtol=1e-6)
        assert np.isfinite(np.add(*stats[:2])).all()


@each_way
def test_sums_of_squares_beyond_float32(plan, rng):
    """Of a variance that is not: deviations of 1e18."""
    x = (1e18 * rng.standard_normal(SIZES)).astype(np.float32)
    for shift_hint in (None, 0.0, 1e18, 1e20):
        stats, _ = jitted(
            x, None, COLUMNS, None if shift_hint is None else near_of(x, shift_hint), plan
        )
        assert error(x, stats) <= 1, shift_hint


@each_way
def test_huge_constants_have_their_mean(plan):
    x = np.full(SIZES, -2.7e30, np.float32)
    (shift, offset, var), _ = jitted(x, None, COLUMNS, None, plan)
    np.testing.assert_allclose(shift + offset, x[:1], rtol=1e-6)
    # The square of what rounding the mean leaves is beyond float32: the result is 0, as it should.
    assert np.isinf(var).all()


@each_way
def test_groups_have_statistics_of_their_own(plan, rng):
    x = rng.standard_normal((300, 6)) * [1, 1, 1, 5, 5, 5] + [0, 0, 0, 1e6, 1e6, 1e6]
    x = x.astype(np.float32)
    flat = x.reshape(300, 2, 3).transpose(0, 2, 1).reshape(900, 2)
    for shift_hint in (None, 0.0, 1e6, 1e20):
        shift_hint = None if shift_hint is None else np.full((1, 2), shift_hint, np.float32)
        stats, count = jitted(x, None, Pool((0,), groups=(1, 2)), shift_hint, plan)
        assert error(flat, stats) <= 1
        assert count == 900


@pytest.mark.parametrize("name", ["tpu", "gpu", "cpus"])
def test_pools_without_elements_and_of_one(name):
    with planned_as(plan_of(name)):
        for shape in ((0, 3), (3, 0), (0, 0)):
            for axis in (0, 1):
                x = np.ones(shape, np.float32)
                y, moments = jax.jit(lambda x, axis=axis: batch_norm(x, axis=axis))(x)
                assert y.shape == shape
                for statistic in moments:
                    assert np.isfinite(statistic).all()
                assert not np.asarray(moments.count).any()
        one = np.float32([[3], [1e30], [0]])
        one = jax.jit(lambda x: layer_norm(x, None, np.ones(1, np.float32)))(one)
        np.testing.assert_array_equal(one, np.ones((3, 1)))


@pytest.mark.parametrize("given", [False, True], ids=["nothing near", "near"])
def test_no_pass_is_taken_without_need(given, rng):
    cases = [
        ("standard normal", None, 1),
        # Where mean^2 <= 2 var.
        ("standard normal", 1.3, 1),
        ("standard normal", 1.5, 2),
        ("means of 1e4 deviations", None, 2),
        ("means of 1e4 deviations", 0.1, 1),
        ("means of 1e4 deviations", 100.0, 2),
        ("means of 1e4 deviations", np.nan, 2),
        ("means of 1e6 deviations", 0.1, 1),
        # Nothing is left of a constant, and no further sums can do better.
        ("constants", None, 2),
        ("constants", 0.0, 1),
    ]
    with counted_passes() as count:
        for kind, distance, quick in [case for case in cases if (case[1] is not None) == given]:
            x = draw(kind, rng)
            shift_hint = near_of(x, distance)
            for way, plan in WAYS.items():
                jax.block_until_ready(jitted(x, None, COLUMNS, shift_hint, plan))
                assert count() == (quick if way == "shifted" else 1), (kind, distance, way)


@each_way
def test_constants_stay_constant_where_sums_are_rough(plan, monkeypatch):
    """A GPU adds up 100,000 equal numbers with an error of 100 eps."""
    exact = Pool.sum

    def rough(self, x, plan):
        return exact(self, x, plan) * jnp.asarray(1 + 100 * jnp.finfo(x.dtype).eps, x.dtype)

    monkeypatch.setattr(Pool, "sum", rough)
    x = np.tile(np.float32([1 / 3, -1e6 / 7, 1e15, 3.3e-20, -2.7e12]), (64, 1))
    stats, _ = jax.jit(lambda x: compute_statistics(x, None, COLUMNS, None, plan))(x)
    rest = x - np.asarray(stats.shift) - np.asarray(stats.offset)
    np.testing.assert_array_equal(rest, 0)
