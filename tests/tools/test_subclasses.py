"""The tools on a batch norm of one's own, whose call ends in that of the norm: as on the norm."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm.drop_in.linen
import jaxnorm.drop_in.nnx
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx
from jaxnorm import tools

pytestmark = pytest.mark.quickly_compiled

X = 5 + 2 * np.random.default_rng(0).standard_normal((32, 3)).astype(np.float32)
LINEN = (nn.BatchNorm, jnn.BatchNorm, jaxnorm.drop_in.linen.BatchNorm)
NNX = (nnx.BatchNorm, jnx.BatchNorm, jaxnorm.drop_in.nnx.BatchNorm)


def plain(norm, x, train):
    return norm(x, use_running_average=not train)


def in_mode(norm, x, train):
    return norm(x, train)


def alone(norm, x, train):
    """Its own field says which mode it is in."""
    return norm(x)


def linen_subclasses(base):
    class InMode(base):
        @nn.compact
        def __call__(self, x, train):
            return super().__call__(x, use_running_average=not train)

    class Deeper(InMode):
        @nn.compact
        def __call__(self, x, train=True):
            return super().__call__(x, train)

    class Alone(base):
        @nn.compact
        def __call__(self, x):
            return super().__call__(x)

    return (InMode, in_mode), (Deeper, in_mode), (Alone, alone)


def nnx_subclasses(base):
    class InMode(base):
        def __call__(self, x, train):
            return super().__call__(x, use_running_average=not train)

    class Deeper(InMode):
        def __call__(self, x, train=True):
            return super().__call__(x, train)

    class Alone(base):
        def __call__(self, x):
            return super().__call__(x)

    return (InMode, in_mode), (Deeper, in_mode), (Alone, alone)


class Net(nn.Module):
    norm: type[nn.Module]
    call: object
    field: bool | None = None

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(2, name="dense")(x)
        norm = self.norm(use_running_average=self.field, name="norm")
        return nn.Dense(2, name="out")(nn.relu(self.call(norm, x, train)))


class Model(nnx.Module):
    def __init__(self, norm, call):
        rngs = nnx.Rngs(0)
        self.dense, self.out = (nnx.Linear(n, 2, rngs=rngs) for n in (3, 2))
        self.norm, self.call = norm(2, rngs=rngs), call

    def __call__(self, x, train):
        return self.out(nnx.relu(self.call(self.norm, self.dense(x), train)))


def evaluate(net, x):
    return net(x, False)


def train(net, x):
    return net(x, True)


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("base", LINEN)
def test_linen(base, kind):
    norm, call = linen_subclasses(base)[kind]

    def net(norm, call, evaluates):
        field = evaluates if call is alone else None
        return Net(norm, call, field)

    variables = net(base, plain, True).init(jax.random.key(0), X, False)
    reference, mine = net(base, plain, True), net(norm, call, True)
    seen = [tools.recalibrate(m, variables, [X], call=evaluate) for m in (reference, mine)]
    chex.assert_trees_all_equal(*seen)
    assert float(jnp.abs(seen[0]["norm"]["mean"]).max()) > 0.1
    seen = [tools.inspect(m, variables, [X], call=evaluate) for m in (reference, mine)]
    assert seen[0].findings == seen[1].findings
    assert [layer.path for layer in seen[1].layers] == ["norm"]
    folded = tools.fold(mine, variables, X, call=evaluate)
    assert (folded.pairs, folded.kept) == ([("dense", "norm")], [])
    y = mine.apply(variables, X, False)
    np.testing.assert_allclose(folded.apply(folded.variables, X), y, atol=1e-5)
    training = net(norm, call, False)
    assert tools.find_mixing(mine, variables, X, call=evaluate) == []
    assert tools.find_mixing(training, variables, X, call=train) == ["norm"]
    with tools.freeze("norm"):
        frozen, new = training.apply(variables, X, True, mutable=["batch_stats"])
    np.testing.assert_allclose(frozen, y, atol=1e-6)
    chex.assert_trees_all_equal(new["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("base", NNX)
def test_nnx(base, kind):
    norm, call = nnx_subclasses(base)[kind]
    reference, mine = Model(base, plain), Model(norm, call)
    for model in (reference, mine):
        tools.recalibrate(model, [X], call=evaluate)
    chex.assert_trees_all_equal(*(nnx.state(m, nnx.BatchStat) for m in (reference, mine)))
    assert float(jnp.abs(mine.norm.mean[...]).max()) > 0.1
    assert type(mine.norm) is norm
    seen = [tools.inspect(m, [X], call=evaluate) for m in (reference, mine)]
    assert seen[0].findings == seen[1].findings
    assert [layer.path for layer in seen[1].layers] == ["norm"]
    folded = tools.fold(mine, X, call=evaluate)
    assert (folded.pairs, folded.kept) == ([("dense", "norm")], [])
    mine.eval()
    y = mine(X, False)
    np.testing.assert_allclose(folded.apply(folded.variables, X), y, atol=1e-5)
    mine.train()
    assert tools.find_mixing(mine, X, call=train) == ["norm"]
    before = nnx.state(mine, nnx.BatchStat)
    with tools.freeze(mine, "norm"):
        np.testing.assert_allclose(mine(X, True), y, atol=1e-6)
    chex.assert_trees_all_equal(nnx.state(mine, nnx.BatchStat), before)
    assert type(mine.norm) is norm


def test_subclasses_of_ours_accumulate():
    norm, call = linen_subclasses(jnn.BatchNorm)[0]
    variables = Net(norm, call).init(jax.random.key(0), X, False)

    def statistics(net, parts):
        stats = tools.accumulate(variables["batch_stats"])
        for part in np.split(X, parts):
            given = {**variables, "batch_stats": stats}
            stats = net.apply(given, part, True, mutable=["batch_stats"])[1]["batch_stats"]
        return tools.settle(stats, momentum=0.99)

    mine = statistics(Net(norm, call), 2)
    chex.assert_trees_all_equal(mine, statistics(Net(jnn.BatchNorm, plain), 2))
    model, other = Model(*nnx_subclasses(jnx.BatchNorm)[0]), Model(jnx.BatchNorm, plain)
    for each in (model, other):
        tools.accumulate(each)
        each(X[:16], True)
        each(X[16:], True)
        tools.settle(each, momentum=0.99)
    chex.assert_trees_all_equal(*(nnx.state(m, nnx.BatchStat) for m in (model, other)))


class OwnArithmetic(jnn.BatchNorm):
    """It takes nothing but the variables' names."""

    @nn.compact
    def __call__(self, x, train):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:]).value
        var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1:]).value
        return (x - mean[None]) * jax.lax.rsqrt(1e-5 + var[None])


def test_one_that_computes_by_itself_is_named():
    net = Net(OwnArithmetic, in_mode)
    variables = net.init(jax.random.key(0), X, False)
    folded = tools.fold(net, variables, X, call=evaluate)
    reason = "its class OwnArithmetic computes in a way of its own"
    assert (folded.pairs, folded.kept) == ([], [("norm", reason)])
    (layer,) = tools.inspect(net, variables, [X], call=evaluate).layers
    hidden = nn.Dense(2).apply({"params": variables["params"]["dense"]}, X)
    np.testing.assert_allclose(layer.batch.mean, hidden.mean(0), rtol=1e-5)
    with pytest.raises(ValueError, match="no elements reached the statistics at batch_stats/norm:"):
        tools.recalibrate(net, variables, [X], call=evaluate)
