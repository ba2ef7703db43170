"""A small language model with RMS norm and rotary attention, in Flax NNX."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.nnx import RMSNorm


@dataclasses.dataclass(frozen=True)
class Config:
    vocabulary: int = 29
    width: int = 32
    depth: int = 2
    num_heads: int = 2
    mlp_dim: int = 64
    dtype: Any = jnp.float32


def rotate(x, positions):
    """Rotates pairs of features by angles that grow with the position."""
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[:, None, None].astype(jnp.float32) * rates[None, None]  # [T, 1, half]
    sin, cos = (f(angles)[None].astype(x.dtype) for f in (jnp.sin, jnp.cos))
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class Attention(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        size = config.width // config.num_heads
        linear = {"use_bias": False, "dtype": config.dtype, "rngs": rngs}
        self.qkv = nnx.LinearGeneral(config.width, (3, config.num_heads, size), **linear)
        self.out = nnx.LinearGeneral(
            (config.num_heads, size), config.width, axis=(-2, -1), **linear
        )
        # One norm for every head, as several language models have it for queries and keys.
        self.query_norm = RMSNorm(size, dtype=config.dtype, rngs=rngs)
        self.key_norm = RMSNorm(size, dtype=config.dtype, rngs=rngs)

    def __call__(self, x):
        q, k, v = jnp.moveaxis(self.qkv(x), 2, 0)
        positions = jnp.arange(x.shape[1])
        q, k = rotate(self.query_norm(q), positions), rotate(self.key_norm(k), positions)
        return self.out(jax.nn.dot_product_attention(q, k, v, is_causal=True))


class Mlp(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        linear = {"use_bias": False, "dtype": config.dtype, "rngs": rngs}
        self.gate = nnx.Linear(config.width, config.mlp_dim, **linear)
        self.up = nnx.Linear(config.width, config.mlp_dim, **linear)
        self.down = nnx.Linear(config.mlp_dim, config.width, **linear)

    def __call__(self, x):
        return self.down(nnx.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.width, dtype=config.dtype, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = RMSNorm(config.width, dtype=config.dtype, rngs=rngs)
        self.mlp = Mlp(config, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class LanguageModel(nnx.Module):
    def __init__(self, config: Config | None = None, *, rngs: nnx.Rngs):
        config = Config() if config is None else config
        self.embed = nnx.Embed(config.vocabulary, config.width, dtype=config.dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.depth)])
        self.final_norm = RMSNorm(config.width, dtype=config.dtype, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.embed.attend(self.final_norm(x)).astype(jnp.float32)


def make_batch(seed=0, size=8):
    """Returns sequences of tokens, each token a step from the one before."""
    rng = np.random.default_rng(seed)
    start, step = rng.integers(0, 29, (size, 1)), rng.integers(1, 4, (size, 1))
    return jnp.asarray((start + step * np.arange(17)) % 29)


def loss_of(model, batch, key=None):
    """Returns the loss of predicting each next token."""
    del key  # nothing is random
    logits, next_token = model(batch[:, :-1]), batch[:, 1:]
    return optax.softmax_cross_entropy_with_integer_labels(logits, next_token).mean()
