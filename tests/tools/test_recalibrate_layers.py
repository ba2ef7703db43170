"""Recalibration of batch norm as models use it: shared, transformed, with domains, frozen."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx
from jaxnorm import tools
from tests.support.jaxpr_text import drawn, initialized
from tests.support.recalibration import EPSILON, population_in_evaluation, start, uneven_batches

pytestmark = pytest.mark.quickly_compiled


@pytest.fixture
def data(rng):
    return uneven_batches(rng)


def test_a_layer_used_twice_gets_all_that_reaches_it(data, rng):
    class Twice(nn.Module):
        def setup(self):
            self.norm = jnn.BatchNorm(use_running_average=True)

        def __call__(self, x):
            a, b = jnp.split(x, 2, axis=-1)
            return self.norm(a), self.norm(3 * b)

    variables = drawn(Twice(), data[0])
    stats = tools.recalibrate(Twice(), variables, data)
    x = np.concatenate(data).astype(np.float64)
    seen = np.concatenate([x[:, :2], 3 * x[:, 2:]])
    np.testing.assert_allclose(stats["norm"]["mean"], seen.mean(0), rtol=1e-6)
    np.testing.assert_allclose(stats["norm"]["var"], seen.var(0), rtol=1e-6)


def test_layers_under_scan_and_remat(data):
    """Stacked statistics are recalibrated row by row; a carry keeps its structure."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            norm = nn.remat(jnn.BatchNorm)(use_running_average=True, name="norm")
            return norm(nn.tanh(nn.Dense(4, name="dense")(x))), None

    class Layers(nn.Module):
        @nn.compact
        def __call__(self, x):
            scan = nn.scan(
                Block,
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                length=2,
            )
            return scan(name="blocks")(x, None)[0]

    class Steps(nn.Module):
        @nn.compact
        def __call__(self, x):
            block = Block(name="blocks")
            if self.is_initializing():
                # Flax cannot make the variables of a carry within the scan.
                return block(x, None)[0]
            scan = nn.scan(
                lambda block, x, _: block(x, None),
                variable_broadcast="params",
                variable_carry="batch_stats",
                split_rngs={"params": False},
                length=2,
            )
            return scan(block, x, None)[0]

    data = [data[0], data[1][:7]]
    variables = start(Layers(), data[0])
    stats = tools.recalibrate(Layers(), variables, data, passes=2)
    params = variables["params"]["blocks"]["dense"]
    flat = {f"dense_{i}": jax.tree.map(lambda a, i=i: a[i], params) for i in range(2)}
    expected = population_in_evaluation({"params": flat}, data)
    for i in range(2):
        row = jax.tree.map(lambda a, i=i: a[i], stats["blocks"]["norm"])
        want = jax.tree.map(np.float32, expected[f"norm_{i}"])
        chex.assert_trees_all_close(row, want, atol=2e-6)

    variables = start(Steps(), data[0])
    stats = tools.recalibrate(Steps(), variables, data)
    params = jax.tree.map(np.asarray, variables["params"]["blocks"]["dense"])

    def step(x):
        return np.tanh(x @ params["kernel"] + params["bias"])

    first = [step(np.asarray(x, np.float64)) for x in data]
    second = [step((x - x.mean(0)) / np.sqrt(x.var(0) + EPSILON)) for x in first]
    seen = np.concatenate(first + second)
    np.testing.assert_allclose(stats["blocks"]["norm"]["mean"], seen.mean(0), atol=2e-6)
    np.testing.assert_allclose(stats["blocks"]["norm"]["var"], seen.var(0), atol=2e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_layers_under_vmap(data, shared):
    """Statistics of their own for each entry, or shared and pooled over the mapped axis."""

    class Mapped(nn.Module):
        @nn.compact
        def __call__(self, x):
            axis = None if shared else 0
            norm = nn.vmap(
                jnn.BatchNorm,
                variable_axes={"params": axis, "batch_stats": axis},
                split_rngs={"params": not shared},
                axis_name="entries",
            )
            name = "entries" if shared else None
            return norm(use_running_average=True, axis_name=name, name="norm")(x)

    batches = [np.stack([x, 3 * x]) for x in data]
    variables = drawn(Mapped(), batches[0])
    stats = tools.recalibrate(Mapped(), variables, batches)["norm"]
    x = np.concatenate(batches, axis=1).astype(np.float64)
    axes = (0, 1) if shared else 1
    np.testing.assert_allclose(stats["mean"], x.mean(axes), rtol=1e-6)
    np.testing.assert_allclose(stats["var"], x.var(axes), rtol=1e-6)


def test_only_domains_that_were_seen_change(data):
    class Domains(nn.Module):
        @nn.compact
        def __call__(self, x, domain):
            return jnn.BatchNorm(num_domains=3, momentum=None, name="norm")(
                x, domain=domain, use_running_average=True
            )

    variables = initialized(Domains(), data[0], 0)
    stats = tools.recalibrate(
        Domains(), variables, [(data[0], 2), (data[1], 2)], call=lambda net, b: net(*b)
    )["norm"]
    x = np.concatenate(data[:2]).astype(np.float64)
    np.testing.assert_allclose(stats["mean"][2], x.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(stats["mean"][:2], np.zeros((2, 4)))
    np.testing.assert_array_equal(stats["count"], [[0] * 4, [0] * 4, [1] * 4])


def test_a_domain_for_each_example_and_frozen_variables(data):
    """flax's FrozenDict is taken; an example without a domain is left out."""
    norm = jnn.BatchNorm(num_domains=4, use_running_average=True)
    x, domain = data[0], np.arange(16, dtype=np.int32) % 4 - 1
    variables = freeze(initialized(norm, x, domain=domain))
    batches = [(x, domain), (2 * x, domain)]
    stats = tools.recalibrate(norm, variables, batches, call=lambda m, b: m(b[0], domain=b[1]))
    for d in range(3):
        seen = np.concatenate([x[d + 1 :: 4], 2 * x[d + 1 :: 4]]).astype(np.float64)
        np.testing.assert_allclose(stats["mean"][d], seen.mean(0), rtol=1e-6)
        np.testing.assert_allclose(stats["var"][d], seen.var(0), rtol=1e-6)
    np.testing.assert_array_equal(stats["mean"][3], np.zeros(4))


def test_a_frozen_layer_is_recalibrated_when_it_is_asked_for(data):
    norm = jnn.BatchNorm(frozen="all")
    variables = drawn(norm, data[0])
    stats = tools.recalibrate(norm, variables, data)
    np.testing.assert_allclose(stats["mean"], np.concatenate(data).mean(0), rtol=1e-6)


def test_an_input_given_by_name_and_a_model_of_an_axis_name(data):
    """The model trains with an axis, and is recalibrated without it by the same variables."""

    class Synced(nn.Module):
        axis_name: str | None = None

        @nn.compact
        def __call__(self, x):
            return jnn.BatchNorm(axis_name=self.axis_name, use_running_average=True, name="norm")(
                x=x
            )

    variables = drawn(Synced("d"), data[0])
    stats = tools.recalibrate(Synced(), variables, data)
    np.testing.assert_allclose(stats["norm"]["mean"], np.concatenate(data).mean(0), rtol=1e-6)
    with pytest.raises(NameError) as error:
        tools.recalibrate(Synced("d"), variables, data)
    assert str(error.value) == (
        "BatchNorm norm: axis_name='d' is not bound here. Call this inside jax.vmap or "
        "jax.shard_map with an axis of that name, or leave axis_name out: a jitted function of "
        "sharded arrays pools over all devices without it."
    )


def test_rngs_reach_the_model(data):
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            noise = jax.random.normal(self.make_rng("noise"), x.shape)
            return jnn.BatchNorm(use_running_average=True)(0 * x + 5 + noise)

    ones = np.ones(4, np.float32)
    variables = {
        "params": {"BatchNorm_0": {"gamma": ones, "beta": ones}},
        "batch_stats": {"BatchNorm_0": {"mean": ones, "var": ones}},
    }
    stats = tools.recalibrate(Noisy(), variables, data, rngs={"noise": jax.random.key(2)})
    assert np.abs(stats["BatchNorm_0"]["mean"] - 5).max() < 1


@pytest.mark.parametrize("passes", [1, 2])
def test_virtual_batches_that_do_not_divide_the_last_batch(rng, passes):
    x = rng.normal(3, 2, (11, 3)).astype(np.float32)
    batches = [x[:8], x[8:]]
    norm = jnn.BatchNorm(num_virtual_batches=2, use_running_average=True)
    variables = norm.init(jax.random.key(0), x)
    stats = tools.recalibrate(norm, variables, batches, passes=passes)
    twin = tools.recalibrate(jnx.BatchNorm(3, num_virtual_batches=2), batches, passes=passes)
    for mean, var in ((stats["mean"], stats["var"]), (twin.mean[...], twin.var[...])):
        np.testing.assert_allclose(mean, x.mean(0), rtol=1e-5)
        np.testing.assert_allclose(var, x.var(0), rtol=1e-5)
    for seen in (tools.inspect(norm, variables, batches), tools.inspect(twin, batches)):
        (layer,) = seen.layers
        np.testing.assert_allclose(layer.batch.mean, x.mean(0), rtol=1e-5)
