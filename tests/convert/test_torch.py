"""Layers of torch.nn: their rules in NumPy, and torch itself where it is installed."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm.linen as jnn
from jaxnorm import tools
from tests.convert.reference import RATE, Reference, data
from tests.convert.stand_ins import Tensor, arrays, stand_in
from tests.convert.training import check, evaluate

pytestmark = pytest.mark.quickly_compiled

GAMMA, BETA, MEAN, VAR = arrays(4, 4, 4, 4)
SQUARE = arrays((4, 5), (4, 5))
IMAGES = (3, 4, 5, 2)


class Batch(Reference):
    """torch's batch norm: the weight of the new value, None for an average; unbiased."""

    def __init__(self, *affine, momentum, updates, **options):
        super().__init__(*affine, epsilon=1e-3, features=(1,), **options)
        self.momentum, self.updates = momentum, updates
        self.mean, self.var = np.float64(MEAN), np.float64(VAR)

    def update(self, mean, var, count):
        self.updates += 1
        weight = 1 / self.updates if self.momentum is None else self.momentum
        new = (mean, var * count / (count - 1))
        # Of an instance norm, the instances' mean.
        mean, var = (s.mean((0, *range(2, s.ndim))) for s in new)
        self.mean = (1 - weight) * self.mean + weight * mean
        self.var = (1 - weight) * self.var + weight * var

    def running(self):
        return self.mean, self.var


class Case(NamedTuple):
    """A layer: its class, how torch makes it, what it then holds, and its rule."""

    path: str
    options: dict
    settings: dict
    tensors: dict
    shape: tuple
    reference: Reference


AFFINE = {"weight": GAMMA, "bias": BETA}
STATISTICS = {"running_mean": MEAN, "running_var": VAR, "num_batches_tracked": 7}
NONE = dict.fromkeys(("running_mean", "running_var", "num_batches_tracked"))
BATCH = {"eps": 1e-3, "momentum": 0.25}
OVER = partial(Reference, epsilon=1e-3)
CASES = {
    "batch": Case(
        "torch.nn.modules.batchnorm.BatchNorm2d",
        {"num_features": 4, **BATCH},
        {**BATCH, "track_running_stats": True},
        {**AFFINE, **STATISTICS},
        IMAGES,
        partial(Batch, GAMMA, BETA, pooled=(0, 2, 3), momentum=0.25, updates=7),
    ),
    "averaging": Case(
        "torch.nn.modules.batchnorm.BatchNorm1d",
        {"num_features": 4, "eps": 1e-3, "momentum": None, "affine": False},
        {"eps": 1e-3, "momentum": None, "track_running_stats": True},
        {"weight": None, "bias": None, **STATISTICS},
        (6, 4),
        partial(Batch, None, None, pooled=(0,), momentum=None, updates=7),
    ),
    "untracked": Case(
        "torch.nn.modules.batchnorm.BatchNorm3d",
        {"num_features": 4, "track_running_stats": False, **BATCH},
        {**BATCH, "track_running_stats": False},
        {**AFFINE, **NONE},
        (2, 4, 2, 1, 3),
        partial(OVER, GAMMA, BETA, pooled=(0, 2, 3, 4), features=(1,)),
    ),
    "instance": Case(
        "torch.nn.modules.instancenorm.InstanceNorm2d",
        {"num_features": 4, "eps": 1e-3},
        {"eps": 1e-3, "track_running_stats": False},
        {"weight": None, "bias": None, **NONE},
        IMAGES,
        partial(OVER, None, None, pooled=(2, 3), features=(1,)),
    ),
    "tracked": Case(
        "torch.nn.modules.instancenorm.InstanceNorm1d",
        {"num_features": 4, "affine": True, "track_running_stats": True, **BATCH},
        {**BATCH, "track_running_stats": True},
        {**AFFINE, **STATISTICS},
        (3, 4, 5),
        partial(Batch, GAMMA, BETA, pooled=(2,), momentum=0.25, updates=7),
    ),
    "resting": Case(
        "torch.nn.modules.instancenorm.InstanceNorm1d",
        {"num_features": 4, "track_running_stats": True, "eps": 1e-3, "momentum": None},
        {"eps": 1e-3, "momentum": None, "track_running_stats": True},
        {"weight": None, "bias": None, **STATISTICS},
        (3, 4, 5),
        partial(Batch, None, None, pooled=(2,), momentum=0, updates=7),
    ),
    "group": Case(
        "torch.nn.modules.normalization.GroupNorm",
        {"num_groups": 2, "num_channels": 4, "eps": 1e-3},
        {"num_groups": 2, "eps": 1e-3},
        AFFINE,
        IMAGES,
        partial(OVER, GAMMA, BETA, pooled=(1, 2, 3), features=(1,), groups=2),
    ),
    "layer": Case(
        "torch.nn.modules.normalization.LayerNorm",
        {"normalized_shape": (4, 5), "eps": 1e-3},
        {"normalized_shape": (4, 5), "eps": 1e-3},
        dict(zip(("weight", "bias"), SQUARE, strict=True)),
        (3, 4, 5),
        partial(OVER, *SQUARE, pooled=(1, 2), features=(1, 2)),
    ),
    "rms": Case(
        "torch.nn.modules.normalization.RMSNorm",
        {"normalized_shape": (4,)},
        {"normalized_shape": (4,), "eps": None},
        {"weight": GAMMA},
        (3, 4),
        partial(Reference, GAMMA, None, pooled=(1,), features=(1,), epsilon=2.0**-23, center=False),
    ),
}
ANY_AXIS = {"layer", "rms"}  # whose channels may be anywhere


def fake(case, dtype="float32", **changes):
    tensors = {k: v if v is None else Tensor(v, dtype) for k, v in case.tensors.items()}
    return stand_in(case.path, **{**case.settings, **tensors, **changes})


def move_to(name, channel_axis):
    if name in ANY_AXIS:
        return lambda a: a
    return lambda a: jnp.moveaxis(a, 1, channel_axis) if channel_axis != 1 else a


@pytest.mark.parametrize("name", CASES)
def test_a_layer_evaluates_and_trains_as_torch_says(name):
    case = CASES[name]
    axis = 1 if name == "batch" else -1
    converted = tools.from_torch(fake(case), channel_axis=axis)
    check(converted, case.reference(), *data(case.shape), move_to(name, axis))


class Peer:
    """A layer of torch itself, as `Reference`."""

    def __init__(self, torch, case):
        module, _, name = case.path.rpartition(".")
        cls = getattr(torch.nn, name)
        assert (cls.__module__, cls.__name__) == (module, name)
        self.torch, self.layer = torch, cls(**case.options)
        for key, value in case.settings.items():
            assert getattr(self.layer, key) == value, key
        for key, value in case.tensors.items():
            if value is None:
                assert getattr(self.layer, key) is None, key
            else:
                tensor = getattr(self.layer, key)
                tensor.data.copy_(torch.tensor(value))

    def __getattr__(self, name):
        tensor = getattr(self.layer, {"gamma": "weight", "beta": "bias"}[name], None)
        return None if tensor is None else tensor.detach().numpy()

    def running(self):
        if getattr(self.layer, "running_mean", None) is None:
            return None
        return self.layer.running_mean.numpy(), self.layer.running_var.numpy()

    def evaluate(self, x):
        with self.torch.no_grad():
            return self.layer.eval()(self.torch.tensor(x)).numpy()

    def train(self, x, dy):
        self.layer.train()
        optimizer = self.torch.optim.SGD([*self.layer.parameters()] or [_lone(self.torch)], lr=RATE)
        for batch, cotangent in zip(x, dy, strict=True):
            optimizer.zero_grad()
            x = self.torch.tensor(batch).requires_grad_()
            y = self.layer(x)
            y.backward(self.torch.tensor(cotangent))
            optimizer.step()
        self.dx = x.grad.numpy()
        return y.detach().numpy()


def _lone(torch):
    return torch.nn.Parameter(torch.zeros(()))


@pytest.mark.parametrize("name", CASES)
def test_a_layer_of_torch_itself_goes_on_alike(name):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    case = CASES[name]
    peer = Peer(torch, case)
    module, variables = tools.from_torch(peer.layer)
    expected, arrays = tools.from_torch(fake(case))
    assert module == expected
    jax.tree.map(np.testing.assert_array_equal, variables, arrays)
    check((module, variables), peer, *data(case.shape, 1), move_to(name, -1))


def test_settings_become_fields():
    batch, group = CASES["batch"], CASES["group"]
    module, variables = tools.from_torch(fake(batch, track_running_stats=False))
    assert module.update_running is False and module.momentum == 0.75
    assert set(variables["batch_stats"]) == {"mean", "var"}  # no counter where none counts
    module, variables = tools.from_torch(fake(group, bias=None), channel_axis=2)
    options = {"num_groups": 2, "epsilon": 1e-3, "channel_axis": 2, "use_beta": False}
    assert module == jnn.GroupNorm(**options, param_dtype=jnp.dtype("float32"))
    assert set(variables["params"]) == {"gamma"}
    sync = fake(batch._replace(path="torch.nn.modules.batchnorm.SyncBatchNorm"))
    assert tools.from_torch(sync)[0] == tools.from_torch(fake(batch))[0]
    # The other arrays of a layer in half precision stay narrow, the running ones are widened.
    module, variables = tools.from_torch(fake(batch, "bfloat16"))
    assert module.param_dtype == variables["params"]["gamma"].dtype == jnp.bfloat16
    assert variables["batch_stats"]["mean"].dtype == jnp.float32
    rms = tools.from_torch(fake(CASES["rms"], "float16"))[0]
    assert rms.epsilon == 2.0**-23
    with jax.enable_x64(True):
        assert tools.from_torch(fake(CASES["rms"], "float64"))[0].epsilon == 2.0**-52


def test_subclasses_are_recognized_unless_they_compute_by_themselves():
    layer = fake(CASES["group"])
    base = type(layer)
    layer.__class__ = type("Mine", (base,), {"__module__": "models"})
    module, variables = tools.from_torch(layer)
    x = jnp.ones((2, 3, 4))
    assert evaluate(module, variables, x).shape == x.shape
    layer.__class__ = type(
        "NormAct", (base,), {"__module__": "models", "forward": lambda self, x: x}
    )
    with pytest.raises(
        TypeError,
        match=r"from_torch got a models\.NormAct, a GroupNorm with a forward of its own in NormAct,"
        r" which may compute something else\. Copy its arrays into a plain GroupNorm",
    ):
        tools.from_torch(layer)


def test_what_is_no_normalization_is_an_error():
    message = r"from_torch got a torch\.nn\.modules\.conv\.Conv2d, which is none of the norm"
    with pytest.raises(TypeError, match=message):
        tools.from_torch(stand_in("torch.nn.modules.conv.Conv2d"))
    # The name alone does not make it one of torch's.
    with pytest.raises(TypeError, match=r"got a models\.GroupNorm, which is none"):
        tools.from_torch(stand_in("models.GroupNorm"))
    with pytest.raises(TypeError, match=r"class .*GroupNorm, not a layer, which is none"):
        tools.from_torch(type(fake(CASES["group"])))
    with pytest.raises(ValueError, match=r"weight of the .*GroupNorm is on torch's device meta"):
        tools.from_torch(fake(CASES["group"], weight=Tensor(GAMMA, device="meta")))


def test_the_arrays_are_copies():
    weight = Tensor(GAMMA.copy())
    _, variables = tools.from_torch(fake(CASES["group"], weight=weight))
    weight.array[:] = 0
    np.testing.assert_array_equal(variables["params"]["gamma"], GAMMA)


def test_a_tracked_instance_norm_says_how_it_is_called():
    module, variables = tools.from_torch(fake(CASES["tracked"]))
    x = jnp.ones((2, 3, 4))
    with pytest.raises(ValueError, match=r"TrackedInstanceNorm .* needs use_running_average"):
        module.apply(variables, x)
    with pytest.raises(ValueError, match="batch_stats is not mutable"):
        module.apply(variables, x, use_running_average=False)
    again = module.init(jax.random.key(0), x, use_running_average=False)
    assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, variables)
    # A traced flag, as nn.remat makes it.
    x = jax.random.normal(jax.random.key(1), x.shape)

    def apply(flag):
        return module.apply(variables, x, use_running_average=flag, mutable=["batch_stats"])

    for flag in (False, True):
        for a, b in zip(*map(jax.tree.leaves, (jax.jit(apply)(flag), apply(flag))), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
