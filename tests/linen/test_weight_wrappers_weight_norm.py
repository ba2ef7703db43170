"""Weight norm around Flax linen layers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from flax.training.train_state import TrainState

import jaxnorm.linen as jnn
from tests.support.jaxpr_text import drawn, initialized
from tests.support.weight_wrappers import KEY, close, images

pytestmark = pytest.mark.quickly_compiled

LAYERS = {
    "dense": (lambda: nn.Dense(3), (4, 6)),
    "dense_general": (lambda: nn.DenseGeneral((2, 3), axis=(-1, -2)), (4, 5, 6)),
    "conv": (lambda: nn.Conv(4, (3, 3), feature_group_count=2), (2, 5, 5, 6)),
    "conv_transpose": (lambda: nn.ConvTranspose(4, (2, 2), strides=(2, 2)), (2, 3, 3, 5)),
    "nested": (lambda: nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(3)]), (4, 6)),
    "attention": (lambda: nn.MultiHeadDotProductAttention(2), (2, 5, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_weight_norm_starts_as_the_wrapped_layer(name, rng):
    make, shape = LAYERS[name]
    x = images(rng, *shape)
    wrapped = jnn.WeightNorm(make())

    @jax.jit
    def run(x):
        y, variables = wrapped.init_with_output(KEY, x)
        plain = {"params": variables["params"]["layer"]}
        return y, make().apply(plain, x), variables

    y, expected, variables = run(x)
    plain = {"params": variables["params"]["layer"]}
    close(y, expected)
    kernels = [p for p in traverse_util.flatten_dict(plain["params"]) if p[-1] == "kernel"]
    own = {name for name in variables["params"] if name != "layer"}
    assert own == {"_".join((*path, "g")) for path in kernels}


def test_weight_norm_of_an_embedding(rng):
    tokens = np.array([[0, 3], [2, 2]], np.int32)
    wrapped = jnn.WeightNorm(nn.Embed(5, 4))
    y, variables = jax.device_get(jax.jit(wrapped.init_with_output)(KEY, tokens))
    table = variables["params"]["layer"]["embedding"]
    close(y, table[tokens])
    # Its other methods, too: the same normalized table decodes.
    g = variables["params"]["embedding_g"] * 2
    variables = {"params": {"layer": {"embedding": table}, "embedding_g": g}}
    query = np.asarray(images(rng, 3, 4))
    attend = jax.jit(functools.partial(wrapped.apply, layer_method="attend"))
    close(attend(variables, query), 2 * query @ table.T)
    # One norm per word instead of one per feature.
    per_word = jnn.WeightNorm(nn.Embed(5, 4), feature_axes=0)
    assert jax.eval_shape(per_word.init, KEY, tokens)["params"]["embedding_g"].shape == (5,)


class Compact(nn.Module):
    wrap: type = jnn.WeightNorm

    @nn.compact
    def __call__(self, x):
        x = nn.relu(self.wrap(nn.Dense(5))(x))
        return self.wrap(nn.Dense(5), name="last")(x)


class Setup(nn.Module):
    wrap: type = jnn.WeightNorm

    def setup(self):
        self.first = self.wrap(nn.Dense(5))
        self.dense = nn.Dense(5)
        self.last = self.wrap(self.dense)

    def __call__(self, x):
        return self.last(nn.relu(self.first(x)))


@pytest.mark.parametrize("model", [Compact(), Setup()], ids=["compact", "setup"])
def test_weight_norm_in_models(model, rng):
    x, target = rng.normal(size=(2, 8, 5)).astype(np.float32)
    params = drawn(model, x)["params"]
    if isinstance(model, Compact):
        layers = [("Dense_0",), ("Dense_1",)]
        gs = [("WeightNorm_0", "kernel_g"), ("last", "kernel_g")]
    else:
        layers = [("first", "layer"), ("dense",)]
        gs = [("first", "kernel_g"), ("last", "kernel_g")]
    flat = traverse_util.flatten_dict(params)
    for path in gs:
        flat[path] = rng.uniform(0.5, 2, 5).astype(np.float32)
    params = traverse_util.unflatten_dict(flat)

    def numpy_model(flat):
        h = np.asarray(x, np.float64)
        for layer, g in zip(layers, gs, strict=True):
            v = np.asarray(flat[*layer, "kernel"], np.float64)
            w = np.asarray(flat[g], np.float64) * v / np.sqrt((v**2).sum(0))
            h = h @ w + np.asarray(flat[*layer, "bias"], np.float64)
            h = np.maximum(h, 0) if layer == layers[0] else h
        return h

    def loss(params):
        y, state = model.apply({"params": params}, x, mutable=True)
        return jnp.mean((y - target) ** 2), (y, state)

    (_, (y, state)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    close(y, numpy_model(flat))
    # The forward pass may write, and does not: flax#5576.
    jax.tree.map(np.testing.assert_array_equal, state["params"], params)

    # The gradient of every parameter, g included, by central differences in float64.
    gradient = traverse_util.flatten_dict(gradient)
    for path, value in flat.items():
        step = rng.normal(size=value.shape)
        ahead, behind = (
            np.mean((numpy_model({**flat, path: np.float64(value) + s * step}) - target) ** 2)
            for s in (1e-6, -1e-6)
        )
        moved = np.sum(np.asarray(gradient[path]) * step)
        np.testing.assert_allclose(moved, (ahead - behind) / 2e-6, rtol=1e-4, atol=1e-5)


def test_training_changes_g_and_v_and_nothing_else(rng):
    x = images(rng, 64, 5)
    target = np.asarray(x) @ np.asarray(images(rng, 5, 5))
    model = Compact()
    state = TrainState.create(
        apply_fn=model.apply, params=initialized(model, x)["params"], tx=optax.sgd(0.1)
    )

    def loss(params):
        return jnp.mean((model.apply({"params": params}, x) - target) ** 2)

    @jax.jit
    def train(state):
        def step(state, _):
            value, gradient = jax.value_and_grad(loss)(state.params)
            return state.apply_gradients(grads=gradient), value

        return jax.lax.scan(step, state, length=150)

    after, losses = train(state)
    assert losses[-1] < 0.5 * losses[0]
    g = [s.params["WeightNorm_0"]["kernel_g"] for s in (state, after)]
    assert (np.abs(g[1] - g[0]) > 1e-3).all()


def test_select_by_path(rng):
    x = images(rng, 4, 6)
    layer = nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(3)])

    def own(select):
        shapes = jax.eval_shape(jnn.WeightNorm(layer, select=select).init, KEY, x)["params"]
        return {name for name in shapes if name != "layer"}

    assert own("kernel") == {"layers_0_kernel_g", "layers_2_kernel_g"}
    assert own(("layers_2/kernel",)) == {"layers_2_kernel_g"}
    assert own("layers_0/k*") == {"layers_0_kernel_g"}
    assert own(lambda path, value: value.shape == (6, 5)) == {"layers_0_kernel_g"}
    # What is not selected is used as it is.
    wrapped = jnn.WeightNorm(layer, select="layers_2/kernel")
    params = jax.device_get(initialized(wrapped, x))["params"]
    params["layers_2_kernel_g"] = 3 * params["layers_2_kernel_g"]
    hidden = np.maximum(np.asarray(x) @ params["layer"]["layers_0"]["kernel"], 0)
    expected = 3 * hidden @ params["layer"]["layers_2"]["kernel"]
    close(jax.jit(wrapped.apply)({"params": params}, x), expected)


def test_data_dependent_init(rng):
    x = 3 + 2 * np.asarray(images(rng, 200, 6))

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            wrap = functools.partial(jnn.WeightNorm, data_dependent_init=True)
            y = wrap(nn.Dense(7, bias_init=nn.initializers.ones))(x)
            z = wrap(nn.Dense(4, use_bias=False))(nn.relu(y))
            return y, z

    outputs, variables = jax.jit(Model().init_with_output)(KEY, x)
    again = jax.jit(Model().apply)(variables, x)
    for y, z in jax.device_get((outputs, again)):
        close(y.mean(0), np.zeros(7))
        close(y.std(0), np.ones(7))
        # Without a bias the mean stays.
        close(z.std(0), np.ones(4))
    # g is 1 / sigma of the output of unit vectors: Salimans & Kingma 2016, equation 6.
    params = variables["params"]
    v = np.asarray(params["Dense_0"]["kernel"], np.float64)
    t = np.asarray(x, np.float64) @ (v / np.linalg.norm(v, axis=0))
    np.testing.assert_allclose(params["WeightNorm_0"]["kernel_g"], 1 / t.std(0), rtol=1e-5)
    np.testing.assert_allclose(params["Dense_0"]["bias"], -t.mean(0) / t.std(0), rtol=1e-4)


def test_data_dependent_init_of_convolutions_and_constant_batches(rng):
    x = images(rng, 4, 6, 6, 3)
    layer = jnn.WeightNorm(nn.Conv(5, (3, 3)), data_dependent_init=True)
    y = np.asarray(jax.jit(lambda x: layer.init_with_output(KEY, x)[0])(x))
    close(y.mean((0, 1, 2)), np.zeros(5))
    close(y.std((0, 1, 2)), np.ones(5))

    # One example says nothing of the scale: the layer starts as it would without.
    @jax.jit
    def run(x):
        wrapped = jnn.WeightNorm(nn.Dense(3), data_dependent_init=True)
        y, variables = wrapped.init_with_output(KEY, x)
        return y, nn.Dense(3).apply({"params": variables["params"]["layer"]}, x)

    for x in (np.ones((1, 6)), np.zeros((4, 6)), np.ones(6)):
        close(*run(x.astype(np.float32)))


def test_tabulate(rng):
    table = nn.tabulate(Compact(), KEY)(images(rng, 2, 5))
    assert "WeightNorm" in table and "kernel_g" in table
