"""Formulas as one writes them by hand, beside functions that no library has."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from jaxnorm.cli.peers.case import EPSILON


def graph_mean(x, ids, number: int):
    """Returns the mean of each graph, given to its nodes."""
    ones = jnp.ones(x.shape[:1], x.dtype)
    total, count = (jax.ops.segment_sum(a, ids, number) for a in (x, ones))
    return (total / jnp.maximum(count, 1)[:, None])[ids]


def segment_batch_norm(x, gamma, beta, ids, number: int):
    """Normalizes each feature over the nodes of each graph."""
    rest = x - graph_mean(x, ids, number)
    var = graph_mean(jnp.square(rest), ids, number)
    return gamma * rest / jnp.sqrt(var + EPSILON) + beta


def graph_norm(x, alpha, gamma, beta, ids, number: int):
    """The same with a learned share of the mean."""
    rest = x - alpha * graph_mean(x, ids, number)
    var = graph_mean(jnp.square(rest), ids, number)
    return gamma * rest / jnp.sqrt(var + EPSILON) + beta


def pair_norm(x, ids, number: int):
    """Gives the nodes of each graph the same mean squared length."""
    rest = x - graph_mean(x, ids, number)
    size = graph_mean(jnp.sum(jnp.square(rest), 1, keepdims=True), ids, number)
    return rest / jnp.sqrt(size + EPSILON)


def window_mean(x, sizes: dict[int, int]):
    """Returns the mean over windows, of the places that lie in the array, axis after axis."""

    def total(a):
        for axis, size in sizes.items():
            window = [1] * a.ndim
            window[axis] = size
            a = jax.lax.reduce_window(a, 0.0, jax.lax.add, window, [1] * a.ndim, "SAME")
        return a

    kept = jnp.ones([s if a in sizes else 1 for a, s in enumerate(x.shape)], x.dtype)
    return total(x) / total(kept)


def divisive_norm(x, gamma, beta, window: int):
    """Normalizes each pixel by those around it."""
    sizes = {1: window, 2: window}
    rest = x - window_mean(x, sizes)
    return gamma * rest / jnp.sqrt(1 + window_mean(jnp.square(rest), sizes)) + beta


def local_response_norm(x, size: int):
    """Divides each response by those of the channels around it; the size is odd."""
    window = (*[1] * (x.ndim - 1), size)
    ones = [1] * x.ndim
    total = jax.lax.reduce_window(jnp.square(x), 0.0, jax.lax.add, window, ones, "SAME")
    return x / (1 + 1e-4 * total / size) ** 0.75


def torch_divisive_norm(torch, x, gamma, beta, window: int):
    """The same in PyTorch, of images (N, C, H, W)."""
    mean = functools.partial(
        torch.nn.functional.avg_pool2d,
        kernel_size=window,
        stride=1,
        padding=window // 2,
        count_include_pad=False,
    )
    rest = x - mean(x)
    gamma, beta = (p[:, None, None] for p in (gamma, beta))
    return gamma * rest / torch.sqrt(1 + mean(rest * rest)) + beta


def torch_local_response_norm(torch, x, size: int):
    """The same in PyTorch, of images (N, C, H, W)."""
    return torch.nn.functional.local_response_norm(x, size)


def demodulate(w, style, axes: tuple[int, ...]):
    """Scales inputs by a style, and output units to length 1."""
    scaled = w * style[:, None]
    return scaled * jax.lax.rsqrt(jnp.sum(jnp.square(scaled), axes, keepdims=True) + 1e-8)


def weight_standardize(w, gain, axes: tuple[int, ...], scaled: bool):
    """Gives the weights of each output unit mean 0, and variance or length 1."""
    rest = w - jnp.mean(w, axes, keepdims=True)
    size = jnp.mean(jnp.square(rest), axes, keepdims=True)
    count = math.prod(w.shape[a] for a in axes) if scaled else 1
    return gain * rest * jax.lax.rsqrt(count * size + EPSILON)
