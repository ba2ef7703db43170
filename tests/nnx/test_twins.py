"""`jaxnorm.nnx` has the names of `jaxnorm.linen`, and its options, but for what is listed here."""

import dataclasses
import inspect

import pytest

import jaxnorm.linen
import jaxnorm.nnx

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
    nnx = {
        k: missing if p.default is p.empty else p.default
        for k, p in parameters.items()
        if k != "self"
    }
    assert nnx.pop("rngs") is None
    # Initializers that are made anew by each call of their maker have the same code.
    linen, nnx = (
        {k: getattr(v, "__code__", v) for k, v in options.items()} for options in (linen, nnx)
    )
    different = {k for k in linen.keys() | nnx.keys() if linen.get(k, k) != nnx.get(k, k)}
    assert different == set(DIFFERENT[name])


@pytest.mark.parametrize("name", MODULES)
def test_calls_take_the_same(name):
    linen, nnx = (
        inspect.signature(getattr(library, name).__call__).parameters
        for library in (jaxnorm.linen, jaxnorm.nnx)
    )
    assert [(p.name, p.kind) for p in nnx.values()] == [(p.name, p.kind) for p in linen.values()]
