"""Statistics of their own for each domain, and batch renormalization's schedule."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
import jaxnorm.linen as jnn
from tests.support.jaxpr_text import initialized

pytestmark = pytest.mark.quickly_compiled

CLOSE = {"rtol": 2e-6, "atol": 4e-6}
RUNNING = jaxnorm.Moments(
    np.full(4, 0.5, np.float32), np.full(4, 2, np.float32), np.zeros((), np.float32)
)


@pytest.fixture
def x(rng):
    return (rng.normal(size=(8, 3, 4)) + 1).astype(np.float32)


@pytest.fixture
def variables(rng):
    def draw():
        return (rng.random((3, 4)) + 0.5).astype(np.float32)

    return {
        "params": {"gamma": draw(), "beta": draw()},
        "batch_stats": {"mean": draw(), "var": draw()},
    }


def of_domain(variables, domain):
    """The variables of a plain batch norm that is used for one domain alone."""
    return jax.tree.map(lambda bank: bank[domain], variables)


@pytest.mark.parametrize(("evaluate", "traced"), [(False, True), (True, False), (False, False)])
def test_one_domain_for_the_batch(x, variables, evaluate, traced):
    bank = jnn.BatchNorm(num_domains=3, affine_per_domain=True, use_running_average=evaluate)
    plain = jnn.BatchNorm(use_running_average=evaluate)

    def apply(domain):
        return bank.apply(variables, x, domain=domain, mutable=["batch_stats"])

    y, new = jax.jit(apply)(1) if traced else apply(1)
    train = jax.jit(functools.partial(plain.apply, mutable=["batch_stats"]))
    want, row = train(of_domain(variables, 1), x)
    np.testing.assert_allclose(y, want, **CLOSE)
    for key, value in new["batch_stats"].items():
        expected = variables["batch_stats"][key].copy()
        expected[1] = row["batch_stats"][key]
        np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("source", "masked"), [("batch", False), ("running", True), ("renorm", True), (0.3, False)]
)
def test_a_domain_for_each_example(x, variables, source, masked, rng):
    """Equal to a layer for each domain, given its examples; an absent domain keeps its row."""
    domain = np.array([2, 0, 0, 2, 2, 0, 2, 0], np.int32)
    mask = rng.random((8, 3, 1)) < 0.7 if masked else None
    options = {"train_statistics": source, "use_running_average": False, "r_max": 1.1}
    bank = jnn.BatchNorm(num_domains=3, affine_per_domain=True, **options)
    y, new = jax.device_get(
        jax.jit(lambda d: bank.apply(variables, x, domain=d, mask=mask, mutable=["batch_stats"]))(
            domain
        )
    )
    alone = jax.jit(functools.partial(jnn.BatchNorm(**options).apply, mutable=["batch_stats"]))
    for d in (0, 2):
        mine = domain == d
        part = None if mask is None else mask[mine]
        want, row = alone(of_domain(variables, d), x[mine], mask=part)
        np.testing.assert_allclose(y[mine], want, **CLOSE)
        for key, value in new["batch_stats"].items():
            np.testing.assert_allclose(value[d], row["batch_stats"][key], rtol=1e-6)
    for key, value in new["batch_stats"].items():
        np.testing.assert_array_equal(value[1], variables["batch_stats"][key][1])


def test_shared_gamma_and_beta(x, variables):
    """Adaptive batch norm (Li et al. 2016, arXiv:1603.04779): only the statistics are apart."""
    norm = jnn.BatchNorm(num_domains=3, use_running_average=True)
    shared = {**variables, "params": of_domain(variables, 0)["params"]}
    made = jax.eval_shape(functools.partial(norm.init, domain=0), jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, shared)
    want = jnn.BatchNorm(use_running_average=True).apply(
        {"params": shared["params"], "batch_stats": of_domain(variables, 2)["batch_stats"]}, x
    )
    np.testing.assert_allclose(norm.apply(shared, x, domain=2), want, **CLOSE)


def test_an_example_without_a_domain_is_left_out(x, variables):
    norm = jnn.BatchNorm(num_domains=3, affine_per_domain=True, use_running_average=False)
    bad = x.copy()
    bad[0] = np.nan
    domain = np.array([-1, 0, 0, 0, 0, 0, 0, 3], np.int32)

    @jax.jit
    def run(bad):
        y, new = norm.apply(variables, bad, domain=domain, mutable=["batch_stats"])
        alone = jnn.BatchNorm(use_running_average=False)
        return y, new, *alone.apply(of_domain(variables, 0), x[1:7], mutable=["batch_stats"])

    y, new, want, row = jax.device_get(run(bad))
    np.testing.assert_array_equal(y[[0, 7]], np.zeros((2, 3, 4)))
    np.testing.assert_allclose(y[1:7], want, **CLOSE)
    np.testing.assert_allclose(new["batch_stats"]["mean"][0], row["batch_stats"]["mean"], rtol=1e-6)


def test_auxiliary_batch_norm(x):
    """Clean and adversarial examples in one batch; evaluation uses the clean statistics."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, domain, train):
            x = nn.Dense(4)(x)
            return jnn.BatchNorm(num_domains=2, affine_per_domain=True, momentum=0.0, name="norm")(
                x, domain=domain, use_running_average=not train
            )

    domain = np.arange(8, dtype=np.int32) // 4
    variables = initialized(Net(), x, domain, train=True)
    both = np.concatenate([x[:4], 10 * x[4:]])

    @jax.jit
    def run(variables, both):
        _, new = Net().apply(variables, both, domain, train=True, mutable=["batch_stats"])
        return Net().apply({**variables, **new}, x[:4], 0, train=False)

    y = np.asarray(run(variables, both))
    # Normalized by their own mean and (unbiased, 12 values) variance.
    np.testing.assert_allclose(y.mean((0, 1)), np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(y.var((0, 1)), np.full(4, 11 / 12), rtol=1e-4)


def test_renorm_is_batch_norm_at_its_start_and_evaluation_without_limits(x):
    gamma, beta = np.arange(1, 5, dtype=np.float32), np.ones(4, np.float32)

    def pull(function, dy):
        y, transpose = jax.vjp(function, x, gamma, beta)
        return y, transpose(dy)

    dy = np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape)

    def renorm(r_max, d_max):
        return lambda x, gamma, beta: jaxnorm.batch_renorm(
            x, RUNNING, gamma, beta, r_max=r_max, d_max=d_max, axis=(0, 1)
        )[0]

    def plain(x, gamma, beta):
        return jaxnorm.batch_norm(x, gamma, beta, axis=(0, 1))[0]

    @jax.jit
    def run(dy):
        pulled = [pull(f, dy) for f in (renorm(1.0, 0.0), plain, renorm(1e3, 1e3))]
        return pulled, jaxnorm.standardize(x, RUNNING, gamma, beta, axis=(0, 1), epsilon=1e-5)

    (first, expected, (y, (dx, _, _))), evaluated = run(dy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), first, expected)
    np.testing.assert_allclose(y, evaluated, rtol=1e-5, atol=1e-5)
    # r is a constant, so the gradient is batch norm's times r.
    r = np.sqrt((x.var((0, 1)) + 1e-5) / (2.0 + 1e-5))
    np.testing.assert_allclose(dx, np.asarray(expected[1][0]) * r, rtol=1e-4, atol=1e-5)


def test_renorm_has_no_gradient_through_its_corrections(x):
    """r and d are functions of x and of the running moments, and are held constant for both."""

    def total(mean, var):
        moments = jaxnorm.Moments(mean, var, RUNNING.count)
        return (jaxnorm.batch_renorm(x, moments, r_max=9.0, d_max=9.0, axis=(0, 1))[0] ** 2).sum()

    for gradient in jax.jit(jax.grad(total, (0, 1)))(RUNNING.mean, RUNNING.var):
        np.testing.assert_array_equal(gradient, np.zeros(4))


def test_renorm_limits_follow_a_schedule_of_the_updates(x):
    """The paper starts as batch norm and then lets r_max and d_max grow."""
    norm = jnn.BatchNorm(
        train_statistics="renorm",
        r_max=lambda updates: jnp.where(updates < 2, 1.0, 3.0),
        d_max=lambda updates: jnp.where(updates < 2, 0.0, 5.0),
        use_running_average=False,
    )
    variables = initialized(norm, x)
    plain = jaxnorm.batch_norm(x, axis=(0, 1))[0]
    train = jax.jit(functools.partial(norm.apply, mutable=["batch_stats"]))
    for step in range(3):
        y, new = train(variables, x)
        np.testing.assert_array_equal(new["batch_stats"]["count"], np.full(4, step + 1))
        same = np.allclose(y, plain, **CLOSE)
        assert same == (step < 2)
        variables = {**variables, **new}


def test_a_mixture_is_standardization_by_mixed_moments(x):
    def blended(x, weight):
        return jaxnorm.blended_batch_norm(x, RUNNING, weight=weight, axis=(0, 1))[0]

    def standardized(x, weight):
        mixed = jaxnorm.mix_moments(jaxnorm.moments(x, (0, 1)), RUNNING, weight=weight)
        return jaxnorm.standardize(x, mixed, axis=(0, 1), epsilon=1e-5)

    dy = np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape)

    @jax.jit
    def run(x):
        def results(function, weight):
            y, transpose = jax.vjp(lambda x: function(x, weight), x)
            return y, transpose(dy)

        return [[results(f, w) for w in (0.0, 0.3, 1.0)] for f in (blended, standardized)]

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), *run(x))
