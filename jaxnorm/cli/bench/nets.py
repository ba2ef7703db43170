"""The models whose training steps `bench --models` measures: a ResNet and a transformer encoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnorm.cli.peers_jax import foreign_code

LEARNING_RATE = 0.1
MOMENTUM = 0.9
CLASSES = 10
IMAGES, WIDTHS, BLOCKS = (32, 32, 32, 3), (32, 64, 128), 2
TOKENS, VOCABULARY, HEADS, LAYERS, WIDTH = (16, 64), 1000, 4, 3, 256


class ResNet(nn.Module):
    """A residual network for small images, with blocks at several resolutions.

    Attributes:
      norm: makes a normalization, in training.
      dtype: of the computation; the parameters are float32.
    """

    norm: Callable[[], nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits of images (N, H, W, C)."""
        conv = partial(nn.Conv, kernel_size=(3, 3), use_bias=False, dtype=self.dtype)
        x = nn.relu(self.norm()(conv(WIDTHS[0])(x)))
        for stage, width in enumerate(WIDTHS):
            for block in range(BLOCKS):
                strides = 2 if stage > 0 and block == 0 else 1
                y = nn.relu(self.norm()(conv(width, strides=strides)(x)))
                y = self.norm()(conv(width)(y))
                if x.shape != y.shape:
                    x = self.norm()(conv(width, kernel_size=(1, 1), strides=strides)(x))
                x = nn.relu(x + y)
        return nn.Dense(CLASSES, dtype=self.dtype)(x.mean((1, 2)))


class Transformer(nn.Module):
    """A transformer encoder, normalized before each of its parts.

    Attributes:
      norm: makes a normalization.
      dtype: of the computation; the parameters are float32.
    """

    norm: Callable[[], nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns the logits of sequences of tokens (N, T)."""
        x = nn.Embed(VOCABULARY, WIDTH, dtype=self.dtype)(tokens)
        for _ in range(LAYERS):
            x = x + nn.MultiHeadDotProductAttention(HEADS, dtype=self.dtype)(self.norm()(x))
            y = nn.gelu(nn.Dense(4 * WIDTH, dtype=self.dtype)(self.norm()(x)))
            x = x + nn.Dense(WIDTH, dtype=self.dtype)(y)
        return nn.Dense(CLASSES, dtype=self.dtype)(self.norm()(x).mean(1))


def name_of(norm: str) -> str:
    """Returns the name of the model that has the normalization."""
    return f"{'transformer' if norm in ('layer', 'rms') else 'ResNet'}, {norm} norm"


def make_norm(norm: str, dtype: str, package: ModuleType) -> Callable[[], nn.Module]:
    """Returns what makes the normalization, in training; the arguments are `make_model`'s."""
    module = {
        "layer": package.LayerNorm,
        "rms": package.RMSNorm,
        "batch": partial(package.BatchNorm, momentum=MOMENTUM, use_running_average=False),
        "group": package.GroupNorm,
        "instance": package.InstanceNorm,
    }[norm]
    return partial(module, dtype=jnp.dtype(dtype))


def make_model(norm: str, dtype: str, package: ModuleType) -> tuple[nn.Module, jax.Array]:
    """Returns the model that has the normalization, and a batch of input.

    Args:
      norm: the normalization.
      dtype: of the computation.
      package: `jaxnorm.linen` or `flax.linen`.
    """
    make = make_norm(norm, dtype, package)
    rng = np.random.default_rng(0)
    if norm in ("layer", "rms"):
        tokens = rng.integers(VOCABULARY, size=TOKENS, dtype=np.int32)
        return Transformer(make, jnp.dtype(dtype)), jnp.asarray(tokens)
    images = rng.standard_normal(IMAGES, np.float32)
    return ResNet(make, jnp.dtype(dtype)), jnp.asarray(images, dtype)


def make_step(norm: str, dtype: str, package: ModuleType) -> tuple[Any, ...]:
    """Returns a training step, of plain gradient descent, and its arguments.

    The arguments are those of `make_model`.
    """
    model, x = make_model(norm, dtype, package)
    labels = jnp.asarray(np.arange(len(x), dtype=np.int32) % CLASSES)
    with foreign_code():
        variables = jax.jit(model.init)(jax.random.key(0), x)
    parameters = variables["params"]
    running = {name: value for name, value in variables.items() if name != "params"}
    return make_update(model), parameters, running, x, labels


def make_update(model: nn.Module) -> Callable[..., Any]:
    """Returns a training step of a model: of (parameters, running statistics, x, labels)."""

    def loss_of(parameters, running, x, labels):
        logits, running = model.apply({"params": parameters, **running}, x, mutable=list(running))
        logits = logits.astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), running

    def step(parameters, running, x, labels):
        compute = jax.value_and_grad(loss_of, has_aux=True)
        (loss, running), gradients = compute(parameters, running, x, labels)
        parameters = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, parameters, gradients)
        return parameters, running, loss

    return step
