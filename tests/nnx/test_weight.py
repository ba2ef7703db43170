"""The wrappers of weights for Flax NNX: their twins for linen, and what NNX adds."""

import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType

import jaxnorm
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx
from tests.nnx.twins import KEY, built, draw, values
from tests.support.jaxpr_text import program

pytestmark = pytest.mark.quickly_compiled

equal = chex.assert_trees_all_equal
close = functools.partial(chex.assert_trees_all_close, atol=1e-5, rtol=1e-5)

WRAPPERS = {
    "weight_norm": ("WeightNorm", {}),
    "spectral_norm": ("SpectralNorm", {"warmup_steps": 3}),
    "standardization": ("WeightStandardization", {"use_gain": True}),
    "scaled": ("WeightStandardization", {"scaled": True}),
}
LAYERS = {
    "dense": (lambda: nn.Dense(4), lambda rngs: nnx.Linear(3, 4, rngs=rngs), (5, 3)),
    "conv": (lambda: nn.Conv(4, (2,)), lambda rngs: nnx.Conv(3, 4, (2,), rngs=rngs), (2, 5, 3)),
}
wrappers = pytest.mark.parametrize("wrapper", WRAPPERS)


def wrap(wrapper, layer, rngs=None):
    name, options = WRAPPERS[wrapper]
    return getattr(jnx, name)(layer, **options, rngs=nnx.Rngs(1) if rngs is None else rngs)


def linear(seed=0, **options):
    return nnx.Linear(3, 4, rngs=nnx.Rngs(seed), **options)


@wrappers
@pytest.mark.parametrize("kind", LAYERS)
def test_equals_its_twin_for_linen(wrapper, kind, rng):
    name, options = WRAPPERS[wrapper]
    make_linen, make_nnx, shape = LAYERS[kind]
    linen = getattr(jnn, name)(make_linen(), **options)
    twin = built(lambda: wrap(wrapper, make_nnx(nnx.Rngs(0))))
    x = draw(rng, shape)
    modes = (True, False) if wrapper == "spectral_norm" else (None,)
    mode = {} if modes == (None,) else {"update_stats": False}
    variables = jax.eval_shape(functools.partial(linen.init, **mode), KEY, x)
    variables = jax.tree.map(lambda a: np.ones(a.shape, a.dtype), variables)
    params, stats = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    chex.assert_trees_all_equal_shapes_and_dtypes(
        values(twin), {**params, **stats.get("batch_stats", {})}
    )

    def run(call, params, rest, x):
        y, vjp, new = jax.vjp(lambda *a: call(a[0], rest, a[1]), params, x, has_aux=True)
        return y, new, vjp(y)

    for training in modes:
        mode = {} if training is None else {"update_stats": training}
        twin.train() if training else twin.eval()
        graph, own, rest = nnx.split(twin, nnx.Param, ...)

        def call_linen(params, rest, x, mode=mode):
            given = {"params": params, **rest}
            y, new = linen.apply(given, x, mutable=["batch_stats"], **mode)
            return y, {**rest, **new}

        def call_nnx(params, rest, x, graph=graph):
            model = nnx.merge(graph, params, rest, copy=True)
            y = model(x)
            return y, nnx.state(model, nnx.Not(nnx.Param))

        # What moves is u and sigma in training.
        assert program(functools.partial(run, call_nnx), own, rest, x) == program(
            functools.partial(run, call_linen), params, stats, x
        )


@wrappers
def test_starts_with_the_layers_own_weights_for_its_twin(wrapper, rng):
    layer = linear()
    wrapped = wrap(wrapper, layer)
    assert wrapped.layer is layer
    kernel = layer.kernel[...]
    if wrapper == "weight_norm":
        close(wrapped(jnp.eye(3)), layer(jnp.eye(3)))
    elif wrapper == "spectral_norm":
        name, _ = WRAPPERS[wrapper]
        wrapped = getattr(jnx, name)(layer, rngs=nnx.Rngs(1))
        largest = np.linalg.svd(np.asarray(kernel))[1][0]
        np.testing.assert_allclose(wrapped.kernel_sigma[...], largest, rtol=0.01)
        wrapped.eval()
        np.testing.assert_allclose(wrapped(jnp.eye(3)), kernel / largest, rtol=0.02)
    elif wrapper == "scaled":
        close(wrapped(jnp.eye(3)), jaxnorm.scaled_weight_standardize(kernel, axis=0))
    else:
        close(wrapped(jnp.eye(3)), jaxnorm.weight_standardize(kernel, axis=0))


def test_the_mode_of_spectral_norm(rng):
    wrapped, x = wrap("spectral_norm", linear()), draw(rng, (2, 3))

    def moves(**mode):
        before = values(wrapped)
        wrapped(x, **mode)
        after = values(wrapped)
        equal(after["layer"], before["layer"])
        return not jnp.array_equal(after["kernel_u"], before["kernel_u"])

    assert moves()
    assert not moves(update_stats=False)
    wrapped.eval()
    assert not moves()
    assert moves(update_stats=True)
    wrapped.update_stats = True
    assert moves()
    with pytest.raises(ValueError, match="draws its first kernel_u at random and needs rngs"):
        jnx.SpectralNorm(linear())


class Inner(nnx.Module):
    """A layer of layers, with state and another method."""

    def __init__(self, rngs):
        self.parts = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.tied = self.parts[0]

    def __call__(self, x):
        return self.dropout(self.norm(self.tied(self.parts[1](self.parts[0](x)))))

    def first(self, x):
        return self.parts[0](x)


def test_layers_of_layers_keep_their_state(rng):
    inner = Inner(nnx.Rngs(0))
    wrapped = jnx.WeightNorm(inner)
    x = draw(rng, (8, 3))
    own = set(values(wrapped)) - {"layer"}
    assert own == {"parts_0_kernel_g", "parts_1_kernel_g"}
    # With the first g, it is the layer itself, its random numbers and its running statistics too.
    other = Inner(nnx.Rngs(0))
    for _ in range(2):
        close(wrapped(x), other(x))
    for kind in (nnx.Param, nnx.BatchStat, nnx.RngCount):
        close(values(inner, kind), values(other, kind))
    assert wrapped.layer.dropout.rngs.count[...] == 2
    # A parameter that is used twice is replaced twice; another method sees it as well.
    close(wrapped(x, layer_method="first"), inner.first(x))
    wrapped.parts_0_kernel_g[...] = 2 * wrapped.parts_0_kernel_g[...]
    inner.dropout.deterministic = other.dropout.deterministic = True
    other.parts[0].kernel[...] = 2 * other.parts[0].kernel[...]
    close(wrapped(x), other(x))
    close(wrapped(x, layer_method="first"), other.first(x))
    only = jnx.WeightNorm(Inner(nnx.Rngs(0)), select=lambda path, value: path == "parts/1/kernel")
    assert set(values(only)) - {"layer"} == {"parts_1_kernel_g"}


@wrappers
def test_transformations(wrapper, rng):
    x = draw(rng, (5, 3))
    eager, jitted = (wrap(wrapper, linear()) for _ in range(2))
    call = nnx.jit(lambda m, x: m(x))
    for _ in range(2):
        close(call(jitted, x), eager(x))
    close(values(jitted), values(eager))
    # Evaluation writes nothing, so that plain transformations do.
    eager.eval()
    close(jax.vmap(eager)(x), eager(x))

    @nnx.jit
    @nnx.split_rngs(splits=2)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return wrap(wrapper, nnx.Linear(3, 3, rngs=rngs), rngs)

    models = make(nnx.Rngs(0))
    graph, state = nnx.split(models)
    alone = [jax.tree.map(lambda a, i=i: np.asarray(a)[i], state) for i in range(2)]
    alone = [nnx.merge(graph, state) for state in alone]

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    @nnx.remat
    def forward(x, model):
        return jnp.tanh(model(x))

    grad = nnx.jit(nnx.grad(lambda models: (forward(x, models) ** 2).sum()))
    gradients = jax.device_get(nnx.to_pure_dict(grad(models)))
    expected = nnx.jit(
        nnx.grad(lambda a, b: (jnp.tanh(b(jnp.tanh(a(x)))) ** 2).sum(), argnums=(0, 1))
    )(*alone)
    moved = jax.device_get(values(models))
    for i in range(2):
        close(jax.tree.map(lambda a, i=i: a[i], gradients), nnx.to_pure_dict(expected[i]))
        close(jax.tree.map(lambda a, i=i: a[i], moved), values(alone[i]))
    abstract = nnx.eval_shape(lambda: wrap(wrapper, linear()))
    assert nnx.split(abstract)[0] == nnx.split(wrap(wrapper, linear()))[0]


def test_trains_with_an_optimizer(rng):
    wrapped, x = wrap("weight_norm", linear()), draw(rng, (5, 3))
    optimizer = nnx.Optimizer(wrapped, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda m: ((m(x) - 1) ** 2).mean())(model)
        optimizer.update(model, gradients)
        return loss

    first = step(wrapped, optimizer)
    for _ in range(20):
        last = step(wrapped, optimizer)
    assert last < first / 2


def test_data_dependent_init_standardizes_the_output(rng):
    x = draw(rng, (50, 3))
    wrapped = jnx.WeightNorm(linear())
    kernel = wrapped.layer.kernel[...]
    y = wrapped.data_dependent_init(x)
    close(y.mean(0), jnp.zeros(4))
    close(y.std(0), jnp.ones(4))
    equal(wrapped.layer.kernel[...], kernel)
    close(wrapped(x), y)
    # As the twin for linen does.
    linen = jnn.WeightNorm(nn.Dense(4, kernel_init=lambda *_: kernel), data_dependent_init=True)
    close(values(wrapped), linen.init(KEY, x)["params"])
    bare = jnx.WeightNorm(linear(use_bias=False))
    close(bare.data_dependent_init(x).std(0), jnp.ones(4))
    with pytest.raises(ValueError, match="needs a layer with one selected parameter of its own"):
        jnx.WeightNorm(nnx.Sequential(linear())).data_dependent_init(x)


def test_partitioned_parameters(rng):
    mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,))
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
    with jax.set_mesh(mesh):
        layer = linear(kernel_init=init)
        for wrapped in (jnx.WeightNorm(layer), jnx.WeightStandardization(layer, use_gain=True)):
            (own,) = (v for k, v in nnx.state(wrapped, nnx.Param).items() if k != "layer")
            assert own.get_metadata("out_sharding") == ("model",)
        assert nnx.jit(lambda m, x: m(x))(wrapped, draw(rng, (2, 3))).shape == (2, 4)


def test_errors_name_the_wrapper_and_its_layer():
    message = (
        "WeightNorm(Linear) found no parameter to normalize with select='other': its layer Linear "
        "has ['bias', 'kernel']."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        jnx.WeightNorm(linear(), select="other")
    with pytest.raises(TypeError, match="layer must be a Flax NNX module"):
        jnx.WeightNorm(jnp.tanh)
    with pytest.raises(ValueError, match="leaves no axis to reduce over"):
        jnx.WeightStandardization(linear(), select="bias")
