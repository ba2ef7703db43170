"""Baking the weights of wrappers into plain parameters."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm.linen as jnn
from tests.support.jaxpr_text import drawn, initialized

pytestmark = pytest.mark.quickly_compiled

KEY = jax.random.key(0)
evaluated = functools.partial(jnn.SpectralNorm, update_stats=False)
standardized = functools.partial(jnn.WeightStandardization, use_gain=True)


def unwrapped(layer, **options):
    return layer


class Compact(nn.Module):
    wrap: callable

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4)(x)
        x = nn.relu(self.wrap(nn.Dense(5))(x))
        return self.wrap(nn.Sequential([nn.Dense(6), nn.Dense(5)]), name="last")(x)


class Setup(nn.Module):
    wrap: callable

    def setup(self):
        self.first = self.wrap(nn.Dense(5))
        self.dense = nn.Dense(5)
        self.second = self.wrap(self.dense)
        self.rest = [self.wrap(nn.Dense(5)), nn.BatchNorm(use_running_average=True)]

    def __call__(self, x):
        x = self.second(nn.relu(self.first(x)))
        for layer in self.rest:
            x = layer(x)
        return x


class Block(nn.Module):
    wrap: callable

    @nn.compact
    def __call__(self, x, _):
        return x + self.wrap(nn.Dense(5))(x), None


class Scanned(nn.Module):
    wrap: callable

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "batch_stats": 0}
        layers = nn.scan(nn.remat(Block), axes, split_rngs={"params": True}, length=3)
        return layers(self.wrap, name="layers")(x, None)[0]


def alone(wrap):
    return wrap(nn.Dense(5))


def twice(wrap):
    return jnn.WeightNorm(wrap(nn.Dense(5)))


def twice_plain(wrap):
    return nn.Dense(5)


MODELS = {
    "compact": (Compact, Compact),
    "setup": (Setup, Setup),
    "scanned": (Scanned, Scanned),
    "alone": (alone, alone),
    "twice": (twice, twice_plain),
}
# Each model, and each wrapper where it matters how often: in a model, in a loop, within another.
PAIRS = [
    *((name, jnn.WeightNorm) for name in MODELS if name != "twice"),
    *((name, evaluated) for name in ("compact", "scanned")),
    *((name, standardized) for name in ("setup", "scanned", "twice")),
]


@pytest.mark.parametrize(("name", "wrap"), PAIRS, ids=str)
def test_the_model_without_wrappers_computes_the_same(name, wrap, rng):
    x = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
    model, plain = MODELS[name]
    wrapped, plain = model(wrap), plain(unwrapped)
    # Away from the start, where weight norm changes nothing.
    variables = drawn(wrapped, x)
    before = jax.tree.map(np.copy, variables)
    baked = jnn.bake(wrapped, variables, x)
    jax.tree.map(np.testing.assert_array_equal, before, variables)
    # The very same tree as without wrappers.
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(plain.init, KEY, x))
    assert jax.tree.map(jnp.shape, baked) == shapes
    results = jax.jit(lambda a, b: (plain.apply(a, x), wrapped.apply(b, x)))(baked, variables)
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5)


def test_arguments_of_the_call(rng):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.Dropout(0.5, deterministic=not train)(x)
            return jnn.SpectralNorm(nn.Dense(2))(x, update_stats=train)

    x = np.ones((3, 5), np.float32)
    variables = initialized(Model(), x, train=False)
    baked = jnn.bake(Model(), variables, jax.ShapeDtypeStruct(x.shape, x.dtype), train=False)
    kernel = baked["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(np.linalg.svd(kernel)[1][0], 1, rtol=1e-3)
    assert set(baked) == {"params"}
    again = jnn.bake(
        Model(), variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": KEY}
    )
    np.testing.assert_array_equal(again["params"]["Dense_0"]["kernel"], kernel)


def test_partitioned_parameters_keep_their_names(rng):
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    layer = jnn.WeightNorm(nn.Dense(3, kernel_init=init))
    x = np.ones((2, 4), np.float32)
    baked = jnn.bake(layer, initialized(layer, x), x)
    assert baked["params"]["kernel"].names == (None, "model")


def raises(message):
    # JAX may add a note on its own line.
    return pytest.raises(ValueError, match="^" + re.escape(message) + "(\n|$)")


def test_errors():
    x = np.ones((2, 5), np.float32)
    dense = nn.Dense(5)
    with raises(
        "bake found no WeightNorm, SpectralNorm or WeightStandardization in " + repr(dense) + "; "
        "its variables are plain already."
    ):
        jnn.bake(dense, drawn(dense, x), x)

    class Shared(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(5)
            return jnn.WeightNorm(layer, name="a")(jnn.WeightNorm(layer, name="b")(x))

    with raises(
        "b and a wrap the same layer Dense_0, which cannot hold the weights of both; bake a "
        "model that wraps each layer once."
    ):
        jnn.bake(Shared(), drawn(Shared(), x), x)

    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"params": 1}
            layers = nn.scan(Block, axes, split_rngs={"params": True}, length=3)
            return layers(jnn.WeightNorm, name="layers")(x, None)[0]

    with raises(
        "params/layers/Dense_0/kernel of shape (5, 3, 5) is used in shape (5, 5): bake expects "
        "parameters of a scan or vmap to be stacked along their first axis."
    ):
        jnn.bake(Odd(), drawn(Odd(), x), x)
