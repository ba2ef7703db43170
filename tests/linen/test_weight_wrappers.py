"""The wrappers of weights around Flax linen layers: what they share; weight standardization."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
import jaxnorm.linen as jnn
from tests.support.jaxpr_text import drawn, initialized
from tests.support.weight_wrappers import KEY, close, images

pytestmark = pytest.mark.quickly_compiled


def raises(error, message):
    # JAX may add a note on its own line.
    return pytest.raises(error, match="^" + re.escape(message) + "(\n|$)")


class Block(nn.Module):
    wrap: type = jnn.WeightNorm

    @nn.compact
    def __call__(self, x, _):
        return x + nn.tanh(self.wrap(nn.Dense(5))(x)), None


class Stack(nn.Module):
    wrap: type = jnn.WeightNorm

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "batch_stats": 0}
        layers = nn.scan(nn.remat(Block), axes, split_rngs={"params": True}, length=3)
        return layers(self.wrap, name="layers")(x, None)[0]


spectral = {flag: functools.partial(jnn.SpectralNorm, update_stats=flag) for flag in (False, True)}


@pytest.mark.parametrize(
    "wrap",
    [jnn.WeightNorm, spectral[False], functools.partial(jnn.WeightStandardization, use_gain=True)],
    ids=["weight_norm", "spectral_norm", "standardization"],
)
def test_scan_remat_and_vmap(wrap, rng):
    x = images(rng, 2, 5)
    variables = initialized(Stack(wrap), x)
    for value in jax.tree.leaves(variables):
        assert value.shape[0] == 3
        # Each layer draws its own weights (biases and gains start equal).
    kernels = variables["params"]["layers"]["Dense_0"]["kernel"]
    assert not np.allclose(kernels[0], kernels[1])

    def loop(variables, x):
        for i in range(3):
            one = jax.tree.map(lambda v, i=i: v[i], variables)
            one = {name: tree["layers"] for name, tree in one.items()}
            x, _ = Block(wrap).apply(one, x, None)
        return x

    def loss(function, variables):
        return jnp.sum(function(variables, x) ** 2)

    # The same weights, layer after layer: values and gradients.
    def both(variables):
        functions = (loop, Stack(wrap).apply)
        return [jax.value_and_grad(functools.partial(loss, f))(variables) for f in functions]

    (one, by_loop), (two, by_scan) = jax.jit(both)(variables)
    close(one, two)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), by_loop, by_scan
    )
    # An ensemble: the variables of all members stacked.
    members = [drawn(Block(wrap), x, None, seed=i) for i in range(2)]
    together = nn.vmap(
        Block,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        in_axes=None,
        axis_size=2,
    )(wrap)
    stacked = jax.tree.map(lambda *v: np.stack(v), *members)

    @jax.jit
    def ensemble(stacked, members):
        y, _ = together.apply(stacked, x, None)
        return y, jnp.stack([Block(wrap).apply(member, x, None)[0] for member in members])

    close(*ensemble(stacked, members))


@pytest.mark.parametrize("scaled", [False, True])
def test_weight_standardization(scaled, rng):
    x = images(rng, 4, 6, 6, 3)
    conv = functools.partial(nn.Conv, 5, (3, 3), padding="VALID", use_bias=False)
    layer = jnn.WeightStandardization(conv(), scaled=scaled, use_gain=True)
    variables = drawn(layer, x)
    gain = jnp.asarray(rng.uniform(0.5, 2, 5), jnp.float32)
    variables["params"]["kernel_gain"] = gain
    kernel = np.asarray(variables["params"]["layer"]["kernel"], np.float64)
    centered = kernel - kernel.mean((0, 1, 2))
    size = 27 * kernel.var((0, 1, 2)) + 1e-6 if scaled else kernel.var((0, 1, 2)) + 1e-5
    plain = {
        "params": {"kernel": jnp.asarray(centered / np.sqrt(size) * np.asarray(gain), jnp.float32)}
    }
    close(layer.apply(variables, x), conv().apply(plain, x))
    if scaled:
        # White input of variance 1 leaves with variance gain^2, up to the noise of 40,000 samples.
        y = layer.apply(variables, images(rng, 200, 16, 16, 3))
        np.testing.assert_allclose(y.std((0, 1, 2)), gain, rtol=0.02)
    options = {} if scaled else {"epsilon": 0.5}
    other = jnn.WeightStandardization(conv(), scaled=scaled, **options)
    function = jaxnorm.scaled_weight_standardize if scaled else jaxnorm.weight_standardize
    weights = function(variables["params"]["layer"]["kernel"], axis=(0, 1, 2), **options)
    params = {"layer": variables["params"]["layer"]}
    close(other.apply({"params": params}, x), conv().apply({"params": {"kernel": weights}}, x))


def test_partitioned_parameters(rng):
    x = images(rng, 4, 6)
    kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    for wrap in (
        jnn.WeightNorm,
        spectral[True],
        functools.partial(jnn.WeightStandardization, use_gain=True),
    ):
        layer = wrap(nn.Dense(3, kernel_init=kernel_init))
        variables = initialized(layer, x)
        own = {k: v for k, v in variables["params"].items() if k != "layer"}
        for value in own.values():
            assert isinstance(value, nn.Partitioned) and value.names == ("model",)
        # With and without the metadata, the same result.
        apply = functools.partial(layer.apply, mutable=["batch_stats"])
        both = jax.jit(lambda v, f=apply: (f(v, x)[0], f(nn.unbox(v), x)[0]))
        close(*both(variables))


def test_half_precision_and_float64(rng):
    x = images(rng, 4, 6).astype(jnp.bfloat16)
    for wrap in (jnn.WeightNorm, spectral[False], jnn.WeightStandardization):
        layer = wrap(nn.Dense(3, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
        y, variables = jax.eval_shape(layer.init_with_output, KEY, x)
        assert y.dtype == jnp.bfloat16
        dtypes = {
            "kernel_g": jnp.float32,
            "kernel_u": jnp.float32,
            "kernel_sigma": jnp.float32,
        }
        for name, value in {**variables["params"], **variables.get("batch_stats", {})}.items():
            assert name == "layer" or value.dtype == dtypes[name]
    with jax.enable_x64(True):
        layer = jnn.SpectralNorm(nn.Dense(3, param_dtype=jnp.float64), update_stats=False)
        y, variables = jax.eval_shape(layer.init_with_output, KEY, np.ones((2, 6)))
        assert y.dtype == variables["batch_stats"]["kernel_u"].dtype == jnp.float64


def test_errors(rng):
    x = images(rng, 4, 6)
    nested = nn.Sequential([nn.Dense(5), nn.Dense(3)])
    with raises(TypeError, "layer must be a Flax module, such as nn.Dense(4), got 3."):
        jnn.WeightNorm(3).init(KEY, x)
    with raises(
        ValueError,
        "WeightNorm (top level) found no parameter to normalize with select='kernels': its layer "
        "Dense has ['bias', 'kernel'].",
    ):
        jnn.WeightNorm(nn.Dense(3), select="kernels").init(KEY, x)
    with raises(
        ValueError,
        "SpectralNorm (top level) cannot normalize the parameter bias of shape (3,): "
        "feature_axes=-1 leaves no axis to reduce over. Leave it out with select, or choose other "
        "feature_axes.",
    ):
        jax.eval_shape(jnn.SpectralNorm(nn.Dense(3), select="*", update_stats=True).init, KEY, x)
    with raises(
        ValueError,
        "data_dependent_init needs a layer with one selected parameter of its own, whose output "
        "units are the last axis of the output; Sequential has ['layers_0/kernel', "
        "'layers_1/kernel'] and an output of shape (4, 3). Wrap each layer on its own.",
    ):
        jax.eval_shape(jnn.WeightNorm(nested, data_dependent_init=True).init, KEY, x)
    layer = jnn.SpectralNorm(nn.Dense(3))
    with raises(
        ValueError,
        "SpectralNorm needs update_stats: True in training, False in evaluation; set it as a "
        "field or pass it in the call.",
    ):
        layer.init(KEY, x)
    variables = drawn(layer, x, update_stats=True)
    with raises(
        ValueError,
        "SpectralNorm (top level) updates u and sigma in training, but the collection batch_stats "
        'is not mutable: call apply(..., mutable=["batch_stats"]) and keep the updates it returns, '
        "or pass update_stats=False to evaluate.",
    ):
        layer.apply(variables, x, update_stats=True)
