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
    x = jnp.asarray(rng.normal(size=(batch, time, inputs)), jnp.float32)
    cell = CELLS[name](units)
    params = nn.RNN(cell).init(KEY, x)["params"]["cell"]
    flat = traverse_util.flatten_dict(params)
    flat = {
        path: v + jnp.asarray(0.3 * rng.normal(size=v.shape), v.dtype) for path, v in flat.items()
    }
    return cell, traverse_util.unflatten_dict(flat), x


@cells
def test_values_and_gradients(name, rng):
    cell, params, x = drawn(name, rng)
    carry = cell.initialize_carry(KEY, x[:, 0].shape)
    carry = jax.tree.map(lambda c: c + jnp.asarray(rng.normal(size=c.shape), c.dtype), carry)
    weight = rng.normal(size=(3, 6, 5))

    @jax.jit
    def loss(params, carry, x):
        rnn = nn.RNN(cell, return_carry=True)
        last, y = rnn.apply({"params": {"cell": params}}, x, initial_carry=carry)
        return jnp.sum(y * weight.astype(np.float32)), (last, y)

    (_, (last, y)), gradient = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, carry, x)
    last_expected, expected = unroll(name, params, carry, x)
    close(y, expected)
    jax.tree.map(close, last, last_expected)

    def value(tree):
        return np.sum(unroll(name, *tree)[1] * weight)

    # Every parameter, the carry and the input, along a random direction each.
    leaves, treedef = jax.tree.flatten(wide((params, carry, x)))
    for i, (leaf, slope) in enumerate(zip(leaves, jax.tree.leaves(gradient), strict=True)):
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
    x = jnp.ones((2, 3, 4))
    params = nn.RNN(CELLS[name](5)).init(KEY, x)["params"]["cell"]
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
def test_sequences_of_different_lengths(name, rng):
    cell, params, x = drawn(name, rng)
    lengths = jnp.array([6, 2, 4])
    padded = x.at[1, 2:].set(jnp.nan).at[2, 4:].set(1e30)
    rnn = nn.RNN(cell, return_carry=True)
    variables = {"params": {"cell": params}}
    last, y = jax.jit(functools.partial(rnn.apply, variables))(padded, seq_lengths=lengths)
    carry = cell.initialize_carry(KEY, x[:, 0].shape)
    for i, length in enumerate((6, 2, 4)):
        first = jax.tree.map(lambda c, i=i: c[i : i + 1], carry)
        expected, outputs = unroll(name, params, first, x[i : i + 1, :length])
        close(y[i : i + 1, :length], outputs)
        jax.tree.map(lambda c, e, i=i: close(c[i : i + 1], e), last, expected)


@cells
def test_bidirectional_and_reversed(name, rng):
    cell, params, x = drawn(name, rng)
    _, back, _ = drawn(name, np.random.default_rng(1))
    carry = cell.initialize_carry(KEY, x[:, 0].shape)
    both = nn.Bidirectional(nn.RNN(cell), nn.RNN(CELLS[name](5)))
    variables = {"params": {"forward_rnn": {"cell": params}, "backward_rnn": {"cell": back}}}
    y = jax.jit(both.apply)(variables, x)
    close(y[..., :5], unroll(name, params, carry, x)[1])
    close(y[..., 5:], unroll(name, back, carry, x[:, ::-1])[1][:, ::-1])
    lengths = jnp.array([6, 2, 4])
    y = jax.jit(both.apply)(variables, x, seq_lengths=lengths)
    for i, length in enumerate((6, 2, 4)):
        first = jax.tree.map(lambda c, i=i: c[i : i + 1], carry)
        part = x[i : i + 1, :length]
        backward = unroll(name, back, first, part[:, ::-1])[1][:, ::-1]
        close(y[i : i + 1, :length, 5:], backward)
    # Time first.
    rnn = nn.RNN(cell, time_major=True)
    y = rnn.apply({"params": {"cell": params}}, x.swapaxes(0, 1))
    close(y.swapaxes(0, 1), unroll(name, params, carry, x)[1])


@cells
def test_statistics_are_of_one_example_at_one_time(name, rng):
    cell, params, x = drawn(name, rng)
    apply = jax.jit(lambda x: nn.RNN(cell).apply({"params": {"cell": params}}, x))
    y = apply(x)
    # What the other examples are, and what comes later, changes nothing.
    other = x.at[1:].multiply(100.0).at[0, 4:].add(100.0)
    np.testing.assert_array_equal(apply(other)[0, :4], y[0, :4])
    # Scaling a kernel changes nothing, nor does scaling the input: LN is invariant to both.
    scaled = jax.tree.map(lambda v: v, params)
    for kernel in ("hidden", "input"):
        scaled[kernel] = {"kernel": 3.0 * params[kernel]["kernel"]}
    z = nn.RNN(cell).apply({"params": {"cell": scaled}}, 5 * x)
    # Up to epsilon, 1e-6 beside variances of order 1.
    np.testing.assert_allclose(z, y, atol=1e-4)


@cells
def test_half_precision(name, rng):
    cell, params, x = drawn(name, rng)
    rnn = nn.RNN(cell, return_carry=True)
    half = x.astype(jnp.bfloat16)
    carry, y = jax.jit(rnn.apply)({"params": {"cell": params}}, half)
    assert y.dtype == jnp.bfloat16
    assert {c.dtype for c in jax.tree.leaves(carry)} == {jnp.dtype("float32")}
    _, expected = rnn.apply({"params": {"cell": params}}, half.astype(jnp.float32))
    # The products are rounded to bfloat16, 2^-8, and recur.
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.1)
    single = nn.RNN(CELLS[name](5, dtype=jnp.float32)).apply({"params": {"cell": params}}, half)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, expected, atol=1e-5)
    with jax.enable_x64(True):
        cell = CELLS[name](5, param_dtype=jnp.float64)
        wide_x = jnp.asarray(np.asarray(x, np.float64))
        y = nn.RNN(cell).apply({"params": {"cell": wide(params)}}, wide_x)
        assert y.dtype == jnp.float64
        first = wide(cell.initialize_carry(KEY, wide_x[:, 0].shape))
        np.testing.assert_allclose(y, unroll(name, params, first, x)[1], atol=1e-12)


@cells
def test_vmap_remat_and_stacked_layers(name, rng):
    cell, params, x = drawn(name, rng)
    variables = {"params": {"cell": params}}
    apply = nn.RNN(cell).apply

    def loss(variables, x, apply=apply):
        return jnp.sum(apply(variables, x) ** 2)

    gradient = jax.jit(jax.grad(loss))(variables, x)
    remat = nn.RNN(nn.remat(CELLS[name])(5))
    again = jax.jit(jax.grad(functools.partial(loss, apply=remat.apply)))(variables, x)
    jax.tree.map(functools.partial(close, atol=1e-4), again, gradient)
    per_example = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(variables, x[:, None])
    total = jax.tree.map(lambda g: g.sum(0), per_example)
    jax.tree.map(functools.partial(close, atol=1e-4), total, gradient)


@cells
def test_it_learns_to_remember(name, rng):
    # The first input's sign, ten steps later.
    x = jnp.asarray(rng.normal(size=(64, 10, 2)), jnp.float32)
    target = jnp.sign(x[:, 0, 0])

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(nn.RNN(CELLS[name](16))(x)[:, -1])[:, 0]

    model = Model()
    params = model.init(KEY, x)
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

        return jax.lax.scan(step, (params, optimizer.init(params)), length=300)

    _, losses = train(params)
    assert losses[0] > 0.9 and losses[-1] < 0.01


def test_errors():
    text = (
        "inputs must have a floating-point or complex dtype, got int32; convert it first, for "
        "example with inputs.astype(jnp.float32)."
    )
    for cell in CELLS.values():
        with pytest.raises(TypeError, match="^" + re.escape(text) + "(\n|$)"):
            nn.RNN(cell(4)).init(KEY, jnp.ones((2, 3, 4), jnp.int32))
