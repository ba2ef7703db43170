"""The classifier that `compare` trains, the same but for its normalization."""

from __future__ import annotations

import flax.linen as nn
import jax

import jaxnorm.linen as jnn
from jaxnorm.cli.compare.norms import NORMS, Norm

WIDTHS_AND_STRIDES = ((8, 1), (16, 2), (32, 2))


class Classifier(nn.Module):
    """Three convolutions and a hidden dense layer, each normalized before its ReLU.

    Attributes:
      norm: a key of `jaxnorm.cli.compare.norms.NORMS`.
      num_classes: size of the result's last axis.
      hidden: units of the dense layer before the last; 0 leaves it out.
    """

    norm: str
    num_classes: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits of images (N, H, W, C)."""
        norm = NORMS[self.norm]
        for width, stride in WIDTHS_AND_STRIDES:
            layer = nn.Conv(width, (3, 3), strides=stride, use_bias=not has_beta(norm))
            x = apply(norm, layer, x, train)
        x = x.reshape(x.shape[0], -1)
        if self.hidden:
            if norm.positions:
                norm = NORMS["none"]
            x = apply(norm, nn.Dense(self.hidden, use_bias=not has_beta(norm)), x, train)
        return nn.Dense(self.num_classes)(x)


def has_beta(norm: Norm) -> bool:
    """Returns whether the normalization does a bias's work."""
    return bool(norm.layer) and getattr(getattr(jnn, norm.layer), "use_beta", False)


def apply(norm: Norm, layer: nn.Module, x: jax.Array, train: bool) -> jax.Array:
    """Applies a layer, a new module of the normalization, and ReLU where that does not activate."""
    if norm.weights:
        layer = make(norm.weights, train, layer)
    x = layer(x)
    if norm.layer:
        axes = {} if norm.axes is None else {"reduction_axes": norm.axes(x.ndim)}
        x = make(norm.layer, train, **norm.options, **axes)(x)
    return x if norm.activates else nn.relu(x)


def make(name: str, train: bool, *args, **options) -> nn.Module:
    """Returns a new module of `jaxnorm.linen`, told whether this is training if it asks."""
    module = getattr(jnn, name)
    if hasattr(module, "use_running_average"):
        options["use_running_average"] = not train
    if hasattr(module, "update_stats"):
        options["update_stats"] = train
    return module(*args, **options)
