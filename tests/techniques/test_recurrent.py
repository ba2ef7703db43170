"""Recurrent cells with layer norm against Ba et al. 2016, in flax.linen.RNN."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

import jaxnorm.linen as jnn

pytestmark = pytest.mark.quickly_compiled

KEY = jax.random.key(0)
CELLS = {"lstm": jnn.LayerNormLSTMCell, "gru": jnn.LayerNormGRUCell}
cells = pytest.mark.parametrize("name", CELLS)
# Float32 rounding, 6e-8, over a few steps of a recurrence that divides by standard deviations.
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def ln(z, p):
    """LN(z; alpha, beta) of their supplementary material; epsilon keeps it finite."""
    mean, var = z.mean(-1, keepdims=True), z.var(-1, keepdims=True)
    return (z - mean) / np.sqrt(var + 1e-6) * p["gamma"] + p["beta"]


def lstm(p, carry, x):
    c, h = carry
    z = ln(h @ p["hidden"]["kernel"], p["norm_hidden"])
    z = z + ln(x @ p["input"]["kernel"], p["norm_input"]) + p["bias"]
    f, i, o, g = np.split(z, 4, -1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(ln(c, p["norm_cell"]))
    return (c, h), h


def gru(p, h, x):
    units = h.shape[-1]
    by_h, by_x = h @ p["hidden"]["kernel"], x @ p["input"]["kernel"]
    z = ln(by_h[..., : 2 * units], p["norm_hidden"]) + ln(by_x[..., : 2 * units], p["norm_input"])
    z, r = np.split(sigmoid(z), 2, -1)
    n = r * ln(by_h[..., 2 * units :], p["norm_candidate_hidden"])
    n = np.tanh(ln(by_x[..., 2 * units :], p["norm_candidate_input"]) + n)
    h = (1 - z) * h + z * n
    return h, h


REFERENCE = {"lstm": lstm, "gru": gru}


def wide(tree):
    return jax.tree.map(lambda v: np.asarray(v, np.float64), tree)


def unroll(name, params, carry, x):
    """All outputs over axis 1 of `x`, and the last carry, in float64."""
    params, carry, ys = wide(params), wide(carry), []
    for t in range(x.shape[1]):
        carry, y = REFERENCE[name](params, carry, np.asarray(x[:, t], np.float64))
        ys.append(y)
    return carry, np.stack(ys, 1)


def drawn(name, rng, batch=3, time=6, inputs=4, units=5):
    """A cell, parameters away from their first values, and inputs."""
    x = rng.normal(size=(batch, time, inputs)).astype(np.float32)
    cell = CELLS[name](units)
    shapes = jax.eval_shape(nn.RNN(cell).init, KEY, x)["params"]["cell"]
    return cell, jax.tree_util.tree_map_with_path(functools.partial(parameter, rng), shapes), x


def parameter(rng, path, like):
    if "kernel" in str(path[-1]):
        return (rng.normal(size=like.shape) / like.shape[0] ** 0.5).astype(like.dtype)
    return (("gamma" in str(path[-1])) + 0.3 * rng.normal(size=like.shape)).astype(like.dtype)


def zero_carry(cell, x):
    """The first carry of examples (N, T, C)."""
    like = jax.eval_shape(lambda: cell.initialize_carry(KEY, x[:, 0].shape))
    return jax.tree.map(lambda c: np.zeros(c.shape, c.dtype), like)


@cells
def test_values_and_gradients(name, rng):
    cell, params, x = drawn(name, rng)
    carry = jax.tree.map(lambda c: np.float32(rng.normal(size=c.shape)), zero_carry(cell, x))
    weight = rng.normal(size=(3, 6, 5))

    def gradients(make):
        def loss(params, carry, x, weight):
            rnn = nn.RNN(make(5), return_carry=True)
            last, y = rnn.apply({"params": {"cell": params}}, x, initial_carry=carry)
            return jnp.sum(y * weight), (last, y)

        return jax.grad(loss, (0, 1, 2), has_aux=True)

    given = carry, x, weight.astype(np.float32)
    gradient, (last, y) = jax.jit(gradients(CELLS[name]))(params, *given)
    last_expected, expected = unroll(name, params, carry, x)
    close(y, expected)
    jax.tree.map(close, last, last_expected)

    # Of each example, of a cell that computes all again in the backward pass.
    mapped = jax.jit(jax.vmap(gradients(nn.remat(CELLS[name])), (None, 0, 0, 0)))
    each, _ = mapped(params, *jax.tree.map(lambda v: v[:, None], given))
    of_params, *others = jax.tree.map(np.asarray, each)
    again = jax.tree.map(lambda g: g.sum(0), of_params), *jax.tree.map(lambda g: g[:, 0], others)
    jax.tree.map(functools.partial(close, atol=1e-4), again, gradient)

    def value(tree):
        return np.sum(unroll(name, *tree)[1] * weight)

    # Every parameter, the carry and the input, along a random direction each.
    leaves, treedef = jax.tree.flatten(wide((params, carry, x)))
    for i, (leaf, slope) in enumerate(zip(leaves, jax.tree.leaves(wide(gradient)), strict=True)):
        step = rng.normal(size=leaf.shape)
        ahead, behind = (
            value(treedef.unflatten([*leaves[:i], leaf + s * step, *leaves[i + 1 :]]))
            for s in (1e-6, -1e-6)
        )
        np.testing.assert_allclose(
            np.sum(slope * step), (ahead - behind) / 2e-6, rtol=1e-3, atol=1e-4
        )


@cells
def test_parameters(name, rng):
    x = np.ones((2, 3, 4), np.float32)
    params = jax.jit(nn.RNN(CELLS[name](5)).init)(KEY, x)["params"]["cell"]
    params = jax.tree.map(np.asarray, params)
    shapes = {"/".join(k): v.shape for k, v in traverse_util.flatten_dict(params).items()}
    gates = 4 if name == "lstm" else 3
    sizes = {"norm_hidden": 20, "norm_input": 20, "norm_cell": 5}
    if name == "gru":
        sizes = {"norm_hidden": 10, "norm_input": 10}
        sizes |= {"norm_candidate_hidden": 5, "norm_candidate_input": 5}
    expected = {f"{n}/{p}": (s,) for n, s in sizes.items() for p in ("gamma", "beta")}
    expected |= {"hidden/kernel": (5, 5 * gates), "input/kernel": (4, 5 * gates)}
    expected |= {"bias": (20,)} if name == "lstm" else {}
    assert shapes == expected
    # Each gate's recurrent kernel is orthogonal by itself, as flax.linen draws them.
    for part in np.split(np.asarray(params["hidden"]["kernel"]), gates, -1):
        close(part.T @ part, np.eye(5))
    for norm in sizes:
        assert (params[norm]["gamma"] == 1).all() and (params[norm]["beta"] == 0).all()


@cells
def test_bidirectional_sequences_of_different_lengths(name, rng):
    cell, params, x = drawn(name, rng)
    _, back, _ = drawn(name, np.random.default_rng(1))
    padded = x.copy()
    padded[1, 2:], padded[2, 4:] = np.nan, 1e30
    carried = functools.partial(nn.RNN, return_carry=True)
    both = nn.Bidirectional(carried(cell), carried(CELLS[name](5)), return_carry=True)
    variables = {"params": {"forward_rnn": {"cell": params}, "backward_rnn": {"cell": back}}}
    lengths = np.array([6, 2, 4])
    (last, last_back), y = jax.jit(both.apply)(variables, padded, seq_lengths=lengths)
    carry = zero_carry(cell, x)
    for i, length in enumerate(lengths):
        first = jax.tree.map(lambda c, i=i: c[i : i + 1], carry)
        part = x[i : i + 1, :length]
        expected, outputs = unroll(name, params, first, part)
        close(y[i : i + 1, :length, :5], outputs)
        jax.tree.map(lambda c, e, i=i: close(c[i : i + 1], e), last, expected)
        expected, outputs = unroll(name, back, first, part[:, ::-1])
        close(y[i : i + 1, :length, 5:], outputs[:, ::-1])
        jax.tree.map(lambda c, e, i=i: close(c[i : i + 1], e), last_back, expected)


@cells
def test_reversed_with_time_first(name, rng):
    cell, params, x = drawn(name, rng)
    rnn = nn.RNN(cell, time_major=True, reverse=True, keep_order=True)
    y = jax.jit(rnn.apply)({"params": {"cell": params}}, x.swapaxes(0, 1))
    expected = unroll(name, params, zero_carry(cell, x), x[:, ::-1])[1][:, ::-1]
    close(y.swapaxes(0, 1), expected)


@cells
def test_statistics_are_of_one_example_at_one_time(name, rng):
    cell, params, x = drawn(name, rng)
    apply = jax.jit(lambda params, x: nn.RNN(cell).apply({"params": {"cell": params}}, x))
    y = apply(params, x)
    # What the other examples are, and what comes later, changes nothing.
    other = x.copy()
    other[1:] *= 100
    other[0, 4:] += 100
    np.testing.assert_array_equal(apply(params, other)[0, :4], y[0, :4])
    # Scaling a kernel changes nothing, nor does scaling the input: LN is invariant to both.
    scaled = params | {
        kernel: {"kernel": 3 * params[kernel]["kernel"]} for kernel in ("hidden", "input")
    }
    # Up to epsilon, 1e-6 beside variances of order 1.
    np.testing.assert_allclose(apply(scaled, 5 * x), y, atol=1e-4)


@cells
def test_half_precision(name, rng):
    cell, params, x = drawn(name, rng)
    half = x.astype(jnp.bfloat16)
    variables = {"params": {"cell": params}}

    @jax.jit
    def results(variables, half):
        single = nn.RNN(CELLS[name](5, dtype=jnp.float32)).apply(variables, half)
        return *nn.RNN(cell, return_carry=True).apply(variables, half), single

    carry, y, single = results(variables, half)
    assert y.dtype == jnp.bfloat16
    assert {c.dtype for c in jax.tree.leaves(carry)} == {jnp.dtype("float32")}
    expected = unroll(name, params, zero_carry(cell, x), half)[1]
    # The products are rounded to bfloat16, 2^-8, and recur.
    np.testing.assert_allclose(np.float32(y), expected, atol=0.1)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, expected, atol=1e-5)
    with jax.enable_x64(True):
        rnn = nn.RNN(CELLS[name](5, param_dtype=jnp.float64))
        y = jax.jit(rnn.apply)({"params": {"cell": wide(params)}}, wide(x))
    assert y.dtype == jnp.float64
    expected = unroll(name, params, zero_carry(cell, x), x)[1]
    np.testing.assert_allclose(y, expected, atol=1e-12)


@cells
def test_it_learns_to_remember(name, rng):
    # The first input's sign, ten steps later.
    x = rng.normal(size=(64, 10, 2)).astype(np.float32)
    target = np.sign(x[:, 0, 0])

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(nn.RNN(CELLS[name](16))(x)[:, -1])[:, 0]

    model = Model()
    shapes = jax.eval_shape(model.init, KEY, x)
    params = jax.tree_util.tree_map_with_path(functools.partial(parameter, rng), shapes)
    optimizer = optax.adam(1e-2)

    def loss(params):
        return jnp.mean((model.apply(params, x) - target) ** 2)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params)
            with jax.numpy_dtype_promotion("standard"):  # Adam counts steps in int32
                update, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, update), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), length=120)

    _, losses = train(params)
    assert losses[0] > 0.9 and losses[-1] < 0.01


def test_errors():
    text = (
        "inputs must have a floating-point or complex dtype, got int32; convert it first, for "
        "example with inputs.astype(jnp.float32)."
    )
    for cell in CELLS.values():
        with pytest.raises(TypeError, match="^" + re.escape(text) + "(\n|$)"):
            nn.RNN(cell(4)).init(KEY, np.ones((2, 3, 4), np.int32))
