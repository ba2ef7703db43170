"""Layers of Keras: their rules in NumPy, and Keras itself where it is installed."""

import importlib.util
import os
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm.linen as jnn
from jaxnorm import tools
from tests.convert.reference import Reference, data
from tests.convert.stand_ins import Tensor, arrays, stand_in
from tests.convert.training import TOLERANCE, Functional, check, check_alike, check_trees, train

pytestmark = pytest.mark.quickly_compiled

GAMMA, BETA, MEAN, VAR = arrays(4, 4, 4, 4)
PLANE = arrays((4, 5), (4, 5))
IMAGES = (3, 4, 5, 2)
LAYERS = "keras.src.layers.normalization"


class Variable:
    """What is used of a keras.Variable, whose backend is NumPy or JAX."""

    def __init__(self, value):
        self.value = value


class Batch(Reference):
    """Keras's batch norm: the decay of the old value; biased."""

    def __init__(self):
        super().__init__(GAMMA, None, pooled=(0, 2, 3), features=(1,), epsilon=1e-3)
        self.moments = [np.float64(MEAN), np.float64(VAR)]

    def update(self, mean, var, count):
        new = zip(self.moments, (mean, var), strict=True)
        self.moments = [0.75 * old + 0.25 * s.ravel() for old, s in new]

    def running(self):
        return self.moments


class Frozen(Batch):
    """The running statistics normalize, and nothing learns."""

    def train(self, x, dy):
        return self.evaluate(x[-1])


class Case(NamedTuple):
    """A layer: its class, how Keras makes it, what it then holds, and its rule."""

    path: str
    options: dict
    settings: dict
    variables: dict
    shape: tuple
    reference: Reference


OVER = partial(Reference, epsilon=1e-3)
BATCH = Case(
    f"{LAYERS}.batch_normalization.BatchNormalization",
    {"axis": 1, "momentum": 0.75, "center": False},
    {"axis": 1, "momentum": 0.75, "epsilon": 1e-3, "trainable": True, "renorm": False},
    {"gamma": GAMMA, "beta": None, "moving_mean": MEAN, "moving_variance": VAR},
    IMAGES,
    Batch,
)
CASES = {
    "batch": BATCH,
    "frozen": BATCH._replace(
        options={**BATCH.options, "trainable": False},
        settings={**BATCH.settings, "trainable": False},
        reference=Frozen,
    ),
    "layer": Case(
        f"{LAYERS}.layer_normalization.LayerNormalization",
        {"axis": [1, 2]},
        {"axis": [1, 2], "epsilon": 1e-3, "rms_scaling": False},
        dict(zip(("gamma", "beta"), PLANE, strict=True)),
        (3, 4, 5),
        partial(OVER, *PLANE, pooled=(1, 2), features=(1, 2)),
    ),
    "group": Case(
        f"{LAYERS}.group_normalization.GroupNormalization",
        {"groups": 2, "axis": 1, "scale": False},
        {"groups": 2, "axis": 1, "epsilon": 1e-3},
        {"gamma": None, "beta": BETA},
        IMAGES,
        partial(OVER, None, BETA, pooled=(1, 2, 3), features=(1,), groups=2),
    ),
    "instance": Case(
        f"{LAYERS}.group_normalization.GroupNormalization",
        {"groups": -1, "axis": -3},
        {"groups": 4, "axis": -3, "epsilon": 1e-3},
        {"gamma": GAMMA, "beta": BETA},
        IMAGES,
        partial(OVER, GAMMA, BETA, pooled=(2, 3), features=(1,)),
    ),
    "rms": Case(
        f"{LAYERS}.rms_normalization.RMSNormalization",
        {"epsilon": 1e-2},
        {"axis": [-1], "epsilon": 1e-2},
        {"scale": GAMMA},
        (3, 4),
        partial(Reference, GAMMA, None, pooled=(1,), features=(1,), epsilon=1e-2, center=False),
    ),
}
UNIT = Case(
    f"{LAYERS}.unit_normalization.UnitNormalization",
    {"axis": [1, -1]},
    {"axis": [1, -1]},
    {},
    (3, 4, 5),
    None,
)


def fake(case, dtype="float32", **changes):
    variables = {k: v if v is None else Variable(v) for k, v in case.variables.items()}
    settings = {"built": True, "compute_dtype": dtype, **case.settings}
    return stand_in(case.path, **{**settings, **variables, **changes})


@pytest.mark.parametrize("name", CASES)
def test_a_layer_evaluates_and_trains_as_keras_says(name):
    case = CASES[name]
    check(tools.from_keras(fake(case)), case.reference(), *data(case.shape))


def test_unit_normalization_is_scale_norm():
    module, variables = tools.from_keras(fake(UNIT))
    x = data(UNIT.shape)[0][0]
    expected = x / np.linalg.norm(np.float64(x).reshape(3, -1), axis=1)[:, None, None]
    assert variables == {}
    np.testing.assert_allclose(module.apply({}, x), expected, **TOLERANCE)
    np.testing.assert_array_equal(module.apply({}, 0 * x), 0 * x)
    assert tools.from_keras(fake(UNIT, axis=-1))[0].reduction_axes == -1


@pytest.fixture
def keras():
    if importlib.util.find_spec("keras") is None:
        pytest.skip("Keras is not installed")
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    if keras.backend.backend() != "jax":
        pytest.skip(f"these tests run Keras on JAX, not on {keras.backend.backend()}")
    return keras


def make(keras, case):
    """Returns the layer of Keras itself."""
    path, _, name = case.path.rpartition(".")
    cls = getattr(keras.layers, name)
    assert (cls.__module__, cls.__name__) == (path, name)
    layer = cls(**case.options)
    layer.build(case.shape)
    for key, value in case.settings.items():
        assert getattr(layer, key) == value, key
    for key, value in case.variables.items():
        if value is None:
            assert getattr(layer, key) is None, key
        else:
            getattr(layer, key).assign(value)
    return layer


@pytest.mark.parametrize("name", [*CASES, "unit"])
def test_a_layer_of_keras_itself_goes_on_alike(keras, name):
    case = CASES.get(name, UNIT)
    layer = make(keras, case)
    module, variables = tools.from_keras(layer)
    expected, expected_variables = tools.from_keras(fake(case))
    assert module == expected
    jax.tree.map(np.testing.assert_array_equal, variables, expected_variables)
    names = {"gamma": "gamma", "beta": "beta"} if name != "rms" else {"gamma": "scale"}
    names = {ours: theirs for ours, theirs in names.items() if ours in variables.get("params", {})}

    def apply(variables, x, training):
        # A frozen layer has its parameters among those that do not learn.
        learned = [variables["params"][ours] for ours in names] if layer.trainable else []
        mode = {"training": training} if "batch_stats" in expected_variables else {}
        y, rest = layer.stateless_call(learned, variables["batch_stats"], x, **mode)
        return y, {"batch_stats": rest}

    held = {"batch_stats": [v.value for v in layer.non_trainable_variables]}
    held |= {k: v for k, v in variables.items() if k == "params"}
    x, dy = data(case.shape, 1)
    ours, theirs = train(module, variables, x, dy), train(Functional(apply), held, x, dy)
    check_alike(ours, theirs)
    if names:
        check_trees(ours.variables["params"], theirs.variables["params"])
    if "batch_stats" in variables:
        own = dict(zip(("mean", "var"), theirs.variables["batch_stats"][-2:], strict=True))
        check_trees(ours.variables["batch_stats"], own)


def test_mixed_precision_of_keras_itself(keras):
    layer = keras.layers.LayerNormalization(dtype="mixed_bfloat16")
    layer.build((2, 4))
    module, variables = tools.from_keras(layer)
    assert module.dtype == layer(jnp.ones((2, 4))).dtype == jnp.bfloat16
    assert variables["params"]["gamma"].dtype == jnp.float32


def test_settings_become_fields():
    module, variables = tools.from_keras(fake(BATCH, "bfloat16"))
    assert module == jnn.BatchNorm(
        epsilon=1e-3,
        dtype=jnp.dtype("bfloat16"),
        param_dtype=jnp.dtype("float32"),
        use_beta=False,
        momentum=0.75,
        unbiased=False,
        feature_axes=1,
    )
    assert {k: set(v) for k, v in variables.items()} == {
        "params": {"gamma"},
        "batch_stats": {"mean", "var"},
    }
    module, _ = tools.from_keras(fake(BATCH, gamma=None, trainable=False))
    assert module.frozen == "all" and not module.use_gamma


def test_variables_may_be_tensors_of_torch():
    gamma = Tensor(GAMMA, "bfloat16")
    _, variables = tools.from_keras(fake(CASES["instance"], gamma=Variable(gamma)))
    assert variables["params"]["gamma"].dtype == jnp.bfloat16
    assert variables["params"]["beta"].dtype == jnp.float32


def test_errors():
    with pytest.raises(TypeError, match=r"from_keras got a keras\.src\.layers\.core\.dense\.Dense"):
        tools.from_keras(stand_in("keras.src.layers.core.dense.Dense"))
    with pytest.raises(ValueError, match="LayerNormalization is not built and has no arrays yet"):
        tools.from_keras(fake(CASES["layer"], built=False))
    for setting in ("gamma_constraint", "beta_constraint", "gamma_regularizer", "beta_regularizer"):
        with pytest.raises(ValueError, match=f"has {setting}='l2', which no module .*optimizer"):
            tools.from_keras(fake(CASES["layer"], **{setting: "l2"}))
    with pytest.raises(ValueError, match=r"renorm=True, .* Keras has statistics of its own for it"):
        tools.from_keras(fake(BATCH, renorm=True))
    with pytest.raises(ValueError, match=r"rms_scaling=True, .* use RMSNormalization"):
        tools.from_keras(fake(CASES["layer"], rms_scaling=True))
    with pytest.raises(ValueError, match=r"fused=True, .* is of Keras 2, whose fused"):
        tools.from_keras(fake(BATCH, fused=True))
