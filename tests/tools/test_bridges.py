"""Norms behind `flax.nnx.bridge`: NNX within linen, and linen within NNX."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge

import jaxnorm.drop_in.nnx
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx
from jaxnorm import tools

X = np.random.default_rng(0).normal(5.0, 2.0, (16, 4)).astype(np.float32)
BATCHES = [X[:6], X[6:]]
# Initialization draws, and flax's bridge says so when it makes its dummies.
pytestmark = [
    pytest.mark.quickly_compiled,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Inner(nnx.Module):
    def __init__(self, kind, *, rngs):
        self.norm, self.linear = kind(4, momentum=0.9, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.layer = jnx.LayerNorm(4)

    def __call__(self, x):
        return self.layer(self.linear(self.norm(x)))


class Linen(nn.Module):
    kind: type

    @nn.compact
    def __call__(self, x):
        x = bridge.to_linen(Inner, self.kind, name="inner")(x)
        x = bridge.to_linen(self.kind, 4, name="alone")(x)
        return jnn.BatchNorm(use_running_average=False, momentum=0.9, name="outer")(x)


KINDS = [jnx.BatchNorm, nnx.BatchNorm, jaxnorm.drop_in.nnx.BatchNorm]


@pytest.fixture(params=KINDS, ids=["jaxnorm", "flax", "drop-in"])
def linen(request):
    net = Linen(request.param)
    return net, net.init(jax.random.key(0), X)


def means(stats):
    stats = nn.meta.unbox(stats)
    places = {
        "inner/norm": stats["inner"]["norm"],
        "alone": stats["alone"],
        "outer": stats["outer"],
    }
    return {path: np.asarray(node["mean"]) for path, node in places.items()}


def test_nnx_within_linen_is_frozen(linen):
    net, variables = linen
    step = jax.jit(lambda v: net.apply(v, X, mutable=["batch_stats"])[1]["batch_stats"])
    for pattern, resting in {
        "*": {"inner/norm", "alone", "outer"},
        "inner/*": {"inner/norm"},
        "alone": {"alone"},
    }.items():
        with tools.freeze(pattern):
            new = means(step(variables))
        assert {path for path, mean in new.items() if not mean.any()} == resting
    assert all(mean.any() for mean in means(step(variables)).values())
    with pytest.raises(ValueError, match="these are there: alone, inner/norm, outer"):
        with tools.freeze("inner"):
            step(variables)


def test_nnx_within_linen_is_seen(linen):
    net, variables = linen
    mask = nn.meta.unbox(tools.norm_params(net, variables, X))
    assert set(mask["inner"]["linear"].values()) == {False}
    for norm in (mask["inner"]["norm"], mask["inner"]["layer"], mask["alone"], mask["outer"]):
        assert set(norm.values()) == {True}
    found = tools.inspect(net, variables, BATCHES)
    assert [layer.path for layer in found.layers] == ["inner/norm", "inner/layer", "alone", "outer"]


def test_fold_keeps_what_lies_behind_a_bridge(linen, net):
    with tools.freeze("*"):
        kept = dict(tools.fold(*linen, X).kept)
    assert kept["inner/norm"] == kept["alone"] == "it lies behind flax.nnx.bridge"
    assert dict(tools.fold(net, X).kept)["inner/norm"] == "it lies behind flax.nnx.bridge"


def test_nnx_within_linen_is_recalibrated(linen):
    net, variables = linen
    stats = tools.recalibrate(net, variables, BATCHES, passes=3)
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    np.testing.assert_allclose(means(stats)["inner/norm"], X.mean(0), rtol=1e-5)
    # In evaluation the last norm's input has the moments that it was given.
    variables = {**variables, "batch_stats": stats}
    with tools.freeze("*"):
        y = net.apply(variables, X)
    np.testing.assert_allclose(y.mean(0), np.zeros(4), atol=1e-4)
    np.testing.assert_allclose(y.var(0), np.ones(4), atol=2e-3)


def test_nnx_within_linen_does_not_accumulate(linen):
    net, variables = linen
    stats = tools.accumulate(variables["batch_stats"])
    with pytest.raises(ValueError) as error:
        net.apply({**variables, "batch_stats": stats}, X, mutable=["batch_stats"])
    assert str(error.value) == (
        "the layer of the running mean at batch_stats/inner/norm cannot accumulate: norms of "
        "jaxnorm.linen and jaxnorm.drop_in.linen do. It lies behind flax.nnx.bridge.to_linen."
    )


class LinenInner(nn.Module):
    kind: type

    @nn.compact
    def __call__(self, x, train=False):
        x = self.kind(use_running_average=not train, momentum=0.9, name="norm")(x)
        return nn.LayerNorm(name="layer")(nn.Dense(4, name="dense")(x))


class Nnx(nnx.Module):
    def __init__(self, kind, rngs):
        inner = bridge.ToNNX(LinenInner(kind), rngs=rngs)
        alone = bridge.ToNNX(kind(use_running_average=True), rngs=rngs)
        self.inner, self.alone = bridge.lazy_init(inner, X), bridge.lazy_init(alone, X)
        self.outer = jnx.BatchNorm(4)

    def __call__(self, x, **options):
        x = self.inner(x, **options)
        return self.outer(self.alone(x[0] if options else x))


@pytest.fixture(params=[jnn.BatchNorm, nn.BatchNorm], ids=["jaxnorm", "flax"])
def net(request):
    return Nnx(request.param, nnx.Rngs(0))


def test_linen_within_nnx_is_frozen(net):
    @nnx.jit
    def step(net):
        return net.inner(X, train=True, mutable=["batch_stats"])

    with tools.freeze(net, "inner/*"):
        step(net)
    assert not net.inner.norm["mean"][...].any()
    with pytest.raises(ValueError, match="these are there: alone, inner/norm, outer"):
        with tools.freeze(net, "inner"):
            pass
    step(net)
    assert net.inner.norm["mean"][...].any()


def test_linen_within_nnx_is_seen(net):
    layers = tools.inspect(net, BATCHES).layers
    assert [layer.path for layer in layers] == ["inner/norm", "inner/layer", "alone", "outer"]
    with pytest.raises(ValueError, match=r"behind flax\.nnx\.bridge\.ToNNX at alone, inner show"):
        tools.norm_params(net)
    mask = nnx.to_pure_dict(tools.norm_params(net, X))
    assert set(mask["inner"]["dense"].values()) == {False}
    norms = (mask["inner"]["norm"], mask["inner"]["layer"], mask["alone"], mask["outer"])
    assert all(set(norm.values()) == {True} for norm in norms)
    # Where there are kernels alone, nothing has to be asked.
    dense = bridge.lazy_init(bridge.ToNNX(nn.Dense(4), rngs=nnx.Rngs(0)), X)
    mask = nnx.to_pure_dict(tools.norm_params(nnx.Sequential(dense, jnx.LayerNorm(4))))
    assert not any(mask["layers"][0].values()) and all(mask["layers"][1].values())


def test_linen_within_nnx_is_recalibrated(net):
    tools.recalibrate(net, BATCHES, passes=3)
    np.testing.assert_allclose(net.inner.norm["mean"][...], X.mean(0), rtol=1e-5)
    net.eval()
    y = net(X)
    np.testing.assert_allclose(y.mean(0), np.zeros(4), atol=1e-4)
    np.testing.assert_allclose(y.var(0), np.ones(4), atol=2e-3)


def test_linen_within_nnx_does_not_accumulate(net):
    with pytest.raises(ValueError, match=r"the linen model at alone, behind flax\.nnx\.bridge\.To"):
        tools.accumulate(net)
