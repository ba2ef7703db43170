"""Models of `tests.models` in training: as they are, and with the norms of another library."""

import functools
import importlib.util
import inspect
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.models import diffusion, language, resnet, vit

LEARNING_RATE, MOMENTUM, STEPS = 0.05, 0.9, 20


class Model(NamedTuple):
    """A model, made of the classes in a module.

    Attributes:
      source: the module, of plain flax.
      line: its one line that names a norm's class to import, but for the class.
      norm: the class.
      make: makes the model of a module like `source`, in a dtype.
    """

    source: types.ModuleType
    line: str
    norm: str
    make: Any

    @property
    def is_nnx(self):
        return self.line == "from flax.nnx import "


def make_nnx(name, **fields):
    return lambda module, dtype: getattr(module, name)(dtype=dtype, rngs=nnx.Rngs(0), **fields)


def make_language(module, dtype):
    return module.LanguageModel(module.Config(dtype=dtype, depth=1), rngs=nnx.Rngs(0))


MODELS = {
    "residual network": Model(
        resnet, "from flax.linen import ", "BatchNorm", lambda m, dtype: m.ResNet(dtype=dtype)
    ),
    "vision transformer": Model(
        vit,
        "from flax.linen import ",
        "LayerNorm",
        lambda m, dtype: m.VisionTransformer(dtype=dtype),
    ),
    "language model": Model(language, "from flax.nnx import ", "RMSNorm", make_language),
    "diffusion network": Model(diffusion, "from flax.nnx import ", "GroupNorm", make_nnx("UNet")),
}


def with_drop_in(model: Model):
    """Returns the module of a model whose one import of a norm is changed."""
    text = inspect.getsource(model.source)
    line = f"{model.line}{model.norm}\n"
    assert text.count(line) == 1
    changed = text.replace(line, line.replace("from flax.", "from jaxnorm.drop_in."))
    spec = importlib.util.spec_from_loader(f"{model.source.__name__}_drop_in", None)
    module = importlib.util.module_from_spec(spec)
    exec(compile(changed, spec.name, "exec"), vars(module))
    return module


class Trained(NamedTuple):
    """Parameters, other variables, and velocities of an optimizer."""

    params: Any
    rest: Any
    velocity: Any


class Training(NamedTuple):
    """A model in training.

    Attributes:
      start: shapes and dtypes of what it starts with.
      make_start: makes values.
      loss: of parameters, other variables, a batch and a key; returns new other variables, too.
      module: where the model comes from.
    """

    start: Trained
    make_start: Any
    loss: Any
    module: types.ModuleType

    def step(self, trained, batch, key):
        """Returns what is trained after a step of gradient descent, the loss and gradients."""
        params, rest, velocity = trained
        compute = jax.value_and_grad(self.loss, has_aux=True)
        (loss, rest), gradients = compute(params, rest, batch, key)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradients)
        params = jax.tree.map(lambda p, v: p - LEARNING_RATE * v, params, velocity)
        return Trained(params, rest, velocity), loss, gradients

    def compile(self):
        """Returns `step`, compiled."""
        return jax.jit(self.step).lower(self.start, *self.batch(0)).compile()

    def batch(self, number):
        return self.module.make_batch(number), jax.random.key(number)


def start_training(model: Model, module=None, dtype=jnp.float32, change=lambda built: built):
    """Returns a model in training, from the classes in `module`; `change` is for one of NNX."""
    module = model.source if module is None else module
    make = functools.partial(model.make, module, dtype)
    if model.is_nnx:
        graph, *_ = nnx.split(change(nnx.eval_shape(make)))

        def make_start():
            return started(*nnx.split(change(make()), nnx.Param, ...)[1:])

        def loss(params, rest, batch, key):
            merged = nnx.merge(graph, params, rest, copy=True)
            value = module.loss_of(merged, batch, key)
            return value, nnx.state(merged, nnx.Not(nnx.Param))

        return training(make_start, loss, module)

    built = make()

    def init():
        variables = module.init(built, module.make_batch())
        return variables["params"], {k: v for k, v in variables.items() if k != "params"}

    def loss(params, rest, batch, key):
        return module.loss_of(built, {"params": params, **rest}, batch, key)

    return training(lambda: started(*init()), loss, module)


def training(make_start, loss, module):
    shapes = jax.eval_shape(make_start)
    return Training(shapes, functools.partial(values_for, shapes), loss, module)


def values_for(shapes):
    """Returns variables as models start with them, without compiling programs of random numbers."""
    rng = np.random.default_rng(0)

    def value(path, leaf):
        name = jax.tree_util.keystr(path)
        if "velocity" in name:
            return np.zeros(leaf.shape, leaf.dtype)
        if "kernel" in name or "embedding" in name:
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(leaf.dtype)
        if "position" in name:
            return rng.normal(0, 0.02, leaf.shape).astype(leaf.dtype)
        return np.full(leaf.shape, "scale" in name or "var" in name, leaf.dtype)

    return jax.tree_util.tree_map_with_path(value, shapes)


def started(params, rest):
    return Trained(params, rest, jax.tree.map(jnp.zeros_like, params))


def train(step, training: Training, trained, first=0, steps=STEPS):
    """Returns what is trained after some steps, and their losses."""
    losses = []
    for number in range(first, first + steps):
        trained, loss, _ = step(trained, *training.batch(number))
        losses.append(float(loss))
    return trained, np.asarray(losses)


def kept_bytes(training: Training):
    """The bytes that the backward pass is handed, besides parameters and the batch."""
    given = training.start.params, training.start.rest, *training.batch(0)
    backward = functools.partial(jax.vjp, has_aux=True)

    def hand_over(params, rest, batch, key):
        loss = functools.partial(training.loss, rest=rest, batch=batch, key=key)
        return backward(loss, params)[1]

    program = jax.make_jaxpr(hand_over)(*given).jaxpr
    kept = {id(v): v.aval for v in program.outvars if v not in program.invars}
    return sum(aval.size * aval.dtype.itemsize for aval in kept.values())
