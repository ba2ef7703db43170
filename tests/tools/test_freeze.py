"""Freezing layers from outside: statistics, gradients, caches, and every library's layers."""

import contextlib
import copy
import functools
import pickle

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm.drop_in.nnx
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx
from jaxnorm import tools
from jaxnorm.tools._freeze import _met
from tests.support.jaxpr_text import drawn

pytestmark = pytest.mark.quickly_compiled

X = np.random.default_rng(0).normal(2.0, 3.0, (8, 4)).astype(np.float32)


class Block(nn.Module):
    """The ways of saying the mode: as a field, in the call, traced by remat."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, name="flax")(nn.Dense(4)(x))
        x = nn.remat(jnn.BatchNorm)(name="own")(x, use_running_average=not train)
        return nn.LayerNorm(name="layer")(x)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = Block(name="encoder")(x, train)

        def body(block, x, _):
            return block(x, train), None

        split = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(body, length=2, **split)(Block(name="decoder"), x, None)
        return x


@pytest.fixture(scope="module")
def variables():
    return drawn(Net(), X, train=False)


@functools.partial(jax.jit, static_argnames="train")
def step(variables, train=True):
    """Returns the output, new statistics and the gradient of a step of training."""

    def loss(params):
        every = {**variables, "params": params}
        y, new = Net().apply(every, X, train=train, mutable=["batch_stats"])
        return jnp.square(y - 1).sum(), (y, new["batch_stats"])

    (_, (y, stats)), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return y, stats, grads


def is_equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_everything_frozen_is_evaluation(variables):
    expected = step(variables, train=False)
    with tools.freeze("*"):
        frozen = step(variables)
    assert is_equal(frozen[1], variables["batch_stats"])
    chex.assert_trees_all_close(frozen, expected, rtol=1e-5, atol=1e-5)


def test_a_part_is_frozen_also_under_jit_and_the_rest_trains(variables):
    free = step(variables)
    for _ in range(2):
        with tools.freeze("encoder/*", "*/own", affine=True):
            _, stats, grads = step(variables)
        for block in ("encoder", "decoder"):
            for name, old in variables["batch_stats"][block].items():
                rests = block == "encoder" or name == "own"
                assert is_equal(stats[block][name], old) == rests, (block, name)
        for block in ("encoder", "decoder"):
            for name, gradient in grads[block].items():
                rests = name != "Dense_0" and (block == "encoder" or name == "own")
                assert all(not np.any(g) for g in jax.tree.leaves(gradient)) == rests, (block, name)
    # Outside, the step is the one that was compiled there.
    assert is_equal(step(variables), free)


class Others(nn.Module):
    """Statistics of other kinds."""

    @nn.compact
    def __call__(self, x, train):
        x = jnn.BatchInstanceNorm(name="mixed")(x, use_running_average=not train)
        x = jnn.SpectralNorm(nn.Dense(4), name="spectral")(x, update_stats=train)
        x = jnn.DecorrelatedBatchNorm(name="whitened")(x, use_running_average=not train)
        return jnn.BatchNorm(train_statistics="renorm", name="renorm", update_running=True)(
            x, use_running_average=not train
        )


def test_statistics_of_other_kinds_and_contexts_that_nest():
    x = X.reshape(4, 2, 4)
    variables = drawn(Others(), x, train=False)

    def stats(*patterns):
        @jax.jit
        def run(variables):
            with contextlib.ExitStack() as stack:
                for pattern in patterns:
                    stack.enter_context(tools.freeze(pattern))
                return Others().apply(variables, x, train=True, mutable=["batch_stats"])[1]

        return run(variables)["batch_stats"]

    old = variables["batch_stats"]
    rest = stats("mixed", "spectral", "renorm")
    assert {name for name in old if is_equal(old[name], rest[name])} == set(old) - {"whitened"}
    rest = stats("whitened")
    assert {name for name in old if is_equal(old[name], rest[name])} == {"whitened"}


def test_a_model_is_made_as_ever(variables):
    with tools.freeze("*", affine=True):
        made = jax.eval_shape(lambda: Net().init(jax.random.key(0), X, train=True))
    chex.assert_trees_all_equal_shapes(made, variables)


class Twin(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([jnx.BatchNorm(4), jaxnorm.drop_in.nnx.BatchNorm(4, rngs=rngs)])
        self.layer = nnx.LayerNorm(4, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x, use_running_average=False)
        return jnp.square(self.layer(x) - 1).sum()


def test_of_an_nnx_model():
    model = Twin(nnx.Rngs(0))
    graph = nnx.split(model)[0]
    run = nnx.jit(nnx.grad(lambda model, x: model(x)))
    old = nnx.to_pure_dict(nnx.state(nnx.clone(model), nnx.BatchStat))
    with tools.freeze(model, "blocks/*"):
        grads = nnx.to_pure_dict(run(model, X))
    assert is_equal(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), old)
    assert all(np.any(g) for g in jax.tree.leaves(grads))
    with tools.freeze(model, "layer", "blocks/1", affine=True):
        grads = nnx.to_pure_dict(run(model, X))
    new = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))["blocks"]
    assert not is_equal(new[0], old["blocks"][0]) and is_equal(new[1], old["blocks"][1])
    assert not any(np.any(g) for g in jax.tree.leaves([grads["layer"], grads["blocks"][1]]))
    assert nnx.split(model)[0] == graph
    run(model, X)
    assert not is_equal(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))["blocks"][1], new[1])


def test_series_that_are_called_by_other_methods_rest():
    """`RevIN` has gamma and beta, and is called by `normalize` and `denormalize`."""

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            revin = jnn.RevIN(name="revin")
            return revin.denormalize(nn.Dense(4)(revin.normalize(x)))

    class Nnx(nnx.Module):
        def __init__(self):
            self.revin, self.dense = jnx.RevIN(4), nnx.Linear(4, 4, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.revin.denormalize(self.dense(self.revin.normalize(x)))

    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    linen, model = Linen(), Nnx()
    variables = drawn(linen, x)
    assert tools.norm_params(linen, variables, x)["revin"] == {"gamma": True, "beta": True}
    with tools.freeze("revin", affine=True):
        grad = jax.jit(jax.grad(lambda v: jnp.sum(linen.apply(v, x) ** 3)))
        first = jax.device_get(grad(variables)["params"])
    with tools.freeze(model, "revin", affine=True):
        second = nnx.jit(nnx.grad(lambda m: jnp.sum(m(x) ** 3)))(model)
        second = jax.device_get(nnx.to_pure_dict(second))
    for grads, dense in (first, "Dense_0"), (second, "dense"):
        assert not any(g.any() for g in grads["revin"].values()) and grads[dense]["kernel"].any()


def moved(norm, call):
    """Returns whether a call moves the running mean of a norm."""
    before = norm.mean[...]
    call()
    return not np.array_equal(norm.mean[...], before)


@pytest.mark.parametrize("kind", [jnx.BatchNorm, nnx.BatchNorm, jaxnorm.drop_in.nnx.BatchNorm])
def test_copies_made_inside_rest_inside_and_train_after(kind):
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), kind(4, rngs=nnx.Rngs(0)))
    run = nnx.jit(lambda model, x: model(x))
    other = nnx.clone(model)
    with tools.freeze(model, "*"):
        copies = [nnx.clone(model), copy.deepcopy(model), nnx.merge(*nnx.split(model))]
        pickled, split = pickle.dumps((model, nnx.graphdef(model))), nnx.split(model)
        for one in (model, *copies):
            assert not moved(one.layers[1], lambda one=one: run(one, X))
        assert moved(other.layers[1], lambda: run(other, X))
    copies += [nnx.merge(*split, copy=True), pickle.loads(pickled)[0]]
    for one in (model, *copies):
        assert moved(one.layers[1], lambda one=one: one(X))
        assert moved(one.layers[1], lambda one=one: run(one, X))
    # Nothing of it is in what was written.
    assert type(copies[-1].layers[1]) is kind
    assert pickle.loads(pickled)[1] == nnx.graphdef(model)
    # A copy is frozen as any other model is.
    with tools.freeze(copies[0], "*"):
        assert not moved(copies[0].layers[1], lambda: run(copies[0], X))


def test_models_alike_share_what_is_compiled_inside():
    traced = []

    @nnx.jit
    def run(model, x):
        traced.append(model)
        return model(x)

    models = [jnx.BatchNorm(4), jnx.BatchNorm(4)]
    for model in 2 * models:
        with tools.freeze(model, "*"):
            assert not moved(model, lambda model=model: run(model, X))
    assert len(traced) == 1


def test_of_a_norm_by_itself_and_within_a_trace():
    norm = jnx.BatchNorm(4)

    @nnx.jit
    def run(norm, x):
        with tools.freeze(norm, "*"):
            y = norm(x)
        return y, norm(x)

    y, _ = run(norm, X)
    np.testing.assert_allclose(y, X / np.sqrt(1 + 1e-5), rtol=1e-6)
    np.testing.assert_allclose(norm.mean[...], 0.01 * X.mean(0), rtol=1e-5)


def test_nothing_called_inside_is_an_error():
    """As where the model is forgotten, or its program was compiled ahead of time."""
    norm = jnx.BatchNorm(4)
    message = r"freeze\('\*'\): no layer of linen that can be frozen was called inside\. An NNX m"
    linen = nn.BatchNorm(use_running_average=False, momentum=0.5)
    variables = drawn(linen, X)

    def apply(variables):
        return linen.apply(variables, X, mutable=["batch_stats"])

    program = jax.jit(apply).lower(variables).compile()
    layer = nn.LayerNorm()
    with tools.freeze("*"):
        apply(variables)
    for forgotten in (norm, nnx.Sequential(nnx.BatchNorm(4, rngs=nnx.Rngs(0)))):
        with pytest.raises(ValueError, match=message), tools.freeze("*"):
            nnx.jit(lambda model: model(X))(forgotten)
    assert "watched" not in nnx.BatchNorm.__call__.__code__.co_name
    for call in (
        lambda: program(variables),
        lambda: layer.apply(layer.init(jax.random.key(0), X), X),
        lambda: None,
    ):
        _met.clear()
        with pytest.raises(ValueError, match=message), tools.freeze("*"):
            call()
    # What is compiled inside is called again: nothing is seen then, and all is as it should be.
    jitted = jax.jit(apply)
    for _ in range(2):
        with tools.freeze("*"):
            assert is_equal(jitted(variables)[1]["batch_stats"], variables["batch_stats"])


def test_errors(variables):
    with pytest.raises(ValueError) as error, tools.freeze("encoder/*", "flax"):
        jax.eval_shape(step, variables)
    paths = [f"{b}/{n}" for b in ("decoder", "encoder") for n in ("flax", "own")]
    assert str(error.value) == (
        "the pattern 'flax' matches no layer that can be frozen. Patterns are of whole paths; "
        f"these are there: {', '.join(paths)}. Layers without running "
        "statistics are there with affine=True."
    )
    with pytest.raises(ValueError, match="'layer' matches no layer that can be frozen"):
        with tools.freeze(Twin(nnx.Rngs(0)), "layer"):
            pass
    for wrong in ((), (3,), (variables,)):
        with pytest.raises(ValueError, match="patterns must be strings, at least one"):
            with tools.freeze(*wrong):
                pass
    with pytest.raises(ZeroDivisionError), tools.freeze("nothing"):
        jax.eval_shape(step, variables)
        raise ZeroDivisionError
