"""`jaxnorm.nnx` is `jaxnorm.linen`: names, options, but for what is listed here, and programs."""

import dataclasses
import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxnorm.linen
import jaxnorm.nnx
from tests.nnx.twins import SHAPE, TWINS, draw, merged, values
from tests.support.jaxpr_text import text

pytestmark = pytest.mark.quickly_compiled

MODULES = [name for name, value in vars(jaxnorm.nnx).items() if isinstance(value, type)]
AFFINE = {
    "num_features": "parameters are made before an input is seen",
    "gamma_metadata": "variables of NNX have metadata",
    "beta_metadata": "variables of NNX have metadata",
}
STATE = {
    **AFFINE,
    "use_running_average": "models of NNX are made in training mode, and model.eval() sets it",
    "input_shape": "running statistics are made before an input is seen",
}
SIZES = {"num_features": AFFINE["num_features"]}
MODE = {"use_running_average": STATE["use_running_average"]}
AFFINE_MODE, SIZES_MODE = {**AFFINE, **MODE}, {**SIZES, **MODE}
# Options that only one of the two has, or that start otherwise; all of NNX have rngs.
DIFFERENT = {
    "BatchNorm": STATE,
    "DecorrelatedBatchNorm": STATE,
    "LayerNorm": AFFINE,
    "RMSNorm": AFFINE,
    "GroupNorm": AFFINE,
    "InstanceNorm": AFFINE,
    **dict.fromkeys(
        ("DivisiveNorm", "FilterResponseNorm", "GlobalResponseNorm", "EvoNormS0", "GraphNorm"),
        AFFINE,
    ),
    **dict.fromkeys(("DynamicTanh", "DynamicErf", "RevIN"), AFFINE),
    **dict.fromkeys(("EvoNormB0", "SwitchableNorm", "BatchInstanceNorm"), AFFINE_MODE),
    **dict.fromkeys(("ScaleNorm", "LayerScale", "GatedRMSNorm"), SIZES),
    **dict.fromkeys(("InputNorm", "BatchChannelNorm"), SIZES_MODE),
    "LocalResponseNorm": {},
    "PolyNorm": {},
    "CumulativeNorm": {**AFFINE, "input_shape": "a cache is made before an input is seen"},
    "AdaptiveNorm": {"in_features": "a kernel is made before a condition is seen"},
    "SPADE": {
        "in_features": "kernels are made before a map is seen",
        "num_position_axes": "kernels are made before an input is seen",
    },
    "LayerNormLSTMCell": {"in_features": "kernels are made before an input is seen"},
    "LayerNormGRUCell": {"in_features": "kernels are made before an input is seen"},
    "WeightNorm": {"data_dependent_init": "a method in NNX, where no call initializes"},
    "SpectralNorm": {"use_running_average": "what model.train() and model.eval() set"},
    "WeightStandardization": {},
}


def test_the_names_are_the_same():
    assert set(jaxnorm.nnx.__all__) == set(jaxnorm.linen.__all__)
    assert set(DIFFERENT) == set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_the_options_are_the_same(name):
    fields = dataclasses.fields(getattr(jaxnorm.linen, name))
    missing = dataclasses.MISSING
    linen = {f.name: f.default for f in fields if f.init and f.name not in ("parent", "name")}
    parameters = inspect.signature(getattr(jaxnorm.nnx, name).__init__).parameters
    own = {
        k: missing if p.default is p.empty else p.default
        for k, p in parameters.items()
        if k != "self"
    }
    assert own.pop("rngs") is None
    # Initializers that are made anew by each call of their maker have the same code.
    linen, own = (
        {k: getattr(v, "__code__", v) for k, v in options.items()} for options in (linen, own)
    )
    different = {k for k in linen.keys() | own.keys() if linen.get(k, k) != own.get(k, k)}
    assert different == set(DIFFERENT[name])


@pytest.mark.parametrize("name", MODULES)
def test_calls_take_the_same(name):
    linen, own = (
        inspect.signature(getattr(library, name).__call__).parameters
        for library in (jaxnorm.linen, jaxnorm.nnx)
    )
    assert [(p.name, p.kind) for p in own.values()] == [(p.name, p.kind) for p in linen.values()]


def test_every_module_is_here_or_tested_by_itself():
    wrappers = {"WeightNorm", "SpectralNorm", "WeightStandardization", "bake"}
    cells = {"LayerNormLSTMCell", "LayerNormGRUCell"}
    here = {type(twin.linen).__name__ for twin in TWINS.values()}
    assert here | wrappers | cells | {"make", "names"} == set(jaxnorm.nnx.__all__)


@pytest.mark.parametrize("name", TWINS)
def test_equals_its_twin_for_linen(name, rng):
    """Variables at first; results, gradients, states, and gamma and beta of the call, in a mode."""
    twin = TWINS[name]
    variables, module = twin.start(), twin.make(nnx.Rngs(0))
    drawn = name == "SPADE"  # with keys that flax's layers choose
    check = chex.assert_trees_all_equal_shapes_and_dtypes if drawn else chex.assert_trees_all_equal
    check(values(module), merged(variables))
    takes = inspect.signature(type(module).__call__).parameters
    x, dy = draw(rng, SHAPE), draw(rng, SHAPE)
    options = {"mask": jnp.asarray(rng.random(SHAPE[:2])[..., None] < 0.8)} if twin.masked else {}
    given = {name: draw(rng, SHAPE) for name in ("gamma", "beta") if name in takes}
    linen_params = variables.pop("params", {})

    def run(call, params, rest, x):
        y, vjp, new = jax.vjp(lambda *a: call(a[0], rest, a[1], options), params, x, has_aux=True)
        return y, new, vjp(dy), call(params, rest, x, {**options, **given})[0]

    for training in (True, False) if twin.trained else (False,):
        mode = {"use_running_average": not training} if twin.trained else {}
        module.train() if training else module.eval()
        graph, params, rest = nnx.split(module, nnx.Param, ...)

        def call_linen(params, rest, x, options, mode=mode):
            apply = {**options, **mode, "mutable": ["batch_stats", "cache"]}
            y, new = twin.linen.apply({"params": params, **rest}, x, *twin.others, **apply)
            return y, {**rest, **new}

        def call_nnx(params, rest, x, options, graph=graph):
            model = nnx.merge(graph, params, rest, copy=True)
            y = model(x, *twin.others, **options)
            return y, nnx.state(model, nnx.Not(nnx.Param))

        # The same operations on the same variables give the same bits: nothing need be compiled.
        linen = jax.make_jaxpr(functools.partial(run, call_linen))(linen_params, variables, x)
        own = jax.make_jaxpr(functools.partial(run, call_nnx))(params, rest, x)
        assert text(own) == text(linen)
        assert linen.in_avals == own.in_avals
