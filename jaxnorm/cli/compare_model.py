"""The classifier that `compare` trains, the same but for its normalization."""

from __future__ import annotations

import flax.linen as nn
import jax

import jaxnorm.linen as jnn

WIDTHS_AND_STRIDES = ((8, 1), (16, 2), (32, 2))
NUM_GROUPS = 4
# Of the running mean and variance. With flax.linen's 0.99 they would still lag behind in the
# first hundred steps, and the steps to the target would measure that instead of the training.
MOMENTUM = 0.9


class Classifier(nn.Module):
    """Three convolutions, each normalized before its ReLU, and a dense layer.

    Attributes:
      norm: a key of `jaxnorm.cli.compare.NORMS`.
      num_classes: size of the result's last axis.
    """

    norm: str
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits of images (N, H, W, C)."""
        # Where the module has a beta, it does the bias's work.
        use_bias = self.norm in ("none", "rms")
        for width, stride in WIDTHS_AND_STRIDES:
            x = nn.Conv(width, (3, 3), strides=stride, use_bias=use_bias)(x)
            x = nn.relu(normalize(self.norm, x, train))
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


def normalize(norm: str, x: jax.Array, train: bool) -> jax.Array:
    """Applies a new module of the named normalization to feature maps (N, H, W, C)."""
    match norm:
        case "none":
            return x
        case "batch":
            return jnn.BatchNorm(momentum=MOMENTUM, use_running_average=not train)(x)
        case "layer":
            return jnn.LayerNorm(reduction_axes=(1, 2, 3))(x)
        case "rms":
            return jnn.RMSNorm(reduction_axes=(1, 2, 3))(x)
        case "group":
            return jnn.GroupNorm(num_groups=NUM_GROUPS)(x)
        case "instance":
            return jnn.InstanceNorm()(x)
        case _:
            raise ValueError(f"unknown normalization {norm!r}")
