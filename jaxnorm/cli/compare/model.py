"""The classifier that `compare` trains, the same but for its normalization."""

from __future__ import annotations

import flax.linen as nn
import jax

import jaxnorm.linen as jnn
from jaxnorm.cli.compare.settings import NUM_GROUPS

WIDTHS_AND_STRIDES = ((8, 1), (16, 2), (32, 2))
# Of the running mean and variance. With flax.linen's 0.99 they would still lag behind in the
# first hundred steps, and the steps to the target would measure that instead of the training.
MOMENTUM = 0.9


class Classifier(nn.Module):
    """Three convolutions and a hidden dense layer, each normalized before its ReLU.

    Attributes:
      norm: a key of `jaxnorm.cli.compare.settings.NORMS`.
      num_classes: size of the result's last axis.
      hidden: units of the dense layer before the last; 0 leaves it out.
    """

    norm: str
    num_classes: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits of images (N, H, W, C)."""
        # Where the normalization has a beta, it does the bias's work.
        for width, stride in WIDTHS_AND_STRIDES:
            use_bias = self.norm in ("none", "rms")
            x = nn.Conv(width, (3, 3), strides=stride, use_bias=use_bias)(x)
            x = nn.relu(normalize(self.norm, x, train))
        x = x.reshape(x.shape[0], -1)
        if self.hidden:
            # Without positions there is nothing that instance norm could pool.
            norm = "none" if self.norm == "instance" else self.norm
            x = nn.Dense(self.hidden, use_bias=norm in ("none", "rms"))(x)
            x = nn.relu(normalize(norm, x, train))
        return nn.Dense(self.num_classes)(x)


def normalize(norm: str, x: jax.Array, train: bool) -> jax.Array:
    """Applies a new module of the named normalization to features (N, ..., C)."""
    all_but_examples = tuple(range(1, x.ndim))
    match norm:
        case "none":
            return x
        case "batch":
            return jnn.BatchNorm(momentum=MOMENTUM, use_running_average=not train)(x)
        case "layer":
            return jnn.LayerNorm(reduction_axes=all_but_examples)(x)
        case "rms":
            return jnn.RMSNorm(reduction_axes=all_but_examples)(x)
        case "group":
            return jnn.GroupNorm(num_groups=NUM_GROUPS)(x)
        case "instance":
            return jnn.InstanceNorm()(x)
        case _:
            raise ValueError(f"unknown normalization {norm!r}")
