"""Recurrent cells with layer norm for Flax NNX: their twins for linen, in nnx.RNN."""

import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx
from tests.nnx.twins import KEY, draw, values

cells = pytest.mark.parametrize("name", ["LayerNormLSTMCell", "LayerNormGRUCell"])
equal = chex.assert_trees_all_equal


def make_twins(rng, name, **options):
    """A cell of linen for inputs of size 3, random parameters, and the NNX cell with them."""
    linen, cell = (
        getattr(jnn, name)(4, **options),
        getattr(jnx, name)(3, 4, **options, rngs=nnx.Rngs(0)),
    )
    x = jnp.zeros((2, 3))
    params = linen.init(KEY, linen.initialize_carry(KEY, x.shape), x)["params"]
    params = jax.tree.map(lambda a: draw(rng, a.shape, a.dtype), params)
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
    result, vjp = jax.vjp(lambda *a: linen.apply({"params": a[0]}, *a[1:]), params, carry, x)
    graph, state = nnx.split(cell)
    result2, vjp2 = jax.vjp(lambda s, *a: nnx.merge(graph, s)(*a), state, carry, x)
    equal(result2, result)
    assert result2[1].dtype == dtype
    chex.assert_trees_all_equal_dtypes(result2[0], carry)
    gradients, gradients2 = vjp(result), vjp2(result)
    equal((nnx.to_pure_dict(gradients2[0]), *gradients2[1:]), gradients)


@cells
def test_runs_in_rnn(name, rng):
    linen, params, cell = make_twins(rng, name)
    x, lengths = draw(rng, (2, 5, 3)), jnp.asarray([5, 2])
    for options in ({}, {"seq_lengths": lengths, "return_carry": True}):
        expected = nn.RNN(linen).apply({"params": {"cell": params}}, x, **options)
        rnn = nnx.RNN(cell)
        chex.assert_trees_all_close(rnn(x, **options), expected, atol=1e-5)
    gradients = nnx.grad(lambda m: (m(x) ** 2).sum())(rnn)
    assert all(jnp.any(g) for g in jax.tree.leaves(nnx.to_pure_dict(gradients)))


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
    own = getattr(jnx, name)(3, 4, carry_init=init, rngs=nnx.Rngs(0))
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

    cell = getattr(jnx, name)(3, 4, kernel_init=init, rngs=nnx.Rngs(0))
    assert set(shapes) == {(3, 4)} and len(shapes) == cell.gates
    again = getattr(jnx, name)(3, 4, rngs=nnx.Rngs(0))
    other = getattr(jnx, name)(3, 4, rngs=nnx.Rngs(0))
    equal(values(again), values(other))


@cells
def test_kernels_need_rngs(name):
    message = f"{name}(in_features=3, features=4) draws its kernels and needs rngs=nnx.Rngs(0)."
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(jnx, name)(3, 4)
