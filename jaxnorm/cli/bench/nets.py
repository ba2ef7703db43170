"""The models whose training steps `bench --models` measures: blocks, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxnorm.linen as jnn
from jaxnorm.cli.errors import UserError
from jaxnorm.cli.peers.case import MOMENTUM, Case

PACKAGES = {"jaxnorm": jnn, "flax.linen": nn}
LEARNING_RATE = 0.1
CLASSES = 10
HEADS, NARROW = 12, 64


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


def make_norm(norm: str, dtype: str, package: ModuleType) -> Callable[[], nn.Module]:
    """Returns what makes the normalization, in training.

    Args:
      norm: its name.
      dtype: of the computation; the parameters are float32.
      package: `jaxnorm.linen` or `flax.linen`.
    """
    module = {
        "layer": package.LayerNorm,
        "rms": package.RMSNorm,
        "batch": partial(package.BatchNorm, momentum=MOMENTUM, use_running_average=False),
        "group": package.GroupNorm,
        "instance": package.InstanceNorm,
    }[norm]
    return partial(module, dtype=jnp.dtype(dtype))


def make_model(case: Case, package: ModuleType, blocks: int, in_scan: bool = False) -> nn.Module:
    """Returns the model of a case, its blocks written out or in a scan."""
    block = TransformerBlock if len(case.shape) == 3 else BottleneckBlock
    if in_scan:
        stacked = {"params": 0, "batch_stats": 0}
        block = nn.scan(block, {**stacked}, split_rngs={"params": True}, length=blocks)
    dtype = jnp.dtype(case.dtype)
    make = partial(block, make_norm(case.norm, case.dtype, package), dtype)
    return Net(make, 1 if in_scan else blocks, dtype)


def make_update(model: nn.Module) -> Callable[..., Any]:
    """Returns a step of plain gradient descent: of (parameters, running statistics, x, labels)."""

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
