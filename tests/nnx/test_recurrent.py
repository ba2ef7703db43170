"""Recurrent cells with layer norm for Flax NNX: their twins for linen, in nnx.RNN."""

import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx
from tests.nnx.twins import KEY, built, draw, values
from tests.support.jaxpr_text import program

pytestmark = pytest.mark.quickly_compiled

cells = pytest.mark.parametrize("name", ["LayerNormLSTMCell", "LayerNormGRUCell"])
equal = chex.assert_trees_all_equal


def make_twins(rng, name, **options):
    """A cell of linen for inputs of size 3, random parameters, and the NNX cell with them."""
    linen, cell = (
        getattr(jnn, name)(4, **options),
        built(lambda: getattr(jnx, name)(3, 4, **options, rngs=nnx.Rngs(0))),
    )
    x = np.zeros((2, 3), np.float32)
    init = jax.eval_shape(lambda: linen.init(KEY, linen.initialize_carry(KEY, x.shape), x))
    params = jax.tree.map(lambda a: draw(rng, a.shape, a.dtype), init["params"])
    chex.assert_trees_all_equal_shapes_and_dtypes(values(cell), params)
    nnx.update(cell, params)
    return linen, params, cell


@cells
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_its_twin_for_linen(name, dtype, rng):
    linen, params, cell = make_twins(rng, name)
    x = draw(rng, (2, 3), dtype)
    carry = jax.tree.map(
        lambda a: draw(rng, a.shape, a.dtype), cell.initialize_carry(x.shape, nnx.Rngs(0))
    )
    graph, state = nnx.split(cell)

    def run(call, params, carry, x):
        result, vjp = jax.vjp(call, params, carry, x)
        return result, vjp(result)

    def call_linen(params, carry, x):
        return linen.apply({"params": params}, carry, x)

    def call_nnx(state, carry, x):
        return nnx.merge(graph, state)(carry, x)

    result = jax.eval_shape(call_nnx, state, carry, x)
    assert result[1].dtype == dtype
    chex.assert_trees_all_equal_dtypes(result[0], carry)
    assert program(functools.partial(run, call_nnx), state, carry, x) == program(
        functools.partial(run, call_linen), params, carry, x
    )


@cells
def test_runs_in_rnn(name, rng):
    linen, params, cell = make_twins(rng, name)
    x, lengths = draw(rng, (2, 5, 3)), np.asarray([5, 2])
    graph, state = nnx.split(nnx.RNN(cell))
    for options in ({}, {"seq_lengths": lengths, "return_carry": True}):

        @jax.jit
        def both(params, state, x, options=options):
            given = {"params": {"cell": params}}
            expected = nn.RNN(linen).apply(given, x, **options)
            return nnx.merge(graph, state)(x, **options), expected

        chex.assert_trees_all_close(*both(params, state, x), atol=1e-5)
    gradients = nnx.jit(nnx.grad(lambda m: (m(x) ** 2).sum()))(nnx.merge(graph, state))
    assert all(np.any(g) for g in jax.tree.leaves(nnx.to_pure_dict(gradients)))


@cells
def test_the_first_carry(name, rng):
    linen, _, cell = make_twins(rng, name)
    init = nnx.initializers.normal()
    shape = (2, 3)
    # Constant ones need no key.
    equal(cell.initialize_carry(shape), linen.initialize_carry(KEY, shape))
    random, _, _ = make_twins(rng, name, carry_init=init)
    rngs = nnx.Rngs(carry=3)
    key = nnx.Rngs(carry=3).carry()
    expected = random.initialize_carry(key, shape)
    own = built(lambda: getattr(jnx, name)(3, 4, carry_init=init, rngs=nnx.Rngs(0)))
    equal(own.initialize_carry(shape, rngs), expected)
    equal(own.initialize_carry(shape, nnx.Rngs(carry=3).carry), expected)
    with pytest.raises(ValueError, match="draws its first carry at random and needs rngs"):
        own.initialize_carry(shape)
    zeros = own.initialize_carry(shape, carry_init=nnx.initializers.zeros)
    assert not any(jnp.any(a) for a in jax.tree.leaves(zeros))


@cells
def test_each_gate_is_drawn_by_itself(name):
    shapes = []

    def init(key, shape, dtype):
        shapes.append(shape)
        return jax.random.normal(key, shape, dtype)

    cell = nnx.eval_shape(lambda: getattr(jnx, name)(3, 4, kernel_init=init, rngs=nnx.Rngs(0)))
    assert set(shapes) == {(3, 4)} and len(shapes) == cell.gates
    again = getattr(jnx, name)(3, 4, rngs=nnx.Rngs(0))
    other = getattr(jnx, name)(3, 4, rngs=nnx.Rngs(0))
    equal(values(again), values(other))


@cells
def test_kernels_need_rngs(name):
    message = f"{name}(in_features=3, features=4) draws its kernels and needs rngs=nnx.Rngs(0)."
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(jnx, name)(3, 4)
