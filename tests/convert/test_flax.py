"""Layers of flax.linen and flax.nnx, beside their conversions."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm.linen as jnn
from jaxnorm import tools
from tests.convert.reference import data
from tests.convert.stand_ins import arrays
from tests.convert.training import TOLERANCE, Functional, check_alike, check_trees, evaluate, train

pytestmark = pytest.mark.quickly_compiled

SHAPE = (3, 4, 5, 4)
OPTIONS = {"epsilon": 1e-3}
LINEN = {
    "layer": nn.LayerNorm(**OPTIONS, reduction_axes=(1, -1), feature_axes=(-1, 1)),
    "layer, plain": nn.LayerNorm(use_bias=False),
    "rms": nn.RMSNorm(**OPTIONS, reduction_axes=(-2, -1)),
    "group": nn.GroupNorm(num_groups=2, **OPTIONS),
    "group, by size": nn.GroupNorm(num_groups=None, group_size=2, reduction_axes=(2, 3)),
    "group, of channels": nn.GroupNorm(num_groups=2, reduction_axes=-1, use_fast_variance=False),
    "instance": nn.InstanceNorm(**OPTIONS, feature_axes=1, use_scale=False),
    "batch": nn.BatchNorm(**OPTIONS, axis=(1, -1), momentum=0.75, use_running_average=True),
}
NNX = {
    "layer": lambda r: nnx.LayerNorm(4, feature_axes=1, reduction_axes=(1, 2), **OPTIONS, rngs=r),
    "rms": lambda r: nnx.RMSNorm(4, **OPTIONS, rngs=r),
    "group": lambda r: nnx.GroupNorm(4, num_groups=None, group_size=2, use_bias=False, rngs=r),
    "instance": lambda r: nnx.InstanceNorm(4, **OPTIONS, rngs=r),
    "batch": lambda r: nnx.BatchNorm(4, axis=1, momentum=0.75, use_scale=False, rngs=r),
}


@pytest.fixture(autouse=True)
def promotion():
    """As flax computes; its linen modules know no strict promotion of ranks."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def randomize(tree):
    leaves, structure = jax.tree.flatten(tree)
    drawn = arrays(*(leaf.shape for leaf in leaves))
    return jax.tree.unflatten(structure, map(jnp.asarray, drawn))


def initialized(module):
    x = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    return randomize(jax.eval_shape(module.init, jax.random.key(0), x))


@pytest.mark.parametrize("name", LINEN)
def test_a_linen_layer_evaluates_alike(name):
    layer, (x, _) = LINEN[name], data(SHAPE)
    variables = initialized(layer)
    module, converted = tools.from_flax(layer, variables)
    assert type(module).__module__.startswith("jaxnorm.linen")

    @jax.jit
    def both(x):
        return evaluate(module, converted, x), layer.apply(variables, x)

    np.testing.assert_allclose(*both(x[0]), **TOLERANCE)
    # What the module makes for itself is what it was given.
    shapes = jax.eval_shape(module.init, jax.random.key(0), x[0])
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, converted)
    # And in half precision it gives what flax gives, float32.
    half = jnp.asarray(x[0], jnp.bfloat16)
    y, expected = both(half)
    assert y.dtype == expected.dtype
    np.testing.assert_allclose(*(np.float32(a) for a in (y, expected)), **TOLERANCE)


def test_a_linen_batch_norm_goes_on_alike():
    layer, (x, dy) = LINEN["batch"], data(SHAPE)
    variables = initialized(layer)
    module, converted = tools.from_flax(layer, variables)
    assert module.use_running_average is True
    ours = train(module, converted, x, dy)
    # A field and the call would be too much for flax.
    theirs = train(layer.clone(use_running_average=None), variables, x, dy)
    check_alike(ours, theirs)
    params = theirs.variables["params"]
    params = {"gamma": params["scale"], "beta": params["bias"]}
    check_trees(ours.variables, theirs.variables | {"params": params})


@pytest.mark.parametrize("name", NNX)
def test_an_nnx_layer_evaluates_alike(name):
    layer, (x, _) = NNX[name](nnx.Rngs(0)), data(SHAPE)
    nnx.update(layer, randomize(nnx.state(layer)))
    layer.eval()
    module, variables = tools.from_flax(layer)

    def both(x):
        return evaluate(module, variables, x), layer(x)

    np.testing.assert_allclose(*jax.jit(both)(x[0]), **TOLERANCE)
    y, expected = jax.eval_shape(both, jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16))
    assert y.dtype == expected.dtype


def test_an_nnx_batch_norm_goes_on_alike():
    layer, (x, dy) = NNX["batch"](nnx.Rngs(0)), data(SHAPE)
    nnx.update(layer, randomize(nnx.state(layer)))
    module, variables = tools.from_flax(layer)
    assert module.use_running_average is False
    graph, state = nnx.split(layer)

    def apply(variables, x, training):
        model = nnx.merge(graph, state, copy=True)
        model.bias[...] = variables["params"]["beta"]
        for name, value in variables["batch_stats"].items():
            getattr(model, name)[...] = value
        y = model(x, use_running_average=not training)
        return y, {"batch_stats": {"mean": model.mean[...], "var": model.var[...]}}

    ours, theirs = train(module, variables, x, dy), train(Functional(apply), variables, x, dy)
    check_trees(ours, theirs)


def test_settings_become_fields():
    init = nn.initializers.constant(2.0)
    options = {"axis_name": "batch", "axis_index_groups": [[0, 1]], "dtype": jnp.bfloat16}
    layer = nn.BatchNorm(**options, scale_init=init, bias_init=init, param_dtype=jnp.float16)
    variables = layer.init(jax.random.key(0), jnp.ones((2, 3)), use_running_average=True)
    module, converted = tools.from_flax(layer, variables)
    assert module == jnn.BatchNorm(
        **options,
        feature_axes=-1,
        gamma_init=init,
        beta_init=init,
        param_dtype=jnp.dtype("float16"),
        unbiased=False,
    )
    assert {k: set(v) for k, v in converted.items()} == {
        "params": {"gamma", "beta"},
        "batch_stats": {"mean", "var"},
    }
    # Without parameters flax's result has the dtype of the input, and there is nothing to give.
    module, converted = tools.from_flax(nn.LayerNorm(use_scale=False, use_bias=False))
    assert module.dtype is None and converted == {}
    # Partitioned parameters are taken out of their boxes.
    boxed = {"params": {"scale": nn.Partitioned(jnp.ones(3), ("model",))}}
    _, converted = tools.from_flax(nn.RMSNorm(), boxed)
    assert converted["params"]["gamma"].shape == (3,)


def test_errors():
    with pytest.raises(TypeError, match=r"from_flax got a flax\.linen\.linear\.Dense, which is"):
        tools.from_flax(nn.Dense(3), {})
    with pytest.raises(TypeError, match=r"got a flax\.nnx\.nn\.linear\.Linear, which is none"):
        tools.from_flax(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match=r"got a types\.SimpleNamespace"):
        tools.from_flax(SimpleNamespace())

    class Gated(nn.LayerNorm):
        def __call__(self, x):
            return x

    class Named(nn.LayerNorm):
        pass

    with pytest.raises(TypeError, match="a LayerNorm with a __call__ of its own in Gated"):
        tools.from_flax(Gated(), {})
    params = {"params": {"scale": jnp.ones(3), "bias": jnp.ones(3)}}
    assert tools.from_flax(Named(), params)[0] == tools.from_flax(nn.LayerNorm(), params)[0]
    with pytest.raises(
        ValueError, match=r"BatchNorm lack params/scale: they hold \{'params': \['LayerNorm_0'\]\}"
    ):
        tools.from_flax(nn.BatchNorm(), {"params": {"LayerNorm_0": params}})
    with pytest.raises(ValueError, match=r"they hold .*'scale': 'an array'"):
        tools.from_flax(nn.LayerNorm(), params["params"])
    with pytest.raises(ValueError, match="lack batch_stats/mean"):
        tools.from_flax(nn.BatchNorm(), params)
    with pytest.raises(ValueError, match="lack params/scale"):
        tools.from_flax(nn.BatchNorm())
    layer = NNX["rms"](nnx.Rngs(0))
    with pytest.raises(ValueError, match="which holds its own arrays; put them into it by nnx"):
        tools.from_flax(layer, nnx.state(layer))
    with pytest.raises(ValueError, match=r"has feature_axes=\(1, 2\), and an instance norm of jax"):
        tools.from_flax(nn.InstanceNorm(feature_axes=(1, 2)), params)
