"""Training with optax in a TrainState, step by step beside flax.linen."""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from flax.training import train_state

import jaxnorm.linen as jnn
from jaxnorm.tools import recalibrate

pytestmark = pytest.mark.quickly_compiled

STEPS = 60


class TrainState(train_state.TrainState):
    batch_stats: Any


class Net(nn.Module):
    norm: Any

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(32, use_bias=False)(x)
        x = self.norm(name="norm")(x, use_running_average=not train)
        return nn.Dense(4)(nn.relu(x))


def jaxnorm_batch_norm(momentum, name):
    names = ("scale", "bias")
    return jnn.BatchNorm(momentum=momentum, unbiased=False, param_names=names, name=name)


def flax_batch_norm(momentum, name):
    return nn.BatchNorm(momentum=momentum, use_fast_variance=False, name=name)


@pytest.fixture
def examples(rng):
    """Sixteen examples with labels drawn at random: the network has to remember them."""
    return rng.normal(3, 2, (16, 8)).astype(np.float32), rng.integers(0, 4, 16, dtype=np.int32)


def train(norm, examples):
    x, labels = examples
    net = Net(norm)
    init = functools.partial(net.init, train=False)
    variables = jax.jit(init)(jax.random.key(0), x)
    state = TrainState.create(apply_fn=net.apply, tx=optax.sgd(0.1, momentum=0.9), **variables)

    def step(state, _):
        def loss(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updates = net.apply(variables, x, train=True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updates

        (value, updates), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, **updates), value

    return jax.jit(lambda state: jax.lax.scan(step, state, length=STEPS))(state)


def accuracy(norm, variables, examples):
    x, labels = examples
    apply = jax.jit(functools.partial(Net(norm).apply, train=False))
    return float((np.argmax(apply(variables, x), -1) == labels).mean())


@pytest.mark.parametrize("momentum", [0.9, 0.99])
def test_a_train_state_follows_flax_linens(examples, momentum):
    ours, losses = train(lambda name: jaxnorm_batch_norm(momentum, name), examples)
    theirs, expected = train(lambda name: flax_batch_norm(momentum, name), examples)
    # Roundings grow over the steps, by which the loss falls to a hundredth.
    np.testing.assert_allclose(losses, expected, atol=1e-4)
    chex.assert_trees_all_close(ours.params, theirs.params, atol=1e-3)
    chex.assert_trees_all_close(ours.batch_stats, theirs.batch_stats, atol=1e-3)
    assert losses[-1] < 0.02 * losses[0]


def test_running_statistics_catch_up_or_are_recalibrated(examples):
    def lasting(name):
        return jaxnorm_batch_norm(0.99, name)

    def quick(name):
        return jaxnorm_batch_norm(0.9, name)

    variables = {}
    for norm in (quick, lasting):
        state, _ = train(norm, examples)
        variables[norm] = {"params": state.params, "batch_stats": state.batch_stats}
    assert accuracy(quick, variables[quick], examples) == 1
    # After 60 steps with momentum 0.99 more than half of the initial 0 and 1 is left.
    assert accuracy(lasting, variables[lasting], examples) < 0.8
    stats = recalibrate(
        Net(lasting),
        variables[lasting],
        [examples[0]],
        call=lambda net, x: net(x, train=False),
    )
    assert accuracy(lasting, {**variables[lasting], "batch_stats": stats}, examples) == 1
