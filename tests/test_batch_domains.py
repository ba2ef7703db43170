"""Statistics of their own for each domain, and batch renormalization's schedule."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
import jaxnorm.linen as jnn

CLOSE = {"rtol": 2e-6, "atol": 4e-6}


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(8, 3, 4)) + 1, jnp.float32)


@pytest.fixture
def variables(rng):
    def draw():
        return jnp.asarray(rng.random((3, 4)) + 0.5, jnp.float32)

    return {
        "params": {"gamma": draw(), "beta": draw()},
        "batch_stats": {"mean": draw(), "var": draw()},
    }


def of_domain(variables, domain):
    """The variables of a plain batch norm that is used for one domain alone."""
    return jax.tree.map(lambda bank: bank[domain], variables)


@pytest.mark.parametrize("evaluate", [False, True])
@pytest.mark.parametrize("traced", [False, True])
def test_one_domain_for_the_batch(x, variables, evaluate, traced):
    bank = jnn.BatchNorm(num_domains=3, affine_per_domain=True, use_running_average=evaluate)
    plain = jnn.BatchNorm(use_running_average=evaluate)

    def apply(domain):
        return bank.apply(variables, x, domain=domain, mutable=["batch_stats"])

    y, new = jax.jit(apply)(1) if traced else apply(1)
    want, row = plain.apply(of_domain(variables, 1), x, mutable=["batch_stats"])
    np.testing.assert_allclose(y, want, **CLOSE)
    for key, value in new["batch_stats"].items():
        old = variables["batch_stats"][key]
        np.testing.assert_allclose(value, old.at[1].set(row["batch_stats"][key]), rtol=1e-6)


@pytest.mark.parametrize("source", ["batch", "running", "renorm", 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_a_domain_for_each_example(x, variables, source, masked, rng):
    """Equal to a layer for each domain, given its examples; an absent domain keeps its row."""
    domain = jnp.array([2, 0, 0, 2, 2, 0, 2, 0])
    mask = jnp.asarray(rng.random((8, 3, 1)) < 0.7) if masked else None
    options = {"train_statistics": source, "use_running_average": False, "r_max": 1.1}
    bank = jnn.BatchNorm(num_domains=3, affine_per_domain=True, **options)
    y, new = jax.jit(
        lambda d: bank.apply(variables, x, domain=d, mask=mask, mutable=["batch_stats"])
    )(domain)
    for d in (0, 2):
        mine = np.asarray(domain) == d
        part = None if mask is None else mask[mine]
        want, row = jnn.BatchNorm(**options).apply(
            of_domain(variables, d), x[mine], mask=part, mutable=["batch_stats"]
        )
        np.testing.assert_allclose(y[mine], want, **CLOSE)
        for key, value in new["batch_stats"].items():
            np.testing.assert_allclose(value[d], row["batch_stats"][key], rtol=1e-6)
    for key, value in new["batch_stats"].items():
        np.testing.assert_array_equal(value[1], variables["batch_stats"][key][1])


def test_shared_gamma_and_beta(x, variables):
    """Adaptive batch norm (Li et al. 2016, arXiv:1603.04779): only the statistics are apart."""
    norm = jnn.BatchNorm(num_domains=3, use_running_average=True)
    shared = {**variables, "params": of_domain(variables, 0)["params"]}
    made = norm.init(jax.random.key(0), x, domain=0)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, shared)
    want = jnn.BatchNorm(use_running_average=True).apply(
        {"params": shared["params"], "batch_stats": of_domain(variables, 2)["batch_stats"]}, x
    )
    np.testing.assert_allclose(norm.apply(shared, x, domain=2), want, **CLOSE)


def test_an_example_without_a_domain_is_left_out(x, variables):
    norm = jnn.BatchNorm(num_domains=3, affine_per_domain=True, use_running_average=False)
    bad = x.at[0].set(jnp.nan)
    domain = jnp.array([-1, 0, 0, 0, 0, 0, 0, 3])
    y, new = norm.apply(variables, bad, domain=domain, mutable=["batch_stats"])
    want, row = jnn.BatchNorm(use_running_average=False).apply(
        of_domain(variables, 0), x[1:7], mutable=["batch_stats"]
    )
    np.testing.assert_array_equal(y[jnp.array([0, 7])], np.zeros((2, 3, 4)))
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

    domain = jnp.arange(8) // 4
    variables = Net().init(jax.random.key(0), x, domain, train=True)
    both = jnp.concatenate([x[:4], 10 * x[4:]])
    _, new = Net().apply(variables, both, domain, train=True, mutable=["batch_stats"])
    variables = {**variables, **new}
    y = Net().apply(variables, x[:4], 0, train=False)
    # Normalized by their own mean and (unbiased, 12 values) variance.
    np.testing.assert_allclose(jnp.mean(y, (0, 1)), np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(jnp.var(y, (0, 1)), np.full(4, 11 / 12), rtol=1e-4)


def test_renorm_is_batch_norm_at_its_start_and_evaluation_without_limits(x):
    running = jaxnorm.Moments(jnp.full(4, 0.5), jnp.full(4, 2.0), jnp.zeros(()))
    gamma, beta = jnp.arange(1.0, 5.0), jnp.ones(4)

    def pull(function, dy):
        y, transpose = jax.vjp(function, x, gamma, beta)
        return y, transpose(dy)

    dy = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

    def renorm(r_max, d_max):
        return lambda x, gamma, beta: jaxnorm.batch_renorm(
            x, running, gamma, beta, r_max=r_max, d_max=d_max, axis=(0, 1)
        )[0]

    def plain(x, gamma, beta):
        return jaxnorm.batch_norm(x, gamma, beta, axis=(0, 1))[0]

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **CLOSE),
        pull(renorm(1.0, 0.0), dy),
        pull(plain, dy),
    )
    y, (dx, _, _) = pull(renorm(1e3, 1e3), dy)
    evaluated = jaxnorm.standardize(x, running, gamma, beta, axis=(0, 1), epsilon=1e-5)
    np.testing.assert_allclose(y, evaluated, rtol=1e-5, atol=1e-5)
    # r is a constant, so the gradient is batch norm's times r.
    r = jnp.sqrt((jnp.var(x, (0, 1)) + 1e-5) / (2.0 + 1e-5))
    np.testing.assert_allclose(dx, pull(plain, dy)[1][0] * r[None, None], rtol=1e-4, atol=1e-5)


def test_renorm_has_no_gradient_through_its_corrections(x):
    """r and d are functions of x and of the running moments, and are held constant for both."""
    running = jaxnorm.Moments(jnp.full(4, 0.5), jnp.full(4, 2.0), jnp.zeros(()))

    def total(mean, var):
        moments = jaxnorm.Moments(mean, var, running.count)
        return (jaxnorm.batch_renorm(x, moments, r_max=9.0, d_max=9.0, axis=(0, 1))[0] ** 2).sum()

    for gradient in jax.grad(total, (0, 1))(running.mean, running.var):
        np.testing.assert_array_equal(gradient, np.zeros(4))


def test_renorm_limits_follow_a_schedule_of_the_updates(x):
    """The paper starts as batch norm and then lets r_max and d_max grow."""
    norm = jnn.BatchNorm(
        train_statistics="renorm",
        r_max=lambda updates: jnp.where(updates < 2, 1.0, 3.0),
        d_max=lambda updates: jnp.where(updates < 2, 0.0, 5.0),
        use_running_average=False,
    )
    variables = norm.init(jax.random.key(0), x)
    plain = jaxnorm.batch_norm(x, axis=(0, 1))[0]
    for step in range(3):
        y, new = norm.apply(variables, x, mutable=["batch_stats"])
        np.testing.assert_array_equal(new["batch_stats"]["count"], np.full(4, step + 1))
        same = bool(jnp.allclose(y, plain, **CLOSE))
        assert same == (step < 2)
        variables = {**variables, **new}


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_mixture_is_standardization_by_mixed_moments(x, weight):
    running = jaxnorm.Moments(jnp.full(4, 0.5), jnp.full(4, 2.0), jnp.zeros(()))

    def blended(x):
        return jaxnorm.blended_batch_norm(x, running, weight=weight, axis=(0, 1))[0]

    def standardized(x):
        mixed = jaxnorm.mix_moments(jaxnorm.moments(x, (0, 1)), running, weight=weight)
        return jaxnorm.standardize(x, mixed, axis=(0, 1), epsilon=1e-5)

    dy = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    results = []
    for function in (blended, standardized):
        y, transpose = jax.vjp(function, x)
        results.append((y, transpose(dy)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), *results)
