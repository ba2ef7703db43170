"""A diffusion network with adaptive group norm, in Flax NNX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx import GroupNorm


def embed_time(time, width):
    """Returns sines and cosines of each time, at rates from slow to fast."""
    half = width // 2
    rates = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = 1000.0 * time[:, None] * rates[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ResidualBlock(nnx.Module):
    def __init__(self, channels, out, width, groups, *, dtype, rngs: nnx.Rngs):
        options = {"dtype": dtype, "rngs": rngs}
        self.norm_in = GroupNorm(channels, groups, **options)
        self.conv_in = nnx.Conv(channels, out, (3, 3), **options)
        # Adaptive: scale and shift come from the time, not from parameters of the norm.
        self.norm_out = GroupNorm(out, groups, use_scale=False, use_bias=False, **options)
        self.modulation = nnx.Linear(width, 2 * out, **options)
        self.conv_out = nnx.Conv(out, out, (3, 3), **options)
        self.skip = nnx.Conv(channels, out, (1, 1), **options) if channels != out else None

    def __call__(self, x, condition):
        y = self.conv_in(nnx.silu(self.norm_in(x)))
        scale, shift = jnp.split(self.modulation(nnx.silu(condition))[:, None, None], 2, axis=-1)
        y = self.conv_out(nnx.silu(self.norm_out(y) * (1 + scale) + shift))
        return y + (x if self.skip is None else self.skip(x))


class UNet(nnx.Module):
    def __init__(self, channels=8, width=32, groups=4, dtype: Any = jnp.float32, *, rngs: nnx.Rngs):
        options = {"dtype": dtype, "rngs": rngs}
        self.width = width
        self.time = nnx.Sequential(
            nnx.Linear(width, width, **options), nnx.silu, nnx.Linear(width, width, **options)
        )
        self.stem = nnx.Conv(3, channels, (3, 3), **options)
        self.shrink = nnx.Conv(channels, channels, (3, 3), strides=(2, 2), **options)
        self.middle = ResidualBlock(channels, 2 * channels, width, groups, **options)
        self.up = ResidualBlock(3 * channels, channels, width, groups, **options)
        self.norm = GroupNorm(channels, groups, **options)
        self.head = nnx.Conv(channels, 3, (3, 3), **options)

    def __call__(self, x, time):
        condition = self.time(embed_time(time, self.width))
        skip = self.stem(x)
        x = self.middle(self.shrink(skip), condition)
        batch, height, width, channels = x.shape
        x = jax.image.resize(x, (batch, 2 * height, 2 * width, channels), "nearest")
        x = self.up(jnp.concatenate([x, skip], axis=-1), condition)
        return self.head(nnx.silu(self.norm(x)))


def make_batch(seed=0, size=8):
    """Returns images of one color each."""
    rng = np.random.default_rng(seed)
    images = np.broadcast_to(rng.uniform(-1, 1, (size, 1, 1, 3)), (size, 8, 8, 3))
    return jnp.asarray(images, jnp.float32)


def loss_of(model, batch, key=None):
    """Returns how far the predicted noise is from the noise."""
    time_key, noise_key = jax.random.split(jax.random.key(1) if key is None else key)
    time = jax.random.uniform(time_key, batch.shape[:1])
    noise = jax.random.normal(noise_key, batch.shape)
    angle = time[:, None, None, None] * jnp.pi / 2
    noisy = jnp.cos(angle) * batch + jnp.sin(angle) * noise
    return jnp.square(model(noisy, time).astype(jnp.float32) - noise).mean()
