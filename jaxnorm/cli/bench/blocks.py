"""The models whose training steps `bench --compile-for --models` compiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnorm.cli.bench_compiled_chips import Target
from jaxnorm.cli.bench_nets import CLASSES, make_norm, make_update
from jaxnorm.cli.errors import UserError
from jaxnorm.cli.peers import Case
from jaxnorm.cli.peers_jax import foreign_code

SHAPES = ((32, 256, 768), (32, 28, 28, 256))
HEADS, NARROW = 12, 64
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


def name_of(case: Case) -> str:
    """Returns the name of the model that has the normalization, of an input."""
    return f"{'transformer' if len(case.shape) == 3 else 'bottleneck'}, {case.norm} norm"


def list_cases(
    norms: Sequence[str], shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str]
) -> list[Case]:
    """Returns every combination that there is a model of.

    Raises:
      UserError: there is none of a norm, or of a shape.
    """
    cases = []
    for norm in norms:
        sizes = 3 if norm in ("layer", "rms") else 4
        found = [shape for shape in shapes if len(shape) == sizes]
        if not found or any(shape[-1] % (HEADS if sizes == 3 else NARROW) for shape in found):
            raise UserError(
                f"the model of {norm} norm needs a shape of {sizes} sizes, the last a multiple of "
                f"{HEADS if sizes == 3 else NARROW}; see --shapes"
            )
        cases += [Case(norm, shape, dtype) for shape in found for dtype in dtypes]
    return cases


def make_step(case: Case, layers: str, package: ModuleType, target: Target) -> tuple[Any, ...]:
    """Returns a training step, of plain gradient descent, and descriptions of its arguments.

    Args:
      case: the normalization, the shape of the input, and the dtype of the computation; the
        parameters are float32.
      layers: how they are written, of `LAYERS`.
      package: `jaxnorm.linen` or `flax.linen`.
      target: what it will be compiled for.
    """
    norm, shape, dtype = case
    block = TransformerBlock if len(shape) == 3 else BottleneckBlock
    calls = LAYERS[layers]
    if layers == "scan":
        stacked = {"params": 0, "batch_stats": 0}
        block = nn.scan(block, {**stacked}, split_rngs={"params": True}, length=calls)
        calls = 1
    make = partial(block, make_norm(norm, dtype, package), jnp.dtype(dtype))
    model = Net(make, calls, jnp.dtype(dtype))
    with foreign_code():
        variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape, dtype)))
    variables = jax.tree.map(lambda leaf: target.array(leaf.shape, leaf.dtype), variables)
    parameters = variables.pop("params")
    x = target.array(shape, dtype, divided=True)
    return make_update(model), parameters, variables, x, target.array(shape[:1], jnp.int32, True)
