"""A residual network with batch norm, in Flax linen."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.linen import BatchNorm


class ResidualBlock(nn.Module):
    filters: int
    norm: Callable[..., nn.Module]
    strides: tuple[int, int] = (1, 1)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        residual = x
        y = nn.relu(self.norm()(conv(self.filters, (3, 3), self.strides)(x)))
        y = self.norm(scale_init=nn.initializers.zeros)(conv(self.filters, (3, 3))(y))
        if residual.shape != y.shape:
            residual = conv(self.filters, (1, 1), self.strides, name="conv_proj")(residual)
            residual = self.norm(name="norm_proj")(residual)
        return nn.relu(residual + y)


class ResNet(nn.Module):
    stage_sizes: Sequence[int] = (1, 1)
    num_filters: int = 8
    num_classes: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = True):
        norm = partial(BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        x = nn.Conv(self.num_filters, (3, 3), use_bias=False, dtype=self.dtype)(x)
        x = nn.relu(norm(name="norm_init")(x))
        for stage, blocks in enumerate(self.stage_sizes):
            for block in range(blocks):
                strides = (2, 2) if stage > 0 and block == 0 else (1, 1)
                filters = self.num_filters * 2**stage
                x = ResidualBlock(filters, norm, strides, self.dtype)(x)
        x = x.mean(axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


def make_batch(seed=0, size=16):
    """Returns images and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, size)
    images = rng.normal(size=(size, 8, 8, 3)) + labels[:, None, None, None] / 5
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels)


def loss_of(model, variables, batch, key=None):
    """Returns the loss of a batch in training, and the new running statistics."""
    del key  # nothing is random
    x, labels = batch
    logits, new = model.apply(variables, x, train=True, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new


def init(model, batch):
    """Returns the variables that the model starts with."""
    return model.init(jax.random.key(0), batch[0], train=False)
