"""The tools on Flax NNX models: what they give for their twins of linen."""

import contextlib
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm.drop_in.nnx
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx
from jaxnorm import tools
from tests.nnx.twins import draw, values
from tests.support.recalibration import EPSILON, population_in_evaluation, uneven_batches

pytestmark = pytest.mark.quickly_compiled

MOMENTUM = 0.7


class Net(nnx.Module):
    """Two batch norms in sequence, behind dropout that training alone would have."""

    def __init__(self, rngs=None, **options):
        rngs = nnx.Rngs(0) if rngs is None else rngs
        for i in range(2):
            setattr(self, f"dense_{i}", nnx.Linear(4, 4, rngs=rngs))
            norm = jnx.BatchNorm(4, epsilon=EPSILON, momentum=MOMENTUM, **options)
            setattr(self, f"norm_{i}", norm)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        for i in range(2):
            norm = getattr(self, f"norm_{i}")
            x = norm(jnp.tanh(getattr(self, f"dense_{i}")(x)))
        return self.dropout(x)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, training=False):
        for i in range(2):
            x = jnp.tanh(nn.Dense(4, name=f"dense_{i}")(x))
            norm = jnn.BatchNorm(epsilon=EPSILON, momentum=MOMENTUM, name=f"norm_{i}")
            x = norm(x, use_running_average=not training)
        return x


def variables_of(net):
    """The variables of a `Net` as those of a `Linen`."""
    stats = values(net, nnx.BatchStat)
    params = values(net, nnx.Param)
    return {"params": params, "batch_stats": stats}


def test_recalibration_gives_what_it_does_for_linen(rng):
    data = uneven_batches(rng)
    for passes in (1, 2):
        net = Net()
        variables = variables_of(net)
        graph, params = nnx.split(net)[0], values(net, nnx.Param)
        expected = tools.recalibrate(Linen(), variables, data, passes=passes)
        assert tools.recalibrate(net, data, passes=passes) is net
        chex.assert_trees_all_close(values(net, nnx.BatchStat), expected, atol=1e-6)
        # The model is as it was but for the statistics: in training, its parameters too.
        assert nnx.split(net)[0] == graph
        chex.assert_trees_all_equal(values(net, nnx.Param), params)
        assert not net.norm_0.use_running_average and not net.dropout.deterministic
        assert net.dropout.rngs.count[...] == 0
    population = population_in_evaluation(variables, data)
    chex.assert_trees_all_close(
        jax.tree.map(np.asarray, values(net, nnx.BatchStat)), population, atol=2e-6
    )


def test_recalibration_by_a_call_of_ones_own_and_of_subclasses(rng):
    class Mine(jnx.BatchNorm):
        def __call__(self, x, **options):
            return super().__call__(2 * x, **options)

    data = uneven_batches(rng)
    net = Mine(4)
    tools.recalibrate(net, [{"x": x} for x in data], call=lambda m, batch: m(x=batch["x"]))
    assert type(net) is Mine
    everything = np.concatenate(data).astype(np.float64) * 2
    np.testing.assert_allclose(net.mean[...], everything.mean(0), atol=2e-6)
    np.testing.assert_allclose(net.var[...], everything.var(0), rtol=1e-5)


def test_accumulated_microbatches_make_the_update_of_the_full_batch(rng):
    x = draw(rng, (16, 4))
    whole, parts = jnx.BatchNorm(4, momentum=MOMENTUM), jnx.BatchNorm(4, momentum=MOMENTUM)
    before = values(parts)
    assert tools.accumulate(parts) is parts
    step = nnx.jit(lambda m, x: m(x))
    for part in np.split(np.asarray(x), 4):
        step(parts, part)
    assert parts.accumulated_count[...].tolist() == [16.0] * 4
    chex.assert_trees_all_equal({k: values(parts)[k] for k in before}, before)
    assert tools.settle(parts, momentum=MOMENTUM) is parts
    whole(x)
    chex.assert_trees_all_close(values(parts), values(whole), atol=1e-6)
    assert nnx.split(parts)[0] == nnx.split(whole)[0]
    step(parts, x)


@pytest.mark.parametrize("kind", [jaxnorm.drop_in.nnx.BatchNorm, nnx.BatchNorm], ids=str)
def test_drop_ins_accumulate(rng, kind):
    class Mine(kind):
        pass

    x = draw(rng, (16, 4))
    net, whole = (
        nnx.Sequential(*(k(4, momentum=MOMENTUM, rngs=nnx.Rngs(0)) for k in (kind, Mine)))
        for _ in range(2)
    )
    if kind is nnx.BatchNorm:
        with pytest.raises(ValueError) as error:
            tools.accumulate(net)
        assert str(error.value).startswith(
            "BatchNorm at layers/0 has a running mean and variance and cannot accumulate: norms of "
            "jaxnorm.nnx and jaxnorm.drop_in.nnx do. Pass the model through "
        )
        jaxnorm.drop_in.nnx.replace(net)
    tools.accumulate(net)
    for part in np.split(np.asarray(x), 4):
        net.layers[0](part)
        net.layers[1](part)
    tools.settle(net, momentum=MOMENTUM, unbiased=False)
    for norm in whole.layers:
        norm(x)
    chex.assert_trees_all_close(values(net), values(whole), atol=1e-6)


@pytest.mark.parametrize("way", ["eval", "frozen", "update_running", "freeze"])
def test_frozen_norms_do_not_accumulate(rng, way):
    x = draw(rng, (8, 4))
    options = {"frozen": {"frozen": "all"}, "update_running": {"update_running": False}}
    net = Net(**options.get(way, {}))
    before = values(net, nnx.BatchStat)
    tools.accumulate(net)
    if way == "eval":
        net.eval()
    with tools.freeze(net, "*") if way == "freeze" else contextlib.nullcontext():
        net(x)
    tools.settle(net, momentum=0.0)
    chex.assert_trees_all_equal(values(net, nnx.BatchStat), before)
    # What is asked for by name is computed, frozen or not.
    tools.recalibrate(net, [x])
    assert not np.array_equal(net.norm_1.mean[...], before["norm_1"]["mean"])


def test_stacked_models_accumulate(rng):
    x = draw(rng, (8, 4))

    @nnx.vmap(in_axes=0, out_axes=0, axis_size=3)
    def make():
        return jnx.BatchNorm(4)

    norms, alone = make(), jnx.BatchNorm(4)
    tools.accumulate(norms)
    nnx.vmap(lambda m, x: m(x), in_axes=(0, None))(norms, x)
    tools.settle(norms, momentum=0.99)
    alone(x)
    for i in range(3):
        one = jax.tree.map(lambda a, i=i: a[i], values(norms))
        chex.assert_trees_all_close(one, values(alone), atol=1e-6)


def test_statistics_in_half_precision_are_given_back_in_float32(rng):
    net = jnx.BatchNorm(4)
    nnx.update(net, jax.tree.map(lambda a: a.astype(jnp.bfloat16), nnx.state(net)))
    tools.recalibrate(net, uneven_batches(rng))
    assert (net.mean.dtype, net.gamma.dtype) == (jnp.float32, jnp.bfloat16)


def test_errors(rng):
    data = uneven_batches(rng)

    def message(*args, **options):
        with pytest.raises(ValueError) as error:
            tools.recalibrate(*args, **options)
        return str(error.value)

    assert message(Net(), []) == "batches is empty; recalibration needs at least one batch."
    assert message(Net(), data, rngs={}) == (
        "rngs is for linen modules; an NNX model holds its own."
    )
    assert "['mean', 'projection'], are not a mean and a variance" in message(
        jnx.DecorrelatedBatchNorm(4), data
    )

    class Foreign(nnx.Module):
        def __init__(self):
            self.mean, self.var = (nnx.BatchStat(jnp.ones(4)) for _ in range(2))

        def __call__(self, x):
            return (x - self.mean[None]) * jax.lax.rsqrt(self.var[None])

    foreign = nnx.Sequential(Foreign())
    text = "no elements reached the statistics at batch_stats/layers/0: "
    assert message(foreign, data).startswith(text)
    with pytest.raises(ValueError, match=re.escape("holds no running mean and var")):
        tools.accumulate(jnx.LayerNorm(4))
    with pytest.raises(ValueError, match=re.escape("holds no accumulators")):
        tools.settle(Net(), momentum=0.9)
