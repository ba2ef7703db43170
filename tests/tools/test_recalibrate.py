"""Recalibration: the population moments of what reaches each layer."""

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxnorm.linen as jnn
from jaxnorm import tools
from tests.support.jaxpr_text import drawn
from tests.support.recalibration import EPSILON, population_in_evaluation, start, uneven_batches

pytestmark = pytest.mark.quickly_compiled


class Net(nn.Module):
    """Two batch norms in sequence, and dropout, which must not act."""

    depth: int = 2

    @nn.compact
    def __call__(self, x, train=False, mask=None):
        for i in range(self.depth):
            x = nn.tanh(nn.Dense(3, name=f"dense_{i}")(x))
            x = nn.Dropout(0.5, deterministic=not train)(x)
            x = jnn.BatchNorm(name=f"norm_{i}")(x, use_running_average=not train, mask=mask)
        return x


@pytest.fixture
def data(rng):
    return uneven_batches(rng)


@pytest.fixture
def variables(data):
    return start(Net(), data[0])


def test_one_pass_for_each_norm_in_sequence_is_exact(variables, data):
    stats = tools.recalibrate(Net(), variables, data, passes=2)
    expected = population_in_evaluation(variables, data)
    # Values near 1 after two layers of float32.
    chex.assert_trees_all_close(stats, jax.tree.map(np.float32, expected), atol=2e-6)
    kinds = jax.tree.map(lambda a: a.dtype, variables["batch_stats"])
    assert jax.tree.map(lambda a: a.dtype, stats) == kinds


def test_the_first_pass_normalizes_by_the_batch(variables, data):
    """Exact for the first layer; the second sees batches normalized by themselves."""
    data = [data[0], data[1][:7]]
    stats = tools.recalibrate(Net(), variables, data)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])

    def layer(i, x):
        return np.tanh(x @ params[f"dense_{i}"]["kernel"] + params[f"dense_{i}"]["bias"])

    first = [layer(0, np.asarray(x, np.float64)) for x in data]
    hat = [(x - x.mean(0)) / np.sqrt(x.var(0) + EPSILON) for x in first]
    second = np.concatenate([layer(1, x) for x in hat])
    first = np.concatenate(first)
    expected = {
        "norm_0": {"mean": first.mean(0), "var": first.var(0)},
        "norm_1": {"mean": second.mean(0), "var": second.var(0)},
    }
    chex.assert_trees_all_close(stats, jax.tree.map(np.float32, expected), atol=2e-6)


def test_masks_count(variables, data, rng):
    masks = [rng.random((len(x), 1)) < 0.6 for x in data]
    batches = [{"x": x, "mask": m} for x, m in zip(data, masks, strict=True)]
    stats = tools.recalibrate(
        Net(), variables, batches, call=lambda net, b: net(b["x"], mask=b["mask"]), passes=2
    )
    kept = [x[m[:, 0]] for x, m in zip(data, masks, strict=True)]
    expected = population_in_evaluation(variables, kept)
    chex.assert_trees_all_close(stats, jax.tree.map(np.float32, expected), atol=2e-6)


def test_batches_sharded_over_devices(variables, rng):
    data = [rng.normal(size=(16, 4)).astype(np.float32) for _ in range(2)]
    sharding = NamedSharding(jax.make_mesh((8,), ("d",)), PartitionSpec("d"))
    sharded = [jax.device_put(x, sharding) for x in data]
    stats = [tools.recalibrate(Net(), variables, d, passes=2) for d in (data, sharded)]
    chex.assert_trees_all_close(*map(jax.device_get, stats), atol=1e-6)


def test_a_progress_bar(variables, data, capsys):
    tools.recalibrate(Net(), variables, data[:1], passes=2, progress=True)
    assert "recalibrating, pass 2 of 2" in capsys.readouterr().err


class Strange(nn.Module):
    """A norm of flax.linen's, one that is not called, and one that is."""

    @nn.compact
    def __call__(self, x, everything=False):
        if everything:
            jnn.BatchNorm(use_running_average=True, name="unused")(x)
        x = nn.BatchNorm(use_running_average=True, name="other")(x)
        return jnn.BatchNorm(use_running_average=True, name="norm")(x)


def test_errors(variables, data):
    def message(*args, **kwargs):
        with pytest.raises(ValueError) as error:
            tools.recalibrate(*args, **kwargs)
        return str(error.value)

    assert message(Net(), variables, []) == (
        "batches is empty; recalibration needs at least one batch."
    )
    assert message(Net(), variables, data, passes=0) == "passes must be at least 1, got 0."
    assert message(Net(), variables, iter(data), passes=2) == (
        "passes=2 goes through the batches more than once, but they are an iterator, which ends; "
        "give a list or another iterable that starts anew."
    )
    assert message(Net(), {"params": variables["params"]}, data) == (
        "variables has no batch_stats to recalibrate."
    )
    strange = drawn(Strange(), data[0], everything=True)
    assert message(Strange(), strange, data) == (
        "no elements reached the statistics at batch_stats/unused: their layer is not called in "
        "evaluation, or only in a loop of unknown length, or is no batch norm of jaxnorm or flax. "
        "Leave them out of the model's variables, or call the model so that they are used."
    )


def test_statistics_of_another_kind_are_refused(data):
    class Whitened(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = jnn.DecorrelatedBatchNorm(use_running_average=True, name="whiten")(x)
            return jnn.BatchNorm(use_running_average=True, name="norm")(x)

    variables = drawn(Whitened(), data[0])
    with pytest.raises(ValueError) as error:
        tools.recalibrate(Whitened(), variables, data)
    assert str(error.value) == (
        "the statistics at batch_stats/whiten, ['mean', 'projection'], are not a mean and a "
        "variance; recalibrate computes those of jaxnorm.linen.BatchNorm and "
        "jaxnorm.nnx.BatchNorm alone."
    )
