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

LEARNING_RATE = 0.1
MOMENTUM = 0.9
CLASSES = 10
IMAGES, WIDTHS = (32, 32, 32, 3), (32, 64, 128)
TOKENS, VOCABULARY, HEADS, LAYERS, WIDTH = (16, 64), 1000, 4, 3, 256


class ResNet(nn.Module):
    """A residual network for small images, two blocks at each of three resolutions.

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
            for block in range(2):
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


def make_step(norm: str, dtype: str, package: ModuleType) -> tuple[Any, ...]:
    """Returns a training step and its arguments.

    Args:
      norm: the normalization, which also decides on the model.
      dtype: of the computation.
      package: `jaxnorm.linen` or `flax.linen`.
    """
    module = {
        "layer": package.LayerNorm,
        "rms": package.RMSNorm,
        "batch": partial(package.BatchNorm, momentum=MOMENTUM, use_running_average=False),
        "group": package.GroupNorm,
        "instance": package.InstanceNorm,
    }[norm]
    make = partial(module, dtype=jnp.dtype(dtype))
    rng = np.random.default_rng(0)
    if norm in ("layer", "rms"):
        model = Transformer(make, jnp.dtype(dtype))
        x = jnp.asarray(rng.integers(VOCABULARY, size=TOKENS, dtype=np.int32))
    else:
        model = ResNet(make, jnp.dtype(dtype))
        x = jnp.asarray(rng.standard_normal(IMAGES, np.float32), dtype)
    labels = jnp.asarray(rng.integers(CLASSES, size=len(x), dtype=np.int32))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    parameters = variables["params"]
    running = {name: value for name, value in variables.items() if name != "params"}

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

    return step, parameters, running, x, labels
