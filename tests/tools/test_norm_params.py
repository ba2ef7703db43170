"""The mask of gammas and betas: which parameters it finds, however a model is made."""

import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze

import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx
from jaxnorm import tools
from tests.support.jaxpr_text import drawn

pytestmark = pytest.mark.quickly_compiled

ROOT = Path(__file__).parent.parent.parent
X = np.random.default_rng(0).normal(1.0, 2.0, (8, 4)).astype(np.float32)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnn.RMSNorm(name="scale")(nn.Dense(4, name="LayerNorm_0")(x)), None


class Net(nn.Module):
    """Misleading names, and every way to nest."""

    @nn.compact
    def __call__(self, x, train):
        dense = nn.Dense(4, kernel_init=nn.with_partitioning(nn.initializers.ones, (None, "d")))
        x = nn.remat(nn.BatchNorm)(use_running_average=not train, name="bias")(dense(x))
        split = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        split["metadata_params"] = {nn.PARTITION_NAME: None}
        x, _ = nn.scan(Block, length=2, **split)(name="blocks")(x, None)
        x = nn.vmap(jnn.LayerNorm, **split)(
            name="each", gamma_init=nn.with_partitioning(nn.initializers.ones, ("d",))
        )(x)
        for layer in [jnn.GroupNorm(num_groups=2, use_beta=False), jnn.LayerScale()]:
            x = layer(x)
        x = jnn.WeightNorm(nn.Dense(4))(jnn.DynamicTanh()(x))
        norm = jnn.LayerNorm(use_gamma=False, use_beta=False)
        return jnn.AdaptiveNorm(norm)(x, x)


def decay(mask):
    return optax.chain(optax.add_decayed_weights(0.5, mask), optax.scale(-1.0))


def paths(mask):
    leaves = jax.tree_util.tree_leaves_with_path(mask)
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in leaves if leaf}


def test_of_a_linen_model_exactly_gammas_and_betas_are_found():
    x = np.ones((2, 4), np.float32)
    variables = drawn(Net(), x, train=False)
    mask = tools.norm_params(Net(), variables, x, False)
    assert jax.tree.structure(mask) == jax.tree.structure(variables["params"])
    assert paths(mask) == {
        *("bias/bias", "bias/scale", "blocks/scale/gamma", "each/gamma/value", "each/beta"),
        *("GroupNorm_0/gamma", "LayerScale_0/gamma", "DynamicTanh_0/gamma", "DynamicTanh_0/beta"),
    }
    called = tools.norm_params(Net(), freeze(variables), x, call=lambda net, x: net(x, train=True))
    assert paths(called) == paths(mask)


def test_decay_passes_over_the_norms():
    model, x = nn.Sequential([nn.Dense(2), jnn.LayerNorm()]), np.ones((1, 3), np.float32)
    variables = drawn(model, x)
    mask = jax.tree.map(lambda norm: not norm, tools.norm_params(model, variables, x))
    optimizer = decay(mask)
    params = variables["params"]
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
    assert not any(map(np.any, jax.tree.leaves(updates["layers_1"])))
    assert (updates["layers_0"]["kernel"] == -0.5 * params["layers_0"]["kernel"]).all()


def shown_line():
    """Returns the line that trains norms alone, as the documents show it, all the same."""
    start = "alone = optax.partition("
    files = ["README.md", "notebooks/09_from_elsewhere.ipynb", "jaxnorm/tools/_norm_params.py"]
    lines = set()
    for file in files:
        text = (ROOT / file).read_text(encoding="utf-8")
        (line,) = re.findall(re.escape(start) + r"[^\\\n]*", text)
        lines.add(line)
    (line,) = lines
    return line


def run_shown_line(is_norm):
    names = {"optax": optax, "is_norm": is_norm}
    exec(shown_line(), names)
    return names["alone"]


@jax.numpy_dtype_promotion("standard")  # optax adds numbers of several kinds
def test_as_documented_the_norms_are_trained_alone_in_linen():
    model, x = nn.Sequential([nn.Dense(4), jnn.LayerNorm(), nn.Dense(1)]), X
    params = first = drawn(model, x)["params"]
    optimizer = run_shown_line(tools.norm_params(model, {"params": params}, x))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        def loss(params):
            return jnp.square(model.apply({"params": params}, x) - 1).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for _ in range(5):
        params, state, value = step(params, state)
        losses.append(value)
    assert losses == sorted(losses, reverse=True)
    same = jax.tree.map(np.array_equal, params, first)
    assert paths(same) == {f"layers_{i}/{name}" for i in (0, 2) for name in ("kernel", "bias")}


@pytest.mark.parametrize("rest", ["set_to_zero", "muon"])
@jax.numpy_dtype_promotion("standard")
def test_norms_of_an_nnx_model_have_an_optimizer_of_their_own(rest):
    """The line shown; and muon, which is for matrices, leaves a gamma over two axes to adam."""
    rngs = nnx.Rngs(0)
    norm = jnx.LayerNorm((2, 4), reduction_axes=(-2, -1), feature_axes=(-2, -1))
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), norm)
    is_norm = tools.norm_params(model)
    alone = run_shown_line(is_norm)
    if rest == "muon":
        alone = optax.partition({True: optax.adam(1e-3), False: optax.contrib.muon(1e-2)}, is_norm)
    optimizer = nnx.Optimizer(model, alone, wrt=nnx.Param)
    kernel, gamma = model.layers[0].kernel[...], norm.gamma[...]
    loss = nnx.grad(lambda model: jnp.square(model(X.reshape(-1, 2, 4)) - 1).mean())
    optimizer.update(model, loss(model))
    assert np.array_equal(model.layers[0].kernel[...], kernel) == (rest == "set_to_zero")
    # The first step of adam is the rate, up or down.
    np.testing.assert_allclose(np.abs(norm.gamma[...] - gamma), 1e-3, rtol=1e-3)


def test_of_an_nnx_model_the_mask_fits_its_optimizer():
    rngs = nnx.Rngs(0)
    cell = jnx.LayerNormGRUCell(2, 2, rngs=rngs)
    shared = nnx.LayerNorm(4, rngs=rngs)
    layers = [nnx.Linear(4, 4, rngs=rngs), shared, jnx.BatchNorm(4), shared]
    model = nnx.Sequential(*layers)
    model.cell = cell
    before = nnx.state(model)
    mask = tools.norm_params(model)
    assert paths(mask) == {
        *("layers/1/scale", "layers/1/bias", "layers/2/gamma", "layers/2/beta"),
        *(f"cell/{norm}/{p}" for norm in cell.norm_sizes for p in ("gamma", "beta")),
    }
    decayed = jax.tree.map(lambda norm: not norm, mask)
    optimizer = nnx.Optimizer(model, decay(decayed), wrt=nnx.Param)
    kernel = layers[0].kernel[...]
    optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
    assert (layers[0].kernel[...] == 0.5 * kernel).all()
    assert (shared.scale[...] == 1).all() and (layers[2].gamma[...] == 1).all()
    assert jax.tree.structure(before) == jax.tree.structure(nnx.state(model))


def test_errors():
    x = np.ones((2, 4), np.float32)
    model = nn.Sequential([nn.Dense(4)])
    variables = drawn(model, x)
    with pytest.raises(ValueError, match="Sequential has no gamma and no beta of a normalization"):
        tools.norm_params(model, variables, x)
    with pytest.raises(ValueError, match="Linear has no gamma"):
        tools.norm_params(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError) as error:
        tools.norm_params(model, variables["params"], x)
    assert str(error.value) == (
        "norm_params: variables must hold the collections params and batch_stats, as model.init "
        "returns them, got ['layers_0']. If these are parameters: "
        '{"params": ..., "batch_stats": ...}.'
    )
    with pytest.raises(TypeError, match=r"takes a flax\.linen module and its"):
        tools.norm_params(lambda x: x, variables, x)
    with pytest.raises(TypeError) as error:
        tools.norm_params(Net(), variables, x)
    assert str(error.value) == (
        "Net cannot be run on the arguments given: Net.__call__() missing 1 required positional "
        "argument: 'train'. Give the variables of this very model, and its arguments; what else "
        "the call needs is said by call=lambda net, *args: net(*args, train=False)."
    )
    with pytest.raises(ValueError, match="Net cannot be run on the arguments given: Could not fin"):
        tools.norm_params(Net(), variables, x, True)
