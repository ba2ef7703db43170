"""Batch norm takes its quick sums about the running mean, which real data let it trust."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm.linen as jnn
from jaxnorm._core.plan import Plan
from jaxnorm._core.pool import Pool
from jaxnorm._core.statistics import compute_statistics
from tests.support.plans import counted_passes, plan_of, planned_as

pytestmark = pytest.mark.quickly_compiled

MODULES = {
    "plain": ({}, {}),
    "virtual batches": ({"num_virtual_batches": 4}, {}),
    "renorm": ({"train_statistics": "renorm"}, {}),
    "mixture": ({"train_statistics": 0.5}, {}),
    "domain": ({"num_domains": 3}, {"domain": 1}),
}


@pytest.mark.parametrize(("options", "call"), MODULES.values(), ids=MODULES)
def test_sums_are_taken_about_the_running_mean(options, call, rng):
    """One pass where it is close by, and a second where it is not: data of mean 100."""
    x = jnp.asarray(rng.normal(100, 1, (64, 8)), jnp.float32)
    norm = jnn.BatchNorm(use_running_average=False, **options)
    variables = norm.init(jax.random.key(0), x, **call)
    with planned_as(plan_of("tpu")), counted_passes() as count:

        @jax.jit
        def apply(mean):
            stats = dict(variables["batch_stats"])
            # Of the other domains the mean is not asked for.
            stats["mean"] = stats["mean"].at[(1,) if call else ...].set(mean)
            given = {**variables, "batch_stats": stats}
            return norm.apply(given, x, mutable=["batch_stats"], **call)

        for mean, passes in ((100.0, 1), (99.8, 1), (0.0, 2), (97.0, 2), (np.nan, 2)):
            jax.block_until_ready(apply(mean))
            assert count() == passes, mean


@pytest.mark.parametrize("masked", [False, True])
def test_training_takes_one_pass_for_the_statistics(masked, rng):
    """Backward there is none, and in the first step, about 0, a second one."""
    x = jnp.asarray(rng.normal(100, 1, (64, 8)), jnp.float32)
    mask = jnp.asarray(rng.random((64, 1)) < 0.7) if masked else None
    norm = jnn.BatchNorm(use_running_average=False, momentum=0.0)
    variables = norm.init(jax.random.key(0), x)
    with planned_as(plan_of("tpu")), counted_passes() as count:

        @jax.jit
        def step(variables):
            def loss(params, x):
                given = {**variables, "params": params}
                y, new = norm.apply(given, x, mask=mask, mutable=["batch_stats"])
                return jnp.sum(y**3), new

            grads, new = jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x)
            return grads, {**variables, **new}

        for passes in (2, 1, 1):
            _, variables = jax.block_until_ready(step(variables))
            assert count() == passes


class Net(nn.Module):
    """A residual network, for images as vectors."""

    @nn.compact
    def __call__(self, x):
        def normalized(x):
            x = nn.Dense(32, use_bias=False)(x)
            return jnn.BatchNorm(momentum=0.9, use_running_average=False)(x)

        x = nn.relu(normalized(x))
        for _ in range(2):
            x = nn.relu(x + normalized(nn.relu(normalized(x))))
        return nn.Dense(10)(x)


STEPS, BATCH = 60, 128


@pytest.fixture(scope="module")
def trained():
    """What the norms of a trained network get in its next step: inputs and running means."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    images = np.asarray(images / 16, np.float32)
    net = Net()
    variables = jax.jit(net.init)(jax.random.key(0), images[:2])

    def batch(number):
        rows = np.random.default_rng(number).integers(0, 1500, BATCH)
        return images[rows], labels[rows]

    @jax.jit
    def step(variables, x, y):
        def loss(params):
            logits, new = net.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return -jax.nn.log_softmax(logits)[jnp.arange(BATCH), y].mean(), new

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - 0.05 * g, variables["params"], grads)
        return {"params": params, **new}, value

    losses = []
    for number in range(STEPS):
        variables, value = step(variables, *batch(number))
        losses.append(float(value))
    # It has learnt something: the loss of guessing is 2.3.
    assert losses[-1] < 1 < losses[0]

    given = {}

    def remember(call, arguments, keywords, context):
        if isinstance(context.module, jnn.BatchNorm) and context.method_name == "__call__":
            given[context.module.name] = arguments[0]
        return call(*arguments, **keywords)

    @jax.jit
    def look(variables, x):
        with nn.intercept_methods(remember):
            net.apply(variables, x, mutable=["batch_stats"])
        return given

    given = look(variables, batch(STEPS)[0])
    return [(x, variables["batch_stats"][name]["mean"]) for name, x in given.items()]


def count_untrusted(trained, nears):
    """Returns for how many norms sums about `nears` are not enough."""
    jitted = jax.jit(compute_statistics, static_argnums=(2, 4))
    untrusted = 0
    with counted_passes() as count:
        for (x, _), shift_hint in zip(trained, nears, strict=True):
            jax.block_until_ready(jitted(x, None, Pool((0,)), shift_hint, Plan("shifted")))
            untrusted += count() > 1
    return untrusted


def test_sums_about_the_running_mean_are_trusted_in_a_trained_network(trained):
    assert len(trained) == 5
    assert not count_untrusted(trained, [np.asarray(mean)[None] for _, mean in trained])


def test_sums_about_0_are_not(trained):
    assert count_untrusted(trained, [None] * len(trained)) >= 2


def test_running_means_are_close(trained):
    """Ten times as close as the rule asks for, mean^2 <= 2 var about the running mean."""
    for x, shift_hint in trained:
        wide = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
        assert ((wide.mean(0) - shift_hint) ** 2 <= 0.2 * wide.var(0)).all()
