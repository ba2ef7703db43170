"""The mask of gammas and betas: which parameters it finds, however a model is made."""

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
from tests.same import drawn


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
