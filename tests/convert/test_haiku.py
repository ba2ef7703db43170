"""Layers of Haiku: their rules in NumPy, and Haiku itself where it is installed."""

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
from tests.convert.training import TOLERANCE, Functional, check, check_alike, evaluate, train

pytestmark = pytest.mark.quickly_compiled

GAMMA, BETA, MEAN, VAR = arrays(4, 4, 4, 4)
PLANE = arrays((5, 4), (5, 4))
IMAGES = (3, 4, 5, 2)  # channels first
SEQUENCE = (3, 5, 4)
DECAY, COUNT = 0.75, 3


class Batch(Reference):
    """Haiku's batch norm: debiased averages, whose hidden values start from 0; biased."""

    def __init__(self, channel):
        others = tuple(a for a in range(4) if a != channel)
        super().__init__(GAMMA, BETA, pooled=others, features=(channel,), epsilon=1e-3)
        self.count = COUNT
        self.hidden = [np.float64(s) * (1 - DECAY**COUNT) for s in (MEAN, VAR)]

    def update(self, mean, var, count):
        self.count += 1
        new = zip(self.hidden, (mean, var), strict=True)
        self.hidden = [DECAY * old + (1 - DECAY) * s.ravel() for old, s in new]

    def running(self):
        return [s / (1 - DECAY**self.count) for s in self.hidden]


class Case(NamedTuple):
    """A layer: its class, how Haiku makes it, what it then holds, and its rule."""

    path: str
    options: dict
    settings: dict
    params: dict
    shape: tuple
    reference: Reference
    state: dict | None = None


def averages(shape):
    """The state of batch norm, as Haiku names it."""
    hidden = [s.reshape(shape) * np.float32(1 - DECAY**COUNT) for s in (MEAN, VAR)]
    return {
        f"layer/~/{name}_ema": {
            "counter": np.int32(COUNT),
            "hidden": h,
            "average": s.reshape(shape),
        }
        for name, s, h in zip(("mean", "var"), (MEAN, VAR), hidden, strict=True)
    }


def ema(name, decay=DECAY):
    return stand_in("haiku.EMA", module_name=f"layer/~/{name}_ema", decay=decay)


def batch(options, settings, shape, channel):
    sizes = [s if a == channel else 1 for a, s in enumerate(shape)]
    settings = {
        "eps": 1e-3,
        "cross_replica_axis": None,
        "cross_replica_axis_index_groups": None,
        "axis": None,
        **BOTH,
        **settings,
    }
    return Case(
        "haiku._src.batch_norm.BatchNorm",
        {**BOTH, "decay_rate": DECAY, "eps": 1e-3, **options},
        settings,
        affine(GAMMA.reshape(sizes), BETA.reshape(sizes)),
        shape,
        partial(Batch, channel),
        averages(sizes),
    )


def affine(scale, offset=None):
    return {"scale": scale} if offset is None else {"scale": scale, "offset": offset}


BOTH = {"create_scale": True, "create_offset": True}
OVER = partial(Reference, epsilon=1e-3)
LAYER = "haiku._src.layer_norm.LayerNorm"
CASES = {
    "batch": batch({}, {"channel_index": -1}, (3, 5, 2, 4), 3),
    "batch of axes": batch(
        {"axis": [0, 2, 3]}, {"axis": [0, 2, 3], "channel_index": -1}, IMAGES, 1
    ),
    "layer": Case(
        LAYER,
        {**BOTH, "axis": -1, "eps": 1e-3, "param_axis": -1},
        {**BOTH, "axis": (-1,), "eps": 1e-3, "param_axis": (-1,)},
        affine(GAMMA, BETA),
        SEQUENCE,
        partial(OVER, GAMMA, BETA, pooled=(2,), features=(2,)),
    ),
    "layer of two axes": Case(
        LAYER,
        {**BOTH, "axis": [1, 2], "eps": 1e-3, "param_axis": slice(-2, None)},
        {**BOTH, "axis": (1, 2), "eps": 1e-3, "param_axis": slice(-2, None)},
        affine(*(p[None] for p in PLANE)),
        SEQUENCE,
        partial(OVER, *PLANE, pooled=(1, 2), features=(1, 2)),
    ),
    "layer from axis 1": Case(
        LAYER,
        {**BOTH, "axis": slice(1, None), "eps": 1e-3, "param_axis": -1},
        {**BOTH, "axis": slice(1, None), "eps": 1e-3, "param_axis": (-1,)},
        affine(GAMMA, BETA),
        SEQUENCE,
        partial(OVER, GAMMA, BETA, pooled=(1, 2), features=(2,)),
    ),
    "layer to the end": Case(
        LAYER,
        {"axis": slice(-2, None), "create_scale": False, "create_offset": False, "eps": 1e-3},
        {"axis": slice(-2, None), "create_scale": False, "create_offset": False, "eps": 1e-3},
        {},
        SEQUENCE,
        partial(OVER, None, None, pooled=(1, 2), features=(2,)),
    ),
    "rms": Case(
        "haiku._src.rms_norm.RMSNorm",
        {"axis": -1, "eps": 1e-3, "param_axis": 1},
        {"axis": (-1,), "eps": 1e-3, "param_axis": (1,), "create_scale": True},
        affine(GAMMA.reshape(1, 4, 1)),
        (3, 4, 5),
        partial(OVER, GAMMA, None, pooled=(2,), features=(1,), center=False),
    ),
    "instance": Case(
        "haiku._src.layer_norm.InstanceNorm",
        {**BOTH, "eps": 1e-3, "data_format": "channels_first"},
        {**BOTH, "axis": slice(2, None), "eps": 1e-3, "param_axis": (1,)},
        affine(*(p.reshape(1, 4, 1, 1) for p in (GAMMA, BETA))),
        IMAGES,
        partial(OVER, GAMMA, BETA, pooled=(2, 3), features=(1,)),
    ),
    "group": Case(
        "haiku._src.group_norm.GroupNorm",
        {"groups": 2, "eps": 1e-3, "data_format": "NC..."},
        {**BOTH, "groups": 2, "eps": 1e-3, "channel_index": 1, "axis": (2, 3, 4), "rank": 4},
        affine(*(p.reshape(4, 1, 1) for p in (GAMMA, BETA))),
        IMAGES,
        partial(OVER, GAMMA, BETA, pooled=(1, 2, 3), features=(1,), groups=2),
    ),
}


def fake(case, **changes):
    emas = {"mean_ema": ema("mean"), "var_ema": ema("var")} if case.state else {}
    return stand_in(case.path, **{"module_name": "layer", **emas, **case.settings, **changes})


def convert(case, **changes):
    return tools.from_haiku(fake(case, **changes), {"layer": case.params}, case.state)


@pytest.mark.parametrize("name", CASES)
def test_a_layer_evaluates_and_trains_as_haiku_says(name):
    case = CASES[name]
    check(convert(case), case.reference(), *data(case.shape))


@pytest.mark.parametrize("name", CASES)
def test_a_layer_of_haiku_itself_goes_on_alike(name):
    hk = pytest.importorskip("haiku", reason="Haiku is not installed")
    case, layers = CASES[name], []
    path, _, name = case.path.rpartition(".")
    assert (getattr(hk, name).__module__, getattr(hk, name).__name__) == (path, name)

    def model(x, training):
        layers.append(getattr(hk, name)(**case.options, name="layer"))
        return layers[-1](x, training) if case.state else layers[-1](x)

    transformed = hk.without_apply_rng(hk.transform_with_state(model))
    x = jnp.ones(case.shape)
    with jax.numpy_rank_promotion("allow"):
        own = transformed.init(jax.random.key(0), x, True)
    params = {"layer": case.params} if case.params else {}
    state = case.state or {}
    assert jax.tree.map(jnp.shape, tuple(own)) == jax.tree.map(jnp.shape, (params, state))
    for key, value in case.settings.items():
        assert getattr(layers[-1], key) == value, key
    module, variables = tools.from_haiku(layers[-1], params, state)
    expected, expected_variables = convert(case)
    assert module == expected
    jax.tree.map(np.testing.assert_array_equal, variables, expected_variables)

    def apply(variables, x, training):
        given = (variables.get("params", {}), variables["state"])
        y, new = transformed.apply(*given, x, training)
        return y, {"state": new}

    held = jax.tree.map(jnp.asarray, {"params": params, "state": state})
    held = {k: v for k, v in held.items() if v or k == "state"}
    x, dy = data(case.shape, 1)
    ours, theirs = train(module, variables, x, dy), train(Functional(apply), held, x, dy)
    check_alike(ours, theirs)
    learned, own = ours.variables.get("params", {}), theirs.variables.get("params", {})
    for name, value in own.get("layer", {}).items():
        name = {"scale": "gamma", "offset": "beta"}[name]
        np.testing.assert_allclose(learned[name].ravel(), value.ravel(), **TOLERANCE)
    for name, value in ours.variables.get("batch_stats", {}).items():
        key = {"mean": "average", "var": "average", "count": "counter"}[name]
        own = theirs.variables["state"][f"layer/~/{'var' if name == 'var' else 'mean'}_ema"]
        np.testing.assert_allclose(value, jnp.broadcast_to(own[key].ravel(), 4), **TOLERANCE)


def test_settings_become_fields():
    case = CASES["batch"]
    module, variables = convert(case, cross_replica_axis="i")
    assert module == jnn.BatchNorm(
        epsilon=1e-3,
        dtype=jnp.dtype("float32"),
        param_dtype=jnp.dtype("float32"),
        momentum=DECAY,
        debias=True,
        unbiased=False,
        feature_axes=-1,
        axis_name="i",
    )
    assert variables["batch_stats"]["count"].tolist() == [COUNT] * 4
    # Negative axes: Haiku's parameters then have sizes along axes that are pooled.
    sizes = (1, 4, 1, 2)
    params = affine(np.ones(sizes, np.float32), np.ones(sizes, np.float32))
    case = CASES["batch of axes"]._replace(params=params)
    module, variables = convert(case, axis=(0, 2, -1))
    assert (module.reduction_axes, module.feature_axes) == ((0, 2, 3), (1, 3))
    assert evaluate(module, variables, jnp.ones(IMAGES)).shape == IMAGES
    # Without offset; in half precision the result is as wide as the input.
    half = {"scale": jnp.ones(4, jnp.bfloat16)}
    module, variables = convert(CASES["layer"]._replace(params=half), create_offset=False)
    assert module.dtype is None and set(variables["params"]) == {"gamma"}
    # Groups: before the first call the default axes are known, after it others.
    case = CASES["group"]
    assert convert(case, axis=slice(1, None), rank=None)[0] == convert(case)[0]
    assert convert(case, axis=(2, 3))[0].reduction_axes == (2,)
    last = {"channel_index": -1, "rank": 4}
    assert convert(case, axis=(1, 2, 4), **last)[0].reduction_axes is None
    assert convert(case, axis=(2, -1), **last)[0].reduction_axes == (2,)


def test_errors():
    with pytest.raises(TypeError, match=r"from_haiku got a haiku\._src\.basic\.Linear, which is"):
        tools.from_haiku(stand_in("haiku._src.basic.Linear"), {})
    case = CASES["batch"]
    message = r"params of the haiku.*BatchNorm 'layer' lacks scale, offset: it holds \{'net': \['w'"
    with pytest.raises(ValueError, match=message):
        tools.from_haiku(fake(case), {"net": {"w": 1}}, case.state)
    with pytest.raises(ValueError, match=r"state of the .*mean_ema' lacks average, counter"):
        tools.from_haiku(fake(case), {"layer": case.params})
    with pytest.raises(ValueError, match=r"axis=slice\(1, None, None\), which is other axes for"):
        rms = CASES["rms"]._replace(params=affine(GAMMA))
        convert(rms, axis=slice(1, None))
    with pytest.raises(ValueError, match=r"axis=\(1, 2\), which says what it pools once it has"):
        convert(CASES["group"], axis=(1, 2), rank=None)
    for axis in ((1, 2, 3), (1, 3, 4), (3, 4)):
        with pytest.raises(ValueError, match="where a group's channels are not pooled"):
            convert(CASES["group"], axis=axis)
