"""`replace()`: the norms of a built NNX model compute by jaxnorm, and all else is as it was."""

import flax.linen
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxnorm.drop_in.nnx as drop_in
import jaxnorm.nnx as jnx
from jaxnorm.drop_in.linen import everywhere

pytestmark = pytest.mark.quickly_compiled


class Exact(nnx.LayerNorm):
    """A class that is made in another way, and computes as flax does."""

    def __init__(self, size, rngs):
        super().__init__(size, epsilon=1e-5, rngs=rngs)


class Constant(nnx.LayerNorm):
    """A class that computes by itself."""

    def __call__(self, x):
        return jnp.full_like(x, 7)


class Net(nnx.Module):
    """Norms wherever NNX finds modules."""

    def __init__(self, rngs):
        self.batch = nnx.BatchNorm(4, rngs=rngs, scale_metadata={"mine": "s"})
        self.shared = nnx.LayerNorm(4, rngs=rngs)
        self.listed = nnx.List(
            [self.shared, nnx.RMSNorm(4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)]
        )
        self.named = nnx.Dict(a=nnx.GroupNorm(4, 2, rngs=rngs), b=nnx.Dict(c=self.shared))
        self.plain = nnx.data([{"d": nnx.InstanceNorm(4, rngs=rngs)}])
        self.exact, self.constant = Exact(4, rngs), Constant(4, rngs=rngs)
        self.ours = jnx.LayerNorm(4)
        self.chain = nnx.Sequential(nnx.LayerNorm(4, rngs=rngs), nnx.relu)

        @nnx.split_rngs(splits=2)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs):
            return nnx.LayerNorm(4, rngs=rngs)

        self.stacked = make(rngs)

    def __call__(self, x):
        x = self.batch(self.named.a(self.listed[1](self.shared(x))))
        x = self.listed[2](self.chain(self.exact(x)))

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, norm):
            return norm(x)

        return run(x, self.stacked)


@pytest.fixture
def net():
    return nnx.jit(lambda: Net(nnx.Rngs(0)))()


def variables_of(model):
    return [v for _, v in nnx.iter_graph(model) if isinstance(v, nnx.Variable)]


def test_norms_are_found_wherever_they_are(net):
    assert drop_in.replace(net) is net and drop_in.replace(net) is net
    found = {
        "batch": (net.batch, drop_in.BatchNorm),
        "shared": (net.shared, drop_in.LayerNorm),
        "listed": (net.listed[1], drop_in.RMSNorm),
        "named": (net.named.a, drop_in.GroupNorm),
        "plain": (net.plain[0]["d"], drop_in.InstanceNorm),
        "chain": (net.chain.layers[0], drop_in.LayerNorm),
        "stacked": (net.stacked, drop_in.LayerNorm),
        "constant": (net.constant, Constant),
        "ours": (net.ours, jnx.LayerNorm),
        "linear": (net.listed[2], nnx.Linear),
    }
    assert [name for name, (node, kind) in found.items() if type(node) is not kind] == []
    assert net.shared is net.listed[0] is net.named.b.c
    # A class of the user's stays one of those, under its name, with jaxnorm's computation.
    assert isinstance(net.exact, Exact) and type(net.exact).__name__ == "Exact"
    x = 1e6 + np.array([[1, 3, 1, 3]], np.float32)
    y = np.array([[-1.0, 1.0, -1.0, 1.0]])
    np.testing.assert_allclose(net.exact(x), y, atol=1e-5)
    assert not np.allclose(Exact(4, nnx.Rngs(0))(x), y, atol=0.1)
    np.testing.assert_allclose(net.constant(x), 7)
    assert drop_in.replace([Exact(4, nnx.Rngs(0))])[0].__class__ is type(net.exact)


def test_an_optimizer_goes_on_with_the_same_variables(net, rng):
    x = rng.normal(size=(8, 4)).astype(np.float32)
    other = nnx.clone(net)
    optimizers = [
        nnx.jit(lambda m: nnx.Optimizer(m, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param))(model)
        for model in (net, other)
    ]

    @nnx.jit
    def step(model, optimizer, x):
        loss = lambda model: jnp.square(model(x) - jnp.roll(x, 1)).mean()  # noqa: E731
        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    for _ in range(2):
        assert step(net, optimizers[0], x) == step(other, optimizers[1], x)
    before = variables_of(net)
    metadata = [v.get_metadata() for v in before]
    drop_in.replace(net)
    after = variables_of(net)
    assert [id(v) for v in before] == [id(v) for v in after]
    assert [v.get_metadata() for v in after] == metadata and net.batch.scale.mine == "s"
    for _ in range(3):
        losses = [step(model, o, x) for model, o in zip((net, other), optimizers, strict=True)]
        np.testing.assert_allclose(*losses, rtol=1e-5)
    for mine, theirs in zip(variables_of(net), variables_of(other), strict=True):
        np.testing.assert_allclose(mine[...], theirs[...], atol=2e-5)
    # Both ways through split and merge, and in evaluation.
    graph, state = nnx.split(net)
    again = nnx.merge(graph, state)
    assert type(again.batch) is drop_in.BatchNorm
    models = net, again, other
    for model in models:
        model.eval()
    call = nnx.jit(lambda model, x: model(x))
    y = [call(model, x) for model in models]
    np.testing.assert_array_equal(y[0], y[1])
    np.testing.assert_allclose(y[0], y[2], atol=2e-5)


def test_linen_modules_within_are_left_to_everywhere(rng):
    x = jnp.asarray(rng.normal(1e6, 1, (2, 8)), jnp.float32)
    model = nnx.bridge.ToNNX(flax.linen.LayerNorm(), rngs=nnx.Rngs(0)).lazy_init(x)
    before = model(x)
    np.testing.assert_array_equal(drop_in.replace(model)(x), before)
    with everywhere():
        inside = model(x)
    assert abs(inside).max() < 3 < abs(before).max()


def test_what_is_no_nnx_model_is_an_error():
    for wrong in (flax.linen.LayerNorm(), nnx.LayerNorm, 3):
        with pytest.raises(TypeError, match=r"takes a flax\.nnx model that is built, .*everywhere"):
            drop_in.replace(wrong)
