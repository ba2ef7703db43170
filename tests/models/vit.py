"""A vision transformer, in Flax linen."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.linen import LayerNorm


class Mlp(nn.Module):
    dim: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        y = nn.gelu(nn.Dense(self.dim, dtype=self.dtype)(x))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return nn.Dense(x.shape[-1], dtype=self.dtype)(y)


class EncoderBlock(nn.Module):
    num_heads: int
    mlp_dim: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        y = LayerNorm(dtype=self.dtype)(x)
        y = nn.MultiHeadDotProductAttention(self.num_heads, dtype=self.dtype)(y, y)
        x = x + nn.Dropout(self.dropout, deterministic=not train)(y)
        y = LayerNorm(dtype=self.dtype)(x)
        return x + Mlp(self.mlp_dim, self.dropout, self.dtype)(y, train)


class VisionTransformer(nn.Module):
    num_classes: int = 10
    patch: int = 4
    width: int = 32
    depth: int = 2
    num_heads: int = 2
    mlp_dim: int = 64
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = True):
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, size, padding="VALID", dtype=self.dtype, name="embed")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
        token = jnp.tile(token, (x.shape[0], 1, 1)).astype(x.dtype)
        x = jnp.concatenate([token, x], axis=1)
        shape = (1, x.shape[1], self.width)
        x = x + self.param("position", nn.initializers.normal(0.02), shape).astype(x.dtype)
        for i in range(self.depth):
            block = EncoderBlock(
                self.num_heads, self.mlp_dim, self.dropout, self.dtype, name=f"block_{i}"
            )
            x = block(x, train)
        x = LayerNorm(dtype=self.dtype, name="encoder_norm")(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x[:, 0])


def make_batch(seed=0, size=16):
    """Returns images and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, size)
    images = rng.normal(size=(size, 16, 16, 3)) + labels[:, None, None, None] / 5
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels)


def loss_of(model, variables, batch, key=None):
    """Returns the loss of a batch in training, and no new state."""
    x, labels = batch
    key = jax.random.key(1) if key is None else key
    logits = model.apply(variables, x, train=True, rngs={"dropout": key}).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), {}


def init(model, batch):
    """Returns the variables that the model starts with."""
    return model.init(jax.random.key(0), batch[0], train=False)
