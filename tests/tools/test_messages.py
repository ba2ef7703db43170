"""What the tools say of a wrong model, wrong variables and wrong batches: all of them the same."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx
from jaxnorm import batch_norm_step, init_running, tools
from tests.support.jaxpr_text import drawn

pytestmark = pytest.mark.quickly_compiled

NORM = jnn.BatchNorm(use_running_average=True)
X = np.random.default_rng(0).normal(2, 3, (8, 3)).astype(np.float32)
VARIABLES = drawn(NORM, X)
STATE = types.SimpleNamespace(**VARIABLES)
TOOLS = {"inspect": tools.inspect, "recalibrate": tools.recalibrate}


def message(kind, function, *args, **options):
    with pytest.raises(kind) as error:
        function(*args, **options)
    return str(error.value)


@pytest.mark.parametrize("name", TOOLS)
def test_of_models_variables_and_batches(name):
    def say(*args, **options):
        return message(TypeError, TOOLS[name], *args, **options)

    takes = f"{name} takes a flax.linen module and its variables, or a flax.nnx model, got "
    assert say(NORM.apply, VARIABLES, [X]) == (
        f"{takes}the method apply of BatchNorm. Give the model itself, not its method."
    )
    assert say(jnn.BatchNorm, VARIABLES, [X]) == (
        f"{takes}the class BatchNorm. Give a model: BatchNorm(...)."
    )
    hold = (
        f"{name}: variables must hold the collections params and batch_stats, as model.init "
        "returns them, got "
    )
    assert say(NORM, STATE, [X]) == (
        f'{hold}a SimpleNamespace. Give {{"params": state.params, "batch_stats": '
        "state.batch_stats}."
    )
    behind = "They come right after a linen module; an NNX model needs none."
    assert say(NORM) == f"{hold}nothing. {behind}"
    assert say(NORM, [X]) == f"{hold}a list of 1. {behind}"
    assert say(NORM, VARIABLES["params"], [X]).startswith(f"{hold}['beta', 'gamma']. If these")
    model = "after the model and its variables, got 0 more arguments."
    assert say(NORM, VARIABLES) == f"{name} takes one iterable of batches {model}"
    assert say(NORM, VARIABLES, 3) == (
        f"{name} takes an iterable of batches, such as a list of arrays, got int."
    )
    assert say(jnx.BatchNorm(3)) == (
        f"{name} takes one iterable of batches after the model, got 0 more arguments."
    )
    for part, batch in ((0, (X, np.ones(8))), ("image", {"image": X, "label": np.ones(8)})):
        for given in (NORM, VARIABLES), (jnx.BatchNorm(3),):
            assert say(*given, [batch]).endswith(
                f"say which part of that the model takes: call=lambda model, batch: "
                f"model(batch[{part!r}])."
            )


@pytest.mark.parametrize("name", TOOLS)
def test_names_of_files_in_a_batch_are_left_alone(name):
    batches = [
        {"x": X + i, "file": [f"{i}.png"] * 8, "names": np.array([f"{i}"] * 8)} for i in range(2)
    ]
    traced = []

    def call(model, batch):
        traced.append(batch["file"][0])
        return model(batch["x"])

    stats = TOOLS[name](NORM, VARIABLES, batches, call=call)
    mean = stats["mean"] if name == "recalibrate" else stats.layers[0].batch.mean
    np.testing.assert_allclose(mean, X.mean(0) + 0.5, rtol=1e-5)
    assert len(traced) == 1


@pytest.mark.parametrize(
    "tool", [tools.accumulate, lambda stats: tools.settle(stats, momentum=0.9)]
)
def test_of_statistics(tool):
    takes = "takes the collection batch_stats of a linen model, or an NNX model, got "
    assert f"{takes}SimpleNamespace: give state.batch_stats." in message(TypeError, tool, STATE)
    for given, got in ((None, "NoneType"), (NORM, "BatchNorm"), (jnn.BatchNorm, "the class Batch")):
        assert takes + got in message(TypeError, tool, given)


def test_of_batches_of_a_data_set():
    def say(batches):
        return message(TypeError, tools.dataset_moments, batches, axis=0)

    takes = "a batch must be an array, or a pair (array, mask), got "
    assert say([{"image": X}]) == (
        f"{takes}a dict of ['image']; choose what to measure: dataset_moments((batch['image'] for "
        "batch in batches), axis=...)."
    )
    assert say([(X, X, X)]).startswith(f"{takes}a tuple; ")
    assert say([(X, np.arange(8))]) == (
        "a batch that is a pair must be (array, mask) with a boolean mask, got a second entry of "
        "dtype int32; leave labels out: dataset_moments((x for x, y in batches), axis=...)."
    )
    assert say(None).startswith("dataset_moments takes an iterable of batches, ")


@pytest.mark.parametrize("norm", [jnn.LayerNorm(), jnn.BatchNorm(use_running_average=True)])
def test_parameters_by_the_names_of_flax(norm):
    model = nn.Sequential([norm])
    values = VARIABLES["params"]["gamma"], VARIABLES["params"]["beta"]
    flaxes = dict(zip(("scale", "bias"), values, strict=True))
    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
    variables = {"params": {"layers_0": flaxes}, "batch_stats": {"layers_0": stats}}
    assert message(ValueError, model.apply, variables, X) == (
        f"{type(norm).__name__} layers_0 has no parameter 'gamma'; its parameters are called "
        "'bias', 'scale'. Make it with param_names=('scale', 'bias') to use such a checkpoint as "
        "it is."
    )
    renamed = nn.Sequential([norm.clone(param_names=("scale", "bias"))])
    assert renamed.apply(variables, X).shape == X.shape


def test_of_options_that_jit_traces():
    step = jax.jit(batch_norm_step)
    assert message(TypeError, step, X, init_running(3), training=True, axis=0, unbiased=False) == (
        "axis, unbiased must be known when batch_norm_step is traced, got traced values: "
        "jax.jit(batch_norm_step, static_argnames=('axis', 'unbiased', 'training')), or call it in "
        "a jitted function of your own."
    )


def test_a_transposed_convolution_in_circles_is_named():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.ConvTranspose(4, (3, 3), padding="CIRCULAR", name="up")(x)
            return jnn.BatchNorm(use_running_average=True, name="norm")(x)

    x = np.ones((2, 4, 4, 3), np.float32)
    reason = "up is a ConvTranspose with CIRCULAR padding, which adds its parts up"
    assert tools.fold(Net(), drawn(Net(), x), x).kept == [("norm", reason)]
