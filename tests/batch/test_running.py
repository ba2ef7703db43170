"""Running statistics: what they are after many steps, and what leaves them alone."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
import jaxnorm.linen as jnn
from tests.support.jaxpr_text import drawn, initialized

pytestmark = pytest.mark.quickly_compiled

STEPS = 100
# 100 steps each add at most one rounding of float32 (6e-8 of a value near 1), and each is damped by
# the steps after it: their sum stays below 1e-6.
TOLERANCE = 1e-6


@pytest.fixture
def batches(rng):
    """100 batches of 8 examples with 3 units whose mean and variance drift, in float32."""
    drift = np.linspace(0, 1, STEPS)[:, None, None]
    values = (0.5 + drift / 2) * rng.normal(size=(STEPS, 8, 3)) + drift
    return values.astype(np.float32)


def trajectory(norm, batches):
    """The running mean and variance after each batch, by a scan over training steps."""
    variables = initialized(norm, batches[0], use_running_average=False)

    def step(stats, x):
        _, new = norm.apply(
            {**variables, "batch_stats": stats},
            x,
            use_running_average=False,
            mutable=["batch_stats"],
        )
        return new["batch_stats"], (new["batch_stats"]["mean"], new["batch_stats"]["var"])

    return jax.lax.scan(step, variables["batch_stats"], batches)[1]


def moments64(batches):
    values = np.asarray(batches, np.float64)
    return values.mean(1), values.var(1), values.shape[1]


def test_as_torch(batches):
    """torch.nn.BatchNorm1d(momentum=0.1): new = 0.9 old + 0.1 batch, with the unbiased variance."""
    means, variances, m = moments64(batches)
    mean, var, expected = np.zeros(3), np.ones(3), []
    for batch_mean, batch_var in zip(means, variances, strict=True):
        mean = 0.9 * mean + 0.1 * batch_mean
        var = 0.9 * var + 0.1 * batch_var * m / (m - 1)
        expected.append((mean, var))
    actual = trajectory(jnn.BatchNorm(momentum=0.9), batches)
    for got, want in zip(actual, zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(got, np.array(want), atol=TOLERANCE, rtol=0)


def test_as_torch_without_momentum(batches):
    """torch.nn.BatchNorm1d(momentum=None): the plain average of all batches so far."""
    means, variances, m = moments64(batches)
    counts = np.arange(1, STEPS + 1)[:, None]
    actual = trajectory(jnn.BatchNorm(momentum=None), batches)
    np.testing.assert_allclose(actual[0], np.cumsum(means, 0) / counts, atol=TOLERANCE, rtol=0)
    unbiased = variances * m / (m - 1)
    np.testing.assert_allclose(actual[1], np.cumsum(unbiased, 0) / counts, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_as_haiku(batches, decay):
    """hk.ExponentialMovingAverage: hidden = decay hidden + (1 - decay) value, from 0, debiased."""
    means, variances, _ = moments64(batches)
    hidden, expected = np.zeros((2, 3)), []
    for t, moments in enumerate(zip(means, variances, strict=True), 1):
        hidden = decay * hidden + (1 - decay) * np.array(moments)
        expected.append(hidden / (1 - decay**t))
    norm = jnn.BatchNorm(momentum=decay, debias=True, unbiased=False)
    actual = np.stack(trajectory(norm, batches), 1)
    np.testing.assert_allclose(actual, np.array(expected), atol=TOLERANCE, rtol=0)


def test_as_flax(batches):
    """flax.linen.BatchNorm: new = 0.99 old + 0.01 batch, with the biased variance."""
    means, variances, _ = moments64(batches)
    state, expected = np.array([np.zeros(3), np.ones(3)]), []
    for moments in zip(means, variances, strict=True):
        state = 0.99 * state + 0.01 * np.array(moments)
        expected.append(state)
    for norm in (
        jnn.BatchNorm(momentum=0.99, unbiased=False),
        nn.BatchNorm(momentum=0.99, use_fast_variance=False),
    ):
        actual = np.stack(trajectory(norm, batches), 1)
        np.testing.assert_allclose(actual, np.array(expected), atol=TOLERANCE, rtol=0)


def test_haiku_itself(batches):
    hk = pytest.importorskip("haiku")
    network = hk.transform_with_state(
        lambda x: hk.BatchNorm(True, True, decay_rate=0.9)(x, is_training=True)
    )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params, state = network.init(jax.random.key(0), batches[0])

        def step(state, x):
            _, state = network.apply(params, state, None, x)
            return state, [state[f"batch_norm/~/{m}_ema"]["average"][0] for m in ("mean", "var")]

        expected = jax.lax.scan(step, state, batches)[1]
    norm = jnn.BatchNorm(momentum=0.9, debias=True, unbiased=False)
    for got, want in zip(trajectory(norm, batches), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_torch_itself(batches, momentum):
    torch = pytest.importorskip("torch")
    module = torch.nn.BatchNorm1d(3, momentum=momentum)
    expected = []
    for x in np.asarray(batches):
        module(torch.from_numpy(x.copy()))
        expected.append((module.running_mean.numpy().copy(), module.running_var.numpy().copy()))
    decay = None if momentum is None else 1 - momentum
    actual = np.stack(trajectory(jnn.BatchNorm(momentum=decay), batches), 1)
    np.testing.assert_allclose(actual, np.array(expected), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "options", [{}, {"debias": True}, {"momentum": None}], ids=["plain", "debias", "average"]
)
def test_before_any_step_evaluation_is_the_identity(rng, options):
    x = rng.normal(size=(5, 3)).astype(np.float32)
    norm = jnn.BatchNorm(**options, use_running_average=True)
    variables = initialized(norm, x)
    # The variance is 1, so what epsilon = 1e-5 takes away is half of that.
    np.testing.assert_allclose(norm.apply(variables, x), x, rtol=6e-6)


@pytest.mark.parametrize("options", [{"debias": True}, {"momentum": None}], ids=str)
def test_after_one_step_evaluation_uses_that_batch_exactly(rng, options):
    x = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    norm = jnn.BatchNorm(**options, unbiased=False)
    variables = initialized(norm, x, use_running_average=False)
    _, new = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    # Of the same program: `jaxnorm.moments` may add up in another order.
    _, batch = jaxnorm.batch_norm(x, axis=0)
    np.testing.assert_array_equal(new["batch_stats"]["mean"], batch.mean)
    np.testing.assert_array_equal(new["batch_stats"]["var"], batch.var)
    np.testing.assert_array_equal(new["batch_stats"]["count"], np.ones(3))


def test_debias_is_exact_where_momentum_is_close_to_one():
    """With weights (1 - m) / (1 - m^t) rounded in float32 the average would be off by 1e-2."""
    m, values = 1 - 1e-6, np.array([3.0, 5.0, 4.0])
    running = jaxnorm.Moments(jnp.zeros(()), jnp.ones(()), jnp.zeros(()))
    hidden = 0.0
    for t, value in enumerate(values, 1):
        batch = jaxnorm.Moments(jnp.float32(value), jnp.float32(1), jnp.float32(2))
        running = jaxnorm.update_moments(running, batch, momentum=m, debias=True)
        hidden = m * hidden + (1 - m) * value
        np.testing.assert_allclose(running.mean, hidden / (1 - m**t), rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"debias": True}, {"momentum": None}], ids=str)
def test_a_fully_masked_batch_changes_nothing(rng, options):
    x = rng.normal(size=(2, 6, 3)).astype(np.float32)
    x[1] = np.nan
    norm = jnn.BatchNorm(**options, use_running_average=False)
    variables = initialized(norm, x[0])

    @jax.jit
    def update(stats, x, mask):
        variables_now = {**variables, "batch_stats": stats}
        return norm.apply(variables_now, x, mask=mask, mutable=["batch_stats"])

    _, first = update(variables["batch_stats"], x[0], np.ones((6, 1), bool))
    y, second = update(first["batch_stats"], x[1], np.zeros((6, 1), bool))
    np.testing.assert_array_equal(y, np.zeros((6, 3)))
    jax.tree.map(np.testing.assert_array_equal, second, first)


def test_a_channel_that_is_masked_keeps_its_own_count(rng):
    """The plain average of a channel is over the batches that it was in."""
    x = rng.normal(size=(3, 4, 2)).astype(np.float32)
    masks = np.asarray([[[True, False]], [[True, True]], [[True, False]]])
    norm = jnn.BatchNorm(momentum=None, unbiased=False, use_running_average=False)
    variables = initialized(norm, x[0])
    train = jax.jit(functools.partial(norm.apply, mutable=["batch_stats"]))
    for values, mask in zip(x, masks, strict=True):
        _, new = train(variables, values, mask=mask)
        variables = {**variables, **new}
    stats = variables["batch_stats"]
    np.testing.assert_array_equal(stats["count"], [3, 1])
    expected = [np.asarray(x[:, :, 0]).mean(), np.asarray(x[1, :, 1]).mean()]
    np.testing.assert_allclose(stats["mean"], expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "complex64"])
def test_state_never_changes_its_dtype(rng, dtype):
    x = jnp.asarray(rng.normal(size=(6, 3)), dtype)
    norm = jnn.BatchNorm(momentum=None, use_running_average=False)
    variables = jax.eval_shape(norm.init, jax.random.key(0), x)
    kinds = jax.tree.map(lambda a: a.dtype, variables["batch_stats"])
    assert kinds["mean"] == ("complex64" if dtype == "complex64" else "float32")
    assert kinds["var"] == kinds["count"] == "float32"
    train = functools.partial(norm.apply, mutable=["batch_stats"])
    for _ in range(2):
        _, new = jax.eval_shape(train, variables, x)
        variables = {**variables, **new}
    assert jax.tree.map(lambda a: a.dtype, variables["batch_stats"]) == kinds


def test_state_of_float32_stays_when_the_input_is_wider(rng):
    with jax.enable_x64(True):
        x = rng.normal(size=(6, 3))
        norm = jnn.BatchNorm(use_running_average=False)
        variables = jax.eval_shape(norm.init, jax.random.key(0), x.astype(np.float32))
        train = functools.partial(norm.apply, mutable=["batch_stats"])
        y, new = jax.eval_shape(train, variables, x)
        assert y.dtype == "float64"
        assert {a.dtype.name for a in jax.tree.leaves(new)} == {"float32"}


def test_a_real_state_cannot_take_a_complex_batch(rng):
    norm = jnn.BatchNorm(use_running_average=False)
    variables = norm.init(jax.random.key(0), jnp.ones((4, 3)))
    message = (
        "running moments of dtype float32 cannot hold a batch's mean of dtype complex64; start "
        "them from a complex mean."
    )
    with pytest.raises(TypeError) as error:
        norm.apply(variables, jnp.ones((4, 3), jnp.complex64), mutable=["batch_stats"])
    assert str(error.value) == message


def test_remat_updates_once(rng):
    """Recomputing the forward pass for the gradient must not move the statistics again."""

    class Net(nn.Module):
        remat: bool

        @nn.compact
        def __call__(self, x):
            norm = nn.remat(jnn.BatchNorm) if self.remat else jnn.BatchNorm
            return norm(momentum=0.5, use_running_average=False, name="norm")(nn.Dense(3)(x))

    x = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    variables = drawn(Net(False), x)

    def loss(params, remat):
        y, new = Net(remat).apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return (y**3).sum(), new

    results = [
        jax.jit(jax.grad(functools.partial(loss, remat=remat), has_aux=True))(variables["params"])
        for remat in (False, True)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *results)


def test_one_value_per_channel_never_gives_nan():
    """m / (m - 1) is infinite for one value; its variance, 0, is taken as it is."""
    start = jaxnorm.Moments(jnp.zeros(2), jnp.ones(2), jnp.zeros(()))
    batch = jaxnorm.moments(jnp.array([[3.0, 4.0]]), 0)
    new = jaxnorm.update_moments(start, batch, momentum=0.5)
    np.testing.assert_array_equal(new.mean, [1.5, 2.0])
    np.testing.assert_array_equal(new.var, [0.5, 0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.5}, "momentum must lie in [0, 1], got 1.5."),
        (
            {"momentum": 1.0, "debias": True},
            "momentum=1 with debias=True has no average to give; use momentum=None.",
        ),
    ],
)
def test_wrong_momentum(options, message):
    m = jaxnorm.moments(jnp.ones((2, 2)), 0)
    with pytest.raises(ValueError) as error:
        jaxnorm.update_moments(m, m, **options)
    assert str(error.value) == message


@pytest.mark.parametrize("momentum", [0.0, 0.3])
def test_a_traced_momentum_is_the_same(momentum):
    running = jaxnorm.Moments(jnp.float32(2), jnp.float32(3), jnp.float32(4))
    batch = jaxnorm.Moments(jnp.float32(5), jnp.float32(6), jnp.float32(7))
    for debias in (False, True):

        def update(m, debias=debias):
            return jaxnorm.update_moments(running, batch, momentum=m, debias=debias)

        for a, b in zip(update(momentum), jax.jit(update)(momentum), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
