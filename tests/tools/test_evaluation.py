"""Models that evaluate where `batch_stats` are not mutable, and norms that steps share."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx
from jaxnorm import tools
from tests.support.jaxpr_text import drawn
from tests.support.recalibration import start

pytestmark = pytest.mark.quickly_compiled

BATCH_NORMS = (nn.BatchNorm, jnn.BatchNorm)


def make_batches(rng):
    """Far apart, so that it is seen by what an example is normalized."""
    return [rng.normal(m, s, (n, 4)).astype(np.float32) for m, s, n in ((1, 2, 6), (-3, 5, 20))]


class Net(nn.Module):
    """Two batch norms in sequence, which find out for themselves whether they train."""

    norm: type[nn.Module]
    how: str = "explicit"

    def setup(self):
        self.denses = [nn.Dense(4) for _ in range(2)]
        self.trains = self.is_mutable_collection("batch_stats")
        self.norms = [self.norm() for _ in range(2)]

    def is_trained(self):
        return self.is_mutable_collection("batch_stats")

    def __call__(self, x):
        evaluate = {
            "explicit": lambda: True,
            "in setup": lambda: not self.trains,
            "in a method": lambda: not self.is_trained(),
        }[self.how]()
        for dense, norm in zip(self.denses, self.norms, strict=True):
            x = nn.relu(norm(dense(x), use_running_average=evaluate))
        return x


def mutable(norm):
    class ByMutability(norm):
        @nn.compact
        def __call__(self, x, use_running_average=None):
            evaluate = not self.is_mutable_collection("batch_stats")
            return super().__call__(x, use_running_average=evaluate)

    return ByMutability


@pytest.mark.parametrize("how", ["in setup", "in a method", "in the norm"])
@pytest.mark.parametrize("norm", BATCH_NORMS)
def test_what_is_not_mutable_is_evaluated(norm, how, rng):
    batches, explicit = make_batches(rng), Net(norm)
    net = Net(mutable(norm)) if how == "in the norm" else Net(norm, how)
    variables = drawn(explicit, batches[0])
    stats, mine = (tools.recalibrate(m, variables, batches, passes=3) for m in (explicit, net))
    chex.assert_trees_all_close(mine, stats, rtol=1e-6)
    assert tools.find_mixing(net, variables, batches[0]) == []
    folded = tools.fold(net, variables, batches[0])
    assert len(folded.pairs) == 2
    y = net.apply(variables, batches[0])
    np.testing.assert_allclose(folded.apply(folded.variables, batches[0]), y, atol=1e-4)
    assert tools.inspect(net, variables, batches).findings == (
        tools.inspect(explicit, variables, batches).findings
    )


def test_training_of_such_a_model_is_asked_for_by_its_own_apply(rng):
    net, batches = Net(jnn.BatchNorm, "in a method"), make_batches(rng)

    def train(net, x):
        module, variables = net.unbind()
        return module.apply(variables, x, mutable=["batch_stats"])[0]

    variables = drawn(net, batches[0])
    assert tools.find_mixing(net, variables, batches[0], call=train) == ["norms_0", "norms_1"]


@pytest.mark.parametrize("norm", BATCH_NORMS)
def test_steps_of_a_scan_share_a_norm(norm, rng):
    """Each step's input counts, in evaluation and where batches normalize themselves."""

    class Step(nn.Module):
        @nn.compact
        def __call__(self, carry, x):
            return carry, norm(use_running_average=True, name="norm")(nn.Dense(4, name="dense")(x))

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x):
            scan = nn.scan(
                Step,
                variable_broadcast=("params", "batch_stats"),
                split_rngs={"params": False},
                in_axes=1,
                out_axes=1,
            )
            return scan(name="steps")(0.0, x)[1]

    batches = [rng.normal(2, 3, (n, 5, 3)).astype(np.float32) for n in (8, 4)]
    variables = drawn(Scanned(), batches[0])
    dense = jax.tree.map(np.float64, variables["params"]["steps"]["dense"])
    seen = np.concatenate(batches).reshape(-1, 3) @ dense["kernel"] + dense["bias"]
    for passes in (1, 2):
        stats = tools.recalibrate(Scanned(), variables, batches, passes=passes)["steps"]["norm"]
        np.testing.assert_allclose(stats["mean"], seen.mean(0), rtol=2e-5, atol=1e-5)
        np.testing.assert_allclose(stats["var"], seen.var(0), rtol=2e-5)
    (layer,) = tools.inspect(Scanned(), variables, batches).layers
    np.testing.assert_allclose(layer.batch.mean, seen.mean(0), rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(layer.batch.var, seen.var(0), rtol=2e-5)


@pytest.mark.parametrize("norm", [nnx.BatchNorm, jnx.BatchNorm])
def test_steps_of_an_nnx_scan_share_a_norm(norm, rng):
    class Scanned(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.dense, self.norm = nnx.Linear(3, 4, rngs=rngs), norm(4, rngs=rngs)

        def __call__(self, x):
            @nnx.scan(in_axes=(nnx.Carry, 1), out_axes=(nnx.Carry, 1))
            def step(model, x):
                return model, model.norm(model.dense(x))

            return step(self, x)[1]

    x, model = rng.normal(2, 3, (8, 5, 3)).astype(np.float32), Scanned()
    seen = np.asarray(model.dense(x), np.float64).reshape(-1, 4)
    (layer,) = tools.inspect(model, [x]).layers
    tools.recalibrate(model, [x])
    for mean, var in (layer.batch[:2], (model.norm.mean[...], model.norm.var[...])):
        np.testing.assert_allclose(mean, seen.mean(0), rtol=2e-5, atol=1e-5)
        np.testing.assert_allclose(var, seen.var(0), rtol=2e-5)


def test_a_recurrent_norm_is_exact_after_as_many_passes_as_steps(rng):
    class Cell(nn.Module):
        @nn.compact
        def __call__(self, carry, x):
            x = nn.Dense(4)(jnp.concatenate([carry, x], -1))
            x = jnn.BatchNorm(use_running_average=True, name="norm")(x)
            return nn.tanh(x), x

    class Recurrent(nn.Module):
        @nn.compact
        def __call__(self, x):
            shared = {"variable_broadcast": ("params", "batch_stats")}
            scan = nn.scan(Cell, **shared, split_rngs={"params": False}, in_axes=1, out_axes=1)
            return scan(name="cell")(jnp.zeros((x.shape[0], 4)), x)[1]

    x = rng.normal(1, 2, (8, 5, 3)).astype(np.float32)
    variables = start(Recurrent(), x)
    stats = tools.recalibrate(Recurrent(), variables, [x], passes=8)
    y = np.asarray(Recurrent().apply({**variables, "batch_stats": stats}, x)).reshape(-1, 4)
    np.testing.assert_allclose(y.mean(0), np.zeros(4), atol=1e-4)
    np.testing.assert_allclose(y.var(0), np.ones(4), atol=1e-3)


def test_stacked_statistics_find_their_places(rng):
    """Layers of a scan in a vmap along other axes, each called by two steps that share it."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            norm = jnn.BatchNorm(use_running_average=True, name="norm")
            return norm(x), norm(3 * x).sum()

    class Stacked(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"params": 1, "batch_stats": 1}
            layers = nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=2)
            models = nn.vmap(
                layers, variable_axes={"params": 0, "batch_stats": 2}, split_rngs={"params": True}
            )
            return models(name="models")(x, None)[0]

    x = rng.normal(2, 3, (2, 50, 2)).astype(np.float32)
    variables = drawn(Stacked(), x)
    params = variables["params"]["models"]["norm"]
    stats = tools.recalibrate(Stacked(), variables, [x])["models"]["norm"]
    for model in range(2):
        seen = np.float64(x[model])
        for layer in range(2):
            pooled = np.concatenate([seen, 3 * seen])
            np.testing.assert_allclose(stats["mean"][:, layer, model], pooled.mean(0), atol=1e-5)
            np.testing.assert_allclose(stats["var"][:, layer, model], pooled.var(0), rtol=1e-5)
            gamma, beta = (params[n][model, :, layer] for n in ("gamma", "beta"))
            seen = (seen - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-5) * gamma + beta


def test_layers_in_branches(rng):
    class Branches(nn.Module):
        def setup(self):
            self.norms = [jnn.BatchNorm(use_running_average=True) for _ in range(2)]

        def __call__(self, x, first):
            if self.is_initializing():
                return [norm(x) for norm in self.norms]
            branches = (lambda m, x: m.norms[0](x)), (lambda m, x: m.norms[1](2 * x))
            return nn.cond(first, *branches, self, x)

    x = rng.normal(2, 3, (8, 3)).astype(np.float32)
    variables = drawn(Branches(), x, True)
    batches = [(x, jnp.array(True)), (x, jnp.array(False))]
    stats = tools.recalibrate(Branches(), variables, batches, call=lambda net, b: net(*b))
    np.testing.assert_allclose(stats["norms_0"]["mean"], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["norms_1"]["mean"], 2 * x.mean(0), rtol=1e-5)


def test_the_same_model_is_compiled_once(rng):
    traced = []

    class Counted(nn.Module):
        @nn.compact
        def __call__(self, x):
            traced.append(x.shape)
            return jnn.BatchNorm(use_running_average=True)(x)

    x = rng.normal(2, 3, (8, 3)).astype(np.float32)
    variables = drawn(Counted(), x)
    traced.clear()
    scale = 2.0
    for _ in range(3):
        means = [
            tools.recalibrate(Counted(), variables, [x, x + 1], call=call)["BatchNorm_0"]["mean"]
            for call in (None, lambda net, x: net(scale * x))
        ]
        np.testing.assert_allclose(means[1], 2 * x.mean(0) + 1, rtol=1e-5)
    assert len(traced) == 2
    # What it refers to has changed: a value, or what is in a dict.
    factor, table = 1.0, {}
    for factor in (3.0, 4.0):
        table["factor"] = factor
        calls = (lambda net, x: net(factor * x), lambda net, x: net(table["factor"] * x))  # noqa: B023
        for call in calls:
            stats = tools.recalibrate(Counted(), variables, [x], call=call)
            want = factor * x.mean(0)
            np.testing.assert_allclose(stats["BatchNorm_0"]["mean"], want, rtol=1e-5)
    assert len(traced) == 6


class Chosen(nn.Module):
    """As reinforcement learning has it: one norm whose output is not used keeps the structure."""

    norm: type[nn.Module]

    @nn.compact
    def __call__(self, x, train):
        self.norm(use_running_average=not train, name="unused")(x)
        normalize = lambda x: self.norm(use_running_average=not train)(x)  # noqa: E731
        return nn.Dense(2)(nn.relu(normalize(nn.Dense(4)(x))))


@pytest.mark.parametrize("norm", BATCH_NORMS)
def test_a_norm_whose_output_is_not_used(norm, rng):
    net, x = Chosen(norm), rng.normal(2, 3, (8, 3)).astype(np.float32)
    variables, call = drawn(net, x, train=False), lambda net, x: net(x, False)
    stats = tools.recalibrate(net, variables, [x], call=call)
    np.testing.assert_allclose(stats["unused"]["mean"], x.mean(0), rtol=1e-5)
    folded = tools.fold(net, variables, x, call=call)
    assert [norm for _, norm in folded.pairs] == ["BatchNorm_0"]
    y = net.apply(variables, x, False)
    np.testing.assert_allclose(folded.apply(folded.variables, x), y, atol=1e-4)
    mixing = tools.find_mixing(net, variables, x, call=lambda net, x: net(x, True))
    assert mixing == ["BatchNorm_0"]
