"""Weight norm, spectral norm and weight standardization around Flax linen layers."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from flax.training.train_state import TrainState

import jaxnorm
import jaxnorm.linen as jnn

KEY = jax.random.key(0)
# A float32 matrix product of a few dozen terms of order 1.
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def raises(error, message):
    # JAX may add a note on its own line.
    return pytest.raises(error, match="^" + re.escape(message) + "(\n|$)")


def images(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


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
    y, variables = jax.jit(wrapped.init_with_output)(KEY, x)
    plain = {"params": variables["params"]["layer"]}
    close(y, make().apply(plain, x))
    kernels = [p for p in traverse_util.flatten_dict(plain["params"]) if p[-1] == "kernel"]
    own = {name for name in variables["params"] if name != "layer"}
    assert own == {"_".join((*path, "g")) for path in kernels}


def test_weight_norm_of_an_embedding(rng):
    tokens = jnp.array([[0, 3], [2, 2]])
    wrapped = jnn.WeightNorm(nn.Embed(5, 4))
    y, variables = wrapped.init_with_output(KEY, tokens)
    table = variables["params"]["layer"]["embedding"]
    close(y, table[tokens])
    # Its other methods, too: the same normalized table decodes.
    g = variables["params"]["embedding_g"] * 2
    variables = {"params": {"layer": {"embedding": table}, "embedding_g": g}}
    query = images(rng, 3, 4)
    close(wrapped.apply(variables, query, layer_method="attend"), 2 * query @ table.T)
    # One norm per word instead of one per feature.
    per_word = jnn.WeightNorm(nn.Embed(5, 4), feature_axes=0)
    assert per_word.init(KEY, tokens)["params"]["embedding_g"].shape == (5,)


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
    params = model.init(KEY, x)["params"]
    if isinstance(model, Compact):
        layers = [("Dense_0",), ("Dense_1",)]
        gs = [("WeightNorm_0", "kernel_g"), ("last", "kernel_g")]
    else:
        layers = [("first", "layer"), ("dense",)]
        gs = [("first", "kernel_g"), ("last", "kernel_g")]
    flat = traverse_util.flatten_dict(params)
    for path in gs:
        flat[path] = flat[path] * jnp.asarray(rng.uniform(0.5, 2, 5), jnp.float32)
    params = traverse_util.unflatten_dict(flat)

    def numpy_model(flat):
        h = np.asarray(x, np.float64)
        for layer, g in zip(layers, gs, strict=True):
            v = np.asarray(flat[*layer, "kernel"], np.float64)
            w = np.asarray(flat[g], np.float64) * v / np.sqrt((v**2).sum(0))
            h = h @ w + np.asarray(flat[*layer, "bias"], np.float64)
            h = np.maximum(h, 0) if layer == layers[0] else h
        return h

    @jax.jit
    def loss(params):
        y, state = model.apply({"params": params}, x, mutable=True)
        return jnp.mean((y - target) ** 2), (y, state)

    (_, (y, state)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
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
    target = x @ images(rng, 5, 5)
    model = Compact()
    state = TrainState.create(
        apply_fn=model.apply, params=model.init(KEY, x)["params"], tx=optax.sgd(0.1)
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
    variables = jax.jit(Stack(wrap).init)(KEY, x)
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
    one, by_loop = jax.jit(jax.value_and_grad(functools.partial(loss, loop)))(variables)
    two, by_scan = jax.jit(jax.value_and_grad(functools.partial(loss, Stack(wrap).apply)))(
        variables
    )
    close(one, two)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), by_loop, by_scan
    )
    # An ensemble: the variables of all members stacked.
    members = [Block(wrap).init(jax.random.key(i), x, None) for i in range(2)]
    together = nn.vmap(
        Block,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        in_axes=None,
        axis_size=2,
    )(wrap)
    stacked = jax.tree.map(lambda *v: jnp.stack(v), *members)
    y, _ = together.apply(stacked, x, None)
    for i in range(2):
        close(y[i], Block(wrap).apply(members[i], x, None)[0])


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
    params = wrapped.init(KEY, x)["params"]
    params["layers_2_kernel_g"] *= 3.0
    hidden = nn.relu(nn.Dense(5).apply({"params": params["layer"]["layers_0"]}, x))
    expected = 3 * hidden @ params["layer"]["layers_2"]["kernel"]
    close(wrapped.apply({"params": params}, x), expected)


def test_data_dependent_init(rng):
    x = 3 + 2 * images(rng, 200, 6)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            wrap = functools.partial(jnn.WeightNorm, data_dependent_init=True)
            y = wrap(nn.Dense(7, bias_init=nn.initializers.ones))(x)
            z = wrap(nn.Dense(4, use_bias=False))(nn.relu(y))
            return y, z

    outputs, variables = jax.jit(Model().init_with_output)(KEY, x)
    again = Model().apply(variables, x)
    for y, z in (outputs, again):
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
    y, _ = layer.init_with_output(KEY, x)
    close(y.mean((0, 1, 2)), np.zeros(5))
    close(y.std((0, 1, 2)), np.ones(5))
    # One example says nothing of the scale: the layer starts as it would without.
    for x in (jnp.ones((1, 6)), jnp.zeros((4, 6)), jnp.ones(6)):
        y, variables = jnn.WeightNorm(nn.Dense(3), data_dependent_init=True).init_with_output(
            KEY, x
        )
        close(y, nn.Dense(3).apply({"params": variables["params"]["layer"]}, x))


def svd(kernel):
    return np.linalg.svd(np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]))[1][0]


def test_spectral_norm_is_warm_at_initialization(rng):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, update_stats):
            for layer in (nn.Conv(64, (3, 3)), nn.ConvTranspose(16, (2, 2)), nn.Dense(300)):
                x = jnn.SpectralNorm(layer)(x, update_stats=update_stats)
            return nn.tanh(jnn.SpectralNorm(nn.Dense(300))(x, update_stats=update_stats))

    x = images(rng, 1, 4, 4, 8)
    init = jax.jit(functools.partial(Model().init, update_stats=True))
    for seed in range(3):
        variables = init(jax.random.key(seed), x)
        params, stats = variables["params"], variables["batch_stats"]
        for i, name in enumerate(("Conv_0", "ConvTranspose_0", "Dense_0", "Dense_1")):
            own = stats[f"SpectralNorm_{i}"]
            np.testing.assert_allclose(own["kernel_sigma"], svd(params[name]["kernel"]), rtol=0.01)
            np.testing.assert_allclose(np.linalg.norm(own["kernel_u"]), 1, rtol=1e-6)
            assert own["kernel_u"].dtype == own["kernel_sigma"].dtype == jnp.float32


def test_spectral_norm_in_training_and_evaluation(rng):
    x = images(rng, 8, 6)
    layer = jnn.SpectralNorm(nn.Dense(5))
    variables = layer.init(KEY, x, update_stats=True)
    kernel = variables["params"]["layer"]["kernel"]

    @jax.jit
    def train(variables):
        return layer.apply(variables, x, update_stats=True, mutable=["batch_stats"])

    @jax.jit
    def evaluate(variables):
        return layer.apply(variables, x, update_stats=False, mutable=["batch_stats"])

    y, state = evaluate(variables)
    close(y, x @ kernel / variables["batch_stats"]["kernel_sigma"])
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])
    close(layer.apply(variables, x, update_stats=False), y)
    # From an unrelated u, training converges to the singular value, a step in each call.
    u = images(rng, 5)
    state = {"batch_stats": {"kernel_u": u, "kernel_sigma": jnp.ones(())}}
    for _ in range(30):
        y, state = train({**variables, **state})
    sigma = state["batch_stats"]["kernel_sigma"]
    np.testing.assert_allclose(sigma, svd(kernel), rtol=1e-3)
    close(y, x @ kernel / sigma)
    np.testing.assert_allclose(svd(kernel / sigma), 1, rtol=1e-3)


def test_spectral_norm_follows_the_weights_in_training(rng):
    x = images(rng, 32, 6)
    target = x @ images(rng, 6, 6)
    model = jnn.SpectralNorm(nn.Dense(6), update_stats=True)
    variables = model.init(KEY, x)
    # Slow enough for one step of power iteration to keep up.
    optimizer = optax.sgd(0.01)

    def loss(params, stats):
        y, state = model.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
        return jnp.mean((y - target) ** 2), state["batch_stats"]

    @jax.jit
    def train(params, stats):
        def step(carry, _):
            params, stats, opt = carry
            (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(params, stats)
            update, opt = optimizer.update(gradient, opt)
            return (optax.apply_updates(params, update), stats, opt), value

        carry, losses = jax.lax.scan(step, (params, stats, optimizer.init(params)), length=100)
        return *carry[:2], losses

    params, stats, losses = train(variables["params"], variables["batch_stats"])
    assert losses[-1] < losses[0]
    kernel = params["layer"]["kernel"]
    moved = np.linalg.norm(kernel - variables["params"]["layer"]["kernel"])
    assert moved > 0.1 * np.linalg.norm(kernel)
    # sigma is that of the weights before the last step, which moved them by less than 1 %.
    np.testing.assert_allclose(stats["kernel_sigma"], svd(kernel), rtol=0.01)
    # Evaluation goes by the weights as they are, not by a sigma that is a step behind.
    y = model.apply({"params": params, "batch_stats": stats}, jnp.eye(6), update_stats=False)
    np.testing.assert_allclose(svd(y - params["layer"]["bias"][None]), 1, rtol=1e-3)


@pytest.mark.parametrize("scaled", [False, True])
def test_weight_standardization(scaled, rng):
    x = images(rng, 4, 6, 6, 3)
    conv = functools.partial(nn.Conv, 5, (3, 3), padding="VALID", use_bias=False)
    layer = jnn.WeightStandardization(conv(), scaled=scaled, use_gain=True)
    variables = layer.init(KEY, x)
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
        variables = layer.init(KEY, x)
        own = {k: v for k, v in variables["params"].items() if k != "layer"}
        for value in own.values():
            assert isinstance(value, nn.Partitioned) and value.names == ("model",)
        # With and without the metadata, the same result.
        y, _ = layer.apply(variables, x, mutable=["batch_stats"])
        z, _ = layer.apply(nn.unbox(variables), x, mutable=["batch_stats"])
        close(y, z)


def test_half_precision_and_float64(rng):
    x = images(rng, 4, 6).astype(jnp.bfloat16)
    for wrap in (jnn.WeightNorm, spectral[False], jnn.WeightStandardization):
        layer = wrap(nn.Dense(3, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
        y, variables = layer.init_with_output(KEY, x)
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
        y, variables = layer.init_with_output(KEY, jnp.ones((2, 6), jnp.float64))
        assert y.dtype == variables["batch_stats"]["kernel_u"].dtype == jnp.float64


def test_tabulate(rng):
    table = nn.tabulate(Compact(), KEY)(images(rng, 2, 5))
    assert "WeightNorm" in table and "kernel_g" in table


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
        jnn.SpectralNorm(nn.Dense(3), select="*", update_stats=True).init(KEY, x)
    with raises(
        ValueError,
        "data_dependent_init needs a layer with one selected parameter of its own, whose output "
        "units are the last axis of the output; Sequential has ['layers_0/kernel', "
        "'layers_1/kernel'] and an output of shape (4, 3). Wrap each layer on its own.",
    ):
        jnn.WeightNorm(nested, data_dependent_init=True).init(KEY, x)
    layer = jnn.SpectralNorm(nn.Dense(3))
    with raises(
        ValueError,
        "SpectralNorm needs update_stats: True in training, False in evaluation; set it as a "
        "field or pass it in the call.",
    ):
        layer.init(KEY, x)
    variables = layer.init(KEY, x, update_stats=True)
    with raises(
        ValueError,
        "SpectralNorm (top level) updates u and sigma in training, but the collection batch_stats "
        'is not mutable: call apply(..., mutable=["batch_stats"]) and keep the updates it returns, '
        "or pass update_stats=False to evaluate.",
    ):
        layer.apply(variables, x, update_stats=True)
