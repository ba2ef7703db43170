"""The models whose training steps `bench --compile-for --models` compiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnorm.cli.bench_compiled_chips import Target
from jaxnorm.cli.bench_nets import CLASSES, make_norm, make_update

TOKENS, HEADS = (32, 256, 768), 12
IMAGES, NARROW = (32, 28, 28, 256), 64
# How the layers are written, and how many there are.
LAYERS = {"written out": 2, "scan": 6}


class TransformerBlock(nn.Module):
    """Attention and a perceptron, each after a normalization."""

    norm: Callable[[], nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        """Returns the result for (N, T, C), and nothing more, as a scan asks for."""
        x = x + nn.MultiHeadDotProductAttention(HEADS, dtype=self.dtype)(self.norm()(x))
        width = x.shape[-1]
        y = nn.gelu(nn.Dense(4 * width, dtype=self.dtype)(self.norm()(x)))
        return x + nn.Dense(width, dtype=self.dtype)(y), None


class BottleneckBlock(nn.Module):
    """Three convolutions, in the middle of fewer channels, each before a normalization."""

    norm: Callable[[], nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        """Returns the result for (N, H, W, C), and nothing more, as a scan asks for."""
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        y = nn.relu(self.norm()(conv(NARROW, (1, 1))(x)))
        y = nn.relu(self.norm()(conv(NARROW, (3, 3))(y)))
        return nn.relu(x + self.norm()(conv(x.shape[-1], (1, 1))(y))), None


class Net(nn.Module):
    """Blocks of one kind, and logits.

    Attributes:
      block: makes a block, or all of them in a scan.
      calls: how often it does.
    """

    block: Callable[[], nn.Module]
    calls: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits of a batch."""
        for _ in range(self.calls):
            x, _ = self.block()(x, None)
        x = x.mean(range(1, x.ndim - 1))
        return nn.Dense(CLASSES, dtype=self.dtype)(x)


def name_of(norm: str) -> str:
    """Returns the name of the model that has the normalization."""
    return f"{'transformer' if norm in ('layer', 'rms') else 'bottleneck'}, {norm} norm"


def make_step(
    norm: str, dtype: str, layers: str, package: ModuleType, target: Target
) -> tuple[Any, ...]:
    """Returns a training step, of plain gradient descent, and descriptions of its arguments.

    Args:
      norm: the normalization.
      dtype: of the computation; the parameters are float32.
      layers: how they are written, of `LAYERS`.
      package: `jaxnorm.linen` or `flax.linen`.
      target: what it will be compiled for.
    """
    block = TransformerBlock if norm in ("layer", "rms") else BottleneckBlock
    shape = TOKENS if norm in ("layer", "rms") else IMAGES
    calls = LAYERS[layers]
    if layers == "scan":
        axes = {"params": 0, "batch_stats": 0}
        block = nn.scan(block, axes, split_rngs={"params": True}, length=calls)
        calls = 1
    make = partial(block, make_norm(norm, dtype, package), jnp.dtype(dtype))
    model = Net(make, calls, jnp.dtype(dtype))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape, dtype)))
    variables = jax.tree.map(lambda leaf: target.array(leaf.shape, leaf.dtype), variables)
    parameters = variables.pop("params")
    x = target.array(shape, dtype, divided=True)
    return make_update(model), parameters, variables, x, target.array(shape[:1], jnp.int32, True)
