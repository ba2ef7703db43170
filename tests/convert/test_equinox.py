"""Layers of Equinox: their rules in NumPy, and Equinox itself where it is installed."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm.linen as jnn
from jaxnorm import tools
from tests.convert.reference import Reference, data
from tests.convert.stand_ins import arrays, stand_in
from tests.convert.training import Functional, check, check_alike, check_trees, train

pytestmark = pytest.mark.quickly_compiled

GAMMA, BETA, *STATISTICS = arrays(4, 4, 4, 4)
MEAN, VAR = map(jnp.asarray, STATISTICS)
PLANE = arrays((4, 5), (4, 5))
IMAGES = (3, 4, 5, 2)
M = 0.75  # momentum


class Batch(Reference):
    """Equinox's batch norm, with `mode="batch"`: both averages are divided by 1 - m^t."""

    def __init__(self):
        super().__init__(GAMMA, BETA, pooled=(0, 2, 3), features=(1,), epsilon=1e-3)
        self.count, self.hidden = 3, [np.float64(MEAN), np.float64(VAR)]

    def update(self, mean, var, count):
        self.count += 1
        new = zip(self.hidden, (mean, var), strict=True)
        self.hidden = [M * old + (1 - M) * s.ravel() for old, s in new]

    def running(self):
        return [s / (1 - M**self.count) for s in self.hidden]


class Ema(Batch):
    """With `mode="ema"`: the running statistics normalize once they have been moved."""

    def normalizing(self, mean, var):
        shape = (1, 4, 1, 1)
        new = zip(self.hidden, (mean, var), strict=True)
        return [M * old.reshape(shape) + (1 - M) * s for old, s in new]

    def running(self):
        return self.hidden


class Case(NamedTuple):
    """A layer: its class, how Equinox makes it, what it then holds, and its rule."""

    path: str
    options: dict
    settings: dict
    weights: tuple
    shape: tuple
    reference: Reference
    state: dict | None = None


OVER = partial(Reference, epsilon=1e-3)
BATCH = {"eps": 1e-3, "momentum": M, "axis_name": "batch"}
BATCH_STATE = {"batch_counter": jnp.array(3), "batch_state_index": (MEAN, VAR)}
EMA_STATE = {"ema_first_time_index": jnp.array(False), "ema_state_index": (MEAN, VAR)}
CASES = {
    "batch": Case(
        "equinox.nn._batch_norm.BatchNorm",
        {**BATCH, "input_size": 4, "mode": "batch"},
        {**BATCH, "mode": "batch"},
        (GAMMA, BETA),
        IMAGES,
        Batch,
        BATCH_STATE,
    ),
    "ema": Case(
        "equinox.nn._batch_norm.BatchNorm",
        {**BATCH, "input_size": 4, "mode": "ema"},
        {**BATCH, "mode": "ema"},
        (GAMMA, BETA),
        IMAGES,
        Ema,
        EMA_STATE,
    ),
    "layer": Case(
        "equinox.nn._normalisation.LayerNorm",
        {"shape": (4, 5), "eps": 1e-3},
        {"shape": (4, 5), "eps": 1e-3},
        tuple(PLANE),
        (3, 4, 5),
        partial(OVER, *PLANE, pooled=(1, 2), features=(1, 2)),
    ),
    "rms": Case(
        "equinox.nn._normalisation.RMSNorm",
        {"shape": 4, "eps": 1e-3, "use_weight": False},
        {"shape": (4,), "eps": 1e-3},
        (None, BETA),
        (3, 4),
        partial(OVER, None, BETA, pooled=(1,), features=(1,), center=False),
    ),
    "group": Case(
        "equinox.nn._normalisation.GroupNorm",
        {"groups": 2, "eps": 1e-3, "channelwise_affine": False},
        {"groups": 2, "eps": 1e-3},
        (None, None),
        IMAGES,
        partial(OVER, None, None, pooled=(1, 2, 3), features=(1,), groups=2),
    ),
}


class State:
    """A state whose indices are the names of the layer's fields."""

    def __init__(self, values):
        self.get = values.__getitem__


def fake(case, **changes):
    weight, bias = case.weights
    indices = {name: name for name in case.state or {}}
    settings = {**case.settings, "weight": weight, "bias": bias, **indices, **changes}
    return stand_in(case.path, **settings)


def convert(case, **changes):
    return tools.from_equinox(fake(case, **changes), State(case.state) if case.state else None)


@pytest.mark.parametrize("name", CASES)
def test_a_layer_evaluates_and_trains_as_equinox_says(name):
    case = CASES[name]
    check(convert(case), case.reference(), *data(case.shape))


def make(eqx, case):
    """Returns the layer of Equinox itself, and its state."""
    path, _, name = case.path.rpartition(".")
    cls = getattr(eqx.nn, name)
    assert (cls.__module__, cls.__name__) == (path, name)
    layer, state = eqx.nn.make_with_state(cls)(**case.options)
    for key, value in case.settings.items():
        assert getattr(layer, key) == value, key
    for key, value in zip(("weight", "bias"), case.weights, strict=True):
        if value is None:
            assert getattr(layer, key) is None, key
        else:
            layer = eqx.tree_at(lambda m, key=key: getattr(m, key), layer, jnp.asarray(value))
    for key, value in (case.state or {}).items():
        state = state.set(getattr(layer, key), jax.tree.map(jnp.asarray, value))
    return layer, state


@pytest.mark.parametrize("name", CASES)
def test_a_layer_of_equinox_itself_goes_on_alike(name):
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")
    case = CASES[name]
    layer, state = make(eqx, case)
    module, variables = tools.from_equinox(layer, state)
    expected, expected_variables = convert(case)
    assert module == expected
    jax.tree.map(np.testing.assert_array_equal, variables, expected_variables)
    names = {"gamma": "weight", "beta": "bias"}
    names = {ours: theirs for ours, theirs in names.items() if ours in variables.get("params", {})}
    leaves, structure = jax.tree.flatten(state)

    def apply(variables, x, training):
        own, state = layer, jax.tree.unflatten(structure, variables["batch_stats"])
        for ours, theirs in names.items():
            value = variables["params"][ours]
            own = eqx.tree_at(lambda m, theirs=theirs: getattr(m, theirs), own, value)
        if case.state is None:
            return jax.vmap(own)(x), {"batch_stats": leaves}
        own = eqx.nn.inference_mode(own, not training)
        y, state = jax.vmap(own, (0, None), (0, None), axis_name="batch")(x, state)
        return y, {"batch_stats": jax.tree.leaves(state)}

    held = {k: v for k, v in variables.items() if k == "params"} | {"batch_stats": leaves}
    x, dy = data(case.shape, 1)
    ours, theirs = train(module, variables, x, dy), train(Functional(apply), held, x, dy)
    check_alike(ours, theirs)
    if names:
        check_trees(ours.variables["params"], theirs.variables["params"])
    if case.state:
        # Equinox's statistics, converted after training, are those that ours have become.
        later = jax.tree.unflatten(structure, theirs.variables["batch_stats"])
        again = tools.from_equinox(layer, later)[1]
        check_trees(ours.variables["batch_stats"], again["batch_stats"])
        with pytest.raises(ValueError, match="and from_equinox got another; give it the one"):
            tools.from_equinox(layer, eqx.nn.State(eqx.nn.LayerNorm(3)))
        layer = eqx.tree_at(lambda m: m.axis_name, layer, ("batch", "devices"))
        with pytest.raises(ValueError, match=r"eqx\.tree_at"):
            tools.from_equinox(layer, state)
        layer = eqx.tree_at(lambda m: m.axis_name, layer, "batch")
        assert tools.from_equinox(layer, state)[0] == module


def test_settings_become_fields():
    case = CASES["batch"]
    module, variables = convert(case)
    assert module == jnn.BatchNorm(
        epsilon=1e-3,
        dtype=jnp.dtype("float32"),
        param_dtype=jnp.dtype("float32"),
        momentum=M,
        debias=True,
        unbiased=False,
        feature_axes=1,
    )
    assert variables["batch_stats"]["count"].tolist() == [3] * 4
    # A layer that has seen no batch evaluates as it is, and the first batch replaces all of it.
    fresh = case._replace(state=BATCH_STATE | {"batch_counter": jnp.array(0)})
    _, variables = convert(fresh)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], VAR)
    assert not variables["batch_stats"]["count"].any()


def test_errors():
    with pytest.raises(TypeError, match=r"from_equinox got a equinox\.nn\._linear\.Linear, which"):
        tools.from_equinox(stand_in("equinox.nn._linear.Linear"))
    with pytest.raises(
        ValueError,
        match="BatchNorm keeps its running statistics in a state, and from_equinox got none",
    ):
        tools.from_equinox(fake(CASES["batch"]))
    with pytest.raises(ValueError, match="got another"):
        tools.from_equinox(fake(CASES["batch"]), State({}))
    case = CASES["ema"]
    first = case._replace(state=EMA_STATE | {"ema_first_time_index": jnp.array(True)})
    with pytest.raises(ValueError, match='has mode="ema" and has seen no batch'):
        convert(first)
    with pytest.raises(
        ValueError, match=r"pools over the axes \('batch', 'devices'\), one of which"
    ):
        convert(case, axis_name=("batch", "devices"))
