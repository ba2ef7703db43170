"""Baking the wrappers of a Flax NNX model."""

import re

import chex
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxnorm.nnx as jnx
from tests.nnx.twins import draw, values

pytestmark = pytest.mark.quickly_compiled


class Net(nnx.Module):
    """Wrappers as attributes, in lists, in each other, and one that is used twice."""

    def __init__(self, rngs):
        def linear():
            return nnx.Linear(3, 3, rngs=rngs)

        self.first = jnx.WeightNorm(linear())
        self.inside = jnx.SpectralNorm(jnx.WeightStandardization(linear()), rngs=rngs)
        self.many = nnx.List([jnx.WeightStandardization(linear(), use_gain=True), jnp.tanh])
        self.pairs = nnx.Dict(
            a=nnx.Sequential(jnx.WeightNorm(linear()), nnx.Dropout(0.5, rngs=rngs))
        )
        self.again = self.first
        self.plain = linear()
        self.norm = jnx.BatchNorm(3)

    def __call__(self, x):
        x = self.many[1](self.many[0](self.inside(self.first(x))))
        return self.norm(self.plain(self.again(self.pairs["a"](x))))


def wrappers_in(model):
    kinds = (jnx.WeightNorm, jnx.SpectralNorm, jnx.WeightStandardization)
    return [node for _, node in nnx.iter_modules(model) if isinstance(node, kinds)]


def test_computes_what_the_model_does_in_evaluation(rng):
    model, x = nnx.jit(lambda: Net(nnx.Rngs(0)))(), draw(rng, (5, 3))
    nnx.update(model, {"first": {"kernel_g": draw(rng, (3,))}})
    model.eval()
    before = values(model, nnx.Not(nnx.RngState))
    plain = jnx.bake(model)
    chex.assert_trees_all_close(plain(x), model(x), atol=1e-5)
    assert len(wrappers_in(model)) == 5 and not wrappers_in(plain)
    assert type(plain.inside) is nnx.Linear and type(plain.many[0]) is nnx.Linear
    assert plain.again is plain.first
    # The copy has variables of its own.
    plain.first.kernel[...] = 0 * plain.first.kernel[...]
    plain.train()
    plain(x)
    chex.assert_trees_all_equal(values(model, nnx.Not(nnx.RngState)), before)


def test_a_wrapper_itself(rng):
    x = draw(rng, (5, 3))
    wrapper = jnx.WeightStandardization(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    plain = jnx.bake(wrapper)
    assert type(plain) is nnx.Linear
    chex.assert_trees_all_equal(plain(x), wrapper(x))


def test_there_must_be_a_wrapper():
    message = "there is no weight wrapper in LayerNorm to bake."
    with pytest.raises(ValueError, match=re.escape(message)):
        jnx.bake(jnx.LayerNorm(3))
