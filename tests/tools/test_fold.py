"""Folding batch norm: the same outputs, nothing left of the norm, and what has to stay."""

import itertools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm.drop_in.linen
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx
from jaxnorm import Moments, tools

pytestmark = pytest.mark.quickly_compiled

IMAGE = np.random.default_rng(0).normal(1.0, 2.0, (2, 6, 6, 4)).astype(np.float32)


def disturb(tree, seed=1):
    """Other values than those of the start, where a norm does nothing; variances stay positive."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda v: (v + 0.5 * rng.random(v.shape)).astype(v.dtype), tree)


def initialized(model, x):
    """Variables of any value; nothing is compiled."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return disturb(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes))


def primitives(jaxpr):
    """The names of all primitives in a jaxpr."""
    names = []
    for eqn in jaxpr.eqns:
        names.append(eqn.primitive.name)
        for param in eqn.params.values():
            for one in param if isinstance(param, tuple | list) else (param,):
                inner = getattr(one, "jaxpr", one)
                names += primitives(inner) if hasattr(inner, "eqns") else []
    return names


LAYERS = (
    (nn.Dense, {"features": 6}),
    (nn.Conv, {"features": 8, "kernel_size": (3, 3), "feature_group_count": 2}),  # grouped
    (nn.Conv, {"features": 4, "kernel_size": (3, 3), "feature_group_count": 4}),  # depthwise
    (nn.Conv, {"features": 6, "kernel_size": (3, 3), "strides": 2, "padding": "CIRCULAR"}),
    (nn.Conv, {"features": 6, "kernel_size": (3, 3), "kernel_dilation": 2}),
    (nn.ConvTranspose, {"features": 6, "kernel_size": (3, 3), "strides": (2, 2)}),
    (
        nn.ConvTranspose,
        {"features": 6, "kernel_size": (3, 3), "strides": (2, 2), "transpose_kernel": True},
    ),
)
NORMS = (jnn.BatchNorm, nn.BatchNorm)


class AllLayers(nn.Module):
    """Each layer with each library's norm, with a bias and without."""

    @nn.compact
    def __call__(self, x):
        results = []
        for layer, options in LAYERS:
            for norm, use_bias in itertools.product(NORMS, (True, False)):
                y = layer(**options, use_bias=use_bias)(x)
                results.append(nn.relu(norm(use_running_average=True, epsilon=0.1)(y)))
        return results


@pytest.fixture(scope="module")
def folded_layers():
    variables = initialized(AllLayers(), IMAGE)
    return variables, tools.fold(AllLayers(), variables, IMAGE)


def test_every_layer_takes_up_its_norm(folded_layers):
    variables, folded = folded_layers
    assert folded.kept == [] and len(folded.pairs) == len(LAYERS) * len(NORMS) * 2
    larger = np.concatenate([IMAGE, 3 * IMAGE[:, ::-1]], 1)
    expected = jax.jit(AllLayers().apply)(variables, larger)
    y = jax.jit(folded.apply)(folded.variables, larger)
    # Sums of 36 products of values up to 10; they are rounded in another order.
    chex.assert_trees_all_close(y, expected, rtol=1e-5, atol=2e-5)


def test_nothing_of_the_norm_is_left(folded_layers):
    variables, folded = folded_layers
    before = primitives(jax.make_jaxpr(AllLayers().apply)(variables, IMAGE).jaxpr)
    after = primitives(jax.make_jaxpr(folded.apply)(folded.variables, IMAGE).jaxpr)
    assert "rsqrt" in before
    products = [name for name in after if name in ("dot_general", "conv_general_dilated")]
    assert len(products) == after.count("add") == len(folded.pairs)
    assert not {"rsqrt", "sub", "mul", "div", "name"} & set(after)
    assert "batch_stats" not in folded.variables
    assert {tuple(sorted(p)) for p in folded.variables["params"].values()} == {("bias", "kernel")}


class Net(nn.Module):
    """Nesting, loops and rematerialization, and each reason to stay."""

    @nn.compact
    def __call__(self, x, train=False):
        def norm(name, **options):
            return jnn.BatchNorm(use_running_average=not train, name=name, **options)

        split_init = nn.with_partitioning(nn.initializers.ones, (None, "d"))
        split = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(nn.remat(Block), length=2, **split)(name="blocks")(x, None)
        dense = nn.vmap(nn.Dense, in_axes=None, out_axes=0, axis_size=3, **split)
        each = nn.vmap(jnn.BatchNorm, in_axes=0, out_axes=0, **split)
        y = each(use_running_average=True, name="each_norm")(dense(4, name="each")(x)).sum(0)
        twice, shared = nn.Dense(4, name="twice"), norm("shared")
        y = shared(twice(y)) + shared(twice(2 * y))
        x = norm("first")(x)
        x = norm("activated")(nn.relu(nn.Dense(4, name="a")(x)))
        h = nn.Dense(4, name="b")(x)
        x = norm("residual")(h) + h
        once = jaxnorm.drop_in.linen.BatchNorm(use_running_average=not train, name="once")
        x = norm("again")(once(nn.Dense(4, name="c", kernel_init=split_init)(x)))
        x = norm("other_axis", feature_axes=0)(nn.Dense(4, name="d")(x))
        x = norm("one_value", reduction_axes=(0, 1))(nn.Dense(4, name="o")(x))
        x = norm("batch", eval_statistics="batch")(nn.Dense(4, name="e")(x))
        x = norm("masked")(nn.Dense(4, name="f")(x), mask=jnp.ones(x.shape, bool))
        x = norm("given")(nn.Dense(4, name="g")(x), gamma=jnp.ones(4))
        x = jnn.WeightStandardization(nn.Dense(4, name="h"), name="ws")(x)
        x = norm("standardized")(x)
        x = norm("squashed")(Squashed(4, name="i")(x))
        x = BatchNormReLU(use_running_average=True, name="relu")(nn.Dense(4, name="n")(x))
        tied = nn.Dense(4, name="j", use_bias=False)
        x = norm("tied")(tied(x)) + tied.variables["params"]["kernel"].sum()
        x, _ = nn.scan(Carried, **split, length=2)(name="carried")(nn.Dense(4, name="k")(x), None)
        slim = norm("slim")
        x = slim(nn.Dense(4, name="p")(x)) + abs(slim.variables["params"]["gamma"]).sum()
        x = norm("general")(nn.DenseGeneral(4, name="q")(x))
        two = norm("two")
        return two(nn.Dense(4, name="l")(x)) + two(nn.Dense(4, name="m")(x)) + y


class Squashed(nn.Dense):
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(super().__call__(x))


class BatchNormReLU(nn.BatchNorm):
    @nn.compact
    def __call__(self, x):
        return nn.relu(super().__call__(x))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = nn.Dense(4, use_bias=False, name="dense")(x)
        return nn.tanh(nn.BatchNorm(use_running_average=True, name="norm")(x)), None


class Carried(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnn.BatchNorm(use_running_average=True, name="norm")(x), None


BAKED = (
    "h is no plain product with its kernel; weights that WeightNorm, SpectralNorm or "
    "WeightStandardization compute have to be baked first (jaxnorm.linen.bake, jaxnorm.nnx.bake)"
)
KEPT = {
    "first": "scan lies between the model's input and it",
    "activated": "relu lies between a and it",
    "residual": "the output of b is also used elsewhere",
    "again": "its input comes from once, which is no Dense, Conv or ConvTranspose",
    "other_axis": "its statistics are not of the last axis alone",
    "one_value": "its statistics are not of the last axis alone",
    "batch": "it normalizes by the batch's statistics, or updates the running ones; call the "
    "model for evaluation",
    "masked": "the call gives it mask",
    "given": "the call gives it gamma",
    "standardized": BAKED,
    "squashed": "tanh lies between i and it",
    "tied": "a parameter of j is also used elsewhere",
    "carried/norm": "its input comes from outside of the model, or of a loop",
    "slim": "its parameters or statistics are also used elsewhere",
    "general": "its input is a product that is no Dense's, Conv's or ConvTranspose's",
    "two": "it is called behind several layers, l and m",
}


def test_what_cannot_be_folded_stays_with_the_reason():
    x = IMAGE[0, :4, 0]
    variables = initialized(Net(), x)
    folded = tools.fold(Net(), variables, x)
    assert dict(folded.kept) == KEPT
    assert dict(folded.pairs) == {
        "blocks/dense": "blocks/norm",
        "each": "each_norm",
        "twice": "shared",
        "c": "once",
        "n": "relu",
    }
    y, expected = jax.jit(folded.apply)(folded.variables, x), jax.jit(Net().apply)(variables, x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_parameters_stacked_along_another_axis_stay():
    class Stacked(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"params": 0, "batch_stats": 1}  # 4 x 4 either way
            split = {"variable_axes": axes, "split_rngs": {"params": True}}
            return nn.scan(nn.remat(Block), length=4, **split)(name="blocks")(x, None)[0]

    x = IMAGE[0, :4, 0]
    variables = initialized(Stacked(), x)
    folded = tools.fold(Stacked(), variables, x)
    assert folded.kept == [
        ("blocks/norm", "mean of blocks/norm is stacked along another axis than the first")
    ]


class Twin(nnx.Module):
    def __init__(self, rngs):
        options = {"kernel_size": (3, 3), "rngs": rngs}
        self.layers = nnx.List(
            [
                nnx.Sequential(
                    nnx.Conv(4, 6, use_bias=False, **options), nnx.BatchNorm(6, rngs=rngs)
                ),
                nnx.Sequential(nnx.ConvTranspose(6, 4, **options), jnx.BatchNorm(4)),
                nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.relu, jnx.BatchNorm(4)),
            ]
        )

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(nnx.remat(lambda layer, x: layer(x))(layer, x))
        return x


def test_of_an_nnx_model():
    graph, state = nnx.split(nnx.eval_shape(lambda: Twin(nnx.Rngs(0))))
    state = disturb(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), state))
    model = nnx.merge(graph, state, copy=True)
    folded = tools.fold(model, IMAGE)
    assert folded.pairs == [
        ("layers/0/layers/0", "layers/0/layers/1"),
        ("layers/1/layers/0", "layers/1/layers/1"),
    ]
    assert folded.kept == [("layers/2/layers/2", "relu lies between layers/2/layers/0 and it")]
    assert nnx.split(model)[0] == graph
    chex.assert_trees_all_equal(nnx.state(model), state)
    part = IMAGE[:1, 1:]
    y = nnx.jit(folded.apply)(folded.variables, part)
    model.eval()
    expected = nnx.jit(lambda model, x: model(x))(model, part)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)
    kept = nnx.to_flat_state(nnx.state(folded.variables))
    assert sum(path[-1] in ("mean", "gamma", "scale") for path, _ in kept) == 2


def test_folded_models_are_trained_on_and_keep_their_dtype():
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(4, use_bias=False, dtype=jnp.bfloat16)(x)
            return jnn.BatchNorm(use_running_average=True, dtype=jnp.float32)(x)

    x = IMAGE[0, 0]
    variables = initialized(Half(), x)
    folded = tools.fold(Half(), variables, x)
    y, expected = jax.jit(lambda a, b: (folded.apply(a, x), Half().apply(b, x)))(
        folded.variables, variables
    )
    assert y.dtype == expected.dtype == jnp.float32
    np.testing.assert_allclose(y, expected, atol=0.1)  # of values up to 10 in bfloat16
    grads = jax.jit(jax.grad(lambda v: jnp.square(folded.apply(v, x)).sum()))(folded.variables)
    assert jax.tree.map(lambda g: bool(np.any(g)), grads) == {
        "params": {"Dense_0": {"kernel": True, "bias": True}}
    }


@pytest.mark.parametrize("axis", [-1, 0])
def test_a_kernel_is_folded_as_in_float64(axis, rng):
    kernel, bias = rng.normal(size=(4, 4)), rng.normal(size=4)
    mean, var, gamma, beta = rng.normal(size=4), rng.random(4), *rng.normal(size=(2, 4))
    scale = gamma / np.sqrt(var + 0.1)
    expected = kernel * (scale if axis else scale[:, None]), (bias - mean) * scale + beta
    kernel, bias, mean, var, gamma, beta = (
        jnp.asarray(a, jnp.float32) for a in (kernel, bias, mean, var, gamma, beta)
    )
    moments = Moments(mean, var, var)
    result = tools.fold_kernel(kernel, bias, moments, gamma, beta, epsilon=0.1, feature_axis=axis)
    chex.assert_trees_all_close(result, jax.tree.map(np.float32, expected), rtol=1e-5, atol=1e-6)


def test_errors():
    model, x = nn.Sequential([nn.Dense(2), nn.BatchNorm(use_running_average=True)]), IMAGE[0, 0]
    variables = initialized(model, x)

    def message(*args, **options):
        with pytest.raises(ValueError) as error:
            tools.fold(*args, **options)
        return str(error.value)

    assert message(model, {"params": variables["params"]}, x) == (
        "fold: variables hold no running mean for layers_1; give the collection batch_stats too, "
        "as it was trained."
    )
    folded = tools.fold(model, variables, x)
    with pytest.raises(ValueError) as error:
        folded.apply(variables, x)
    norm = ("batch_stats/layers_1/mean", "batch_stats/layers_1/var", "params/layers_1/bias")
    assert str(error.value) == (
        "variables must be those of the folded model, such as the attribute variables; missing "
        f"are [], too many are {[*norm, 'params/layers_1/scale']}."
    )
    assert message(model, {**variables, "params": {}}, x).startswith(
        'Sequential cannot be run on the arguments given: Tried to access "kernel" from collection'
    )
    assert message(model, variables, x[:, :3]).startswith("Sequential cannot be run on the arg")
    assert message(nn.Dense(2), {"params": variables["params"]["layers_0"]}, x) == (
        "Dense calls no batch norm of jaxnorm or flax, so that there is nothing to fold."
    )
    assert "rngs is for linen modules" in message(Twin(nnx.Rngs(0)), IMAGE, rngs={})
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        tools.fold(model, variables, call=lambda net, x: net(x))
    moments = Moments(jnp.zeros(3), jnp.ones(3), jnp.ones(3))
    with pytest.raises(ValueError) as error:
        tools.fold_kernel(jnp.ones((3, 2)), None, moments, epsilon=0.1)
    assert str(error.value) == (
        "moments.mean has shape (3,), expected (2,): the kernel of shape (3, 2) has that many "
        "features along feature_axis=-1."
    )
    with pytest.raises(ValueError, match=r"epsilon must not be negative, got -1\.0"):
        tools.fold_kernel(jnp.ones((2, 3)), None, moments, epsilon=-1.0)
