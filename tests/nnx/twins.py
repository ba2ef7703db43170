"""Modules of `jaxnorm.nnx` beside those of `jaxnorm.linen`: one line for each."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx

KEY = jax.random.key(0)
SHAPE = (4, 6, 8)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Twin:
    """A module of both libraries.

    Attributes:
      linen: the module, without variables.
      make: the NNX module, of rngs.
      others: what the call takes beside the input.
      trained: whether it has a mode.
      masked: whether the call takes a mask.
    """

    linen: nn.Module
    make: Callable[[nnx.Rngs], nnx.Module]
    others: tuple[Any, ...] = ()
    trained: bool = False
    masked: bool = True

    def start(self):
        """The first variables of the linen module."""
        mode = {"use_running_average": True} if self.trained else {}
        return self.linen.init(KEY, jnp.zeros(SHAPE), *self.others, **mode)


def same(name, *sizes, only_nnx=None, **options):
    """A twin whose options are the same in both libraries."""
    about = {k: options.pop(k) for k in ("others", "trained", "masked") if k in options}
    make = lambda rngs: getattr(jnx, name)(*sizes, **options, **(only_nnx or {}), rngs=rngs)  # noqa: E731
    return Twin(linen=getattr(jnn, name)(**options), make=make, **about)


CLASSICAL = {
    "batch": same("BatchNorm", 8, trained=True),
    "batch_axes": same("BatchNorm", (6, 8), reduction_axes=0, momentum=0.7, trained=True),
    "batch_debias": same("BatchNorm", 8, debias=True, unbiased=False, trained=True),
    "batch_average": same("BatchNorm", 8, momentum=None, use_gamma=False, trained=True),
    "batch_virtual": same("BatchNorm", 8, num_virtual_batches=2, trained=True),
    "batch_renorm": same("BatchNorm", 8, train_statistics="renorm", trained=True),
    "batch_channels": same("BatchNorm", 6, feature_axes=1, trained=True),
    "layer": same("LayerNorm", 8),
    "layer_axes": same("LayerNorm", (6, 8), reduction_axes=(1, 2), feature_axes=(-1, 1)),
    "layer_beta": same("LayerNorm", 8, use_gamma=False, gamma_offset=1.0),
    "rms": same("RMSNorm", 8),
    "rms_cast": same("RMSNorm", 8, cast_before_gamma=True, gamma_offset=1.0),
    "group": same("GroupNorm", 8, num_groups=2),
    "group_size": same("GroupNorm", 6, group_size=3, channel_axis=1),
    "instance": same("InstanceNorm", 8),
    "whiten": same("DecorrelatedBatchNorm", 8, num_groups=2, trained=True),
    "whiten_iterative": same("DecorrelatedBatchNorm", 8, method="iterative", trained=True),
}
GATE = jnp.linspace(-2, 2, 4 * 6 * 8).reshape(SHAPE)
CONDITION = jnp.linspace(-1, 1, 12).reshape(4, 3)
MAP = jnp.linspace(-1, 1, 4 * 12 * 3).reshape(4, 12, 3)
GRAPHS = jnp.asarray([0, 1, 1, 0])

CATALOGUE = {
    "ScaleNorm": same("ScaleNorm", 8),
    "LocalResponseNorm": same("LocalResponseNorm", size=3, alpha=1.0, masked=False),
    "DivisiveNorm": same("DivisiveNorm", 8, window=3, reduction_axes=1),
    "FilterResponseNorm": same("FilterResponseNorm", 8, use_learned_epsilon=True),
    "GlobalResponseNorm": same("GlobalResponseNorm", 6, channel_axis=1),
    "EvoNormS0": same("EvoNormS0", 8, num_groups=2),
    "EvoNormB0": same("EvoNormB0", 8, trained=True),
    "PolyNorm": same("PolyNorm"),
    "GatedRMSNorm": same("GatedRMSNorm", 8, group_size=4, others=(GATE,), masked=False),
    "DynamicTanh": same("DynamicTanh", 8, masked=False),
    "DynamicErf": same("DynamicErf", (6, 8), feature_axes=(1, 2), masked=False),
    "LayerScale": same("LayerScale", 8, masked=False),
    "SwitchableNorm": same("SwitchableNorm", 8, momentum=None, trained=True),
    "BatchInstanceNorm": same("BatchInstanceNorm", 8, trained=True),
    "BatchChannelNorm": same("BatchChannelNorm", 8, num_groups=2, trained=True),
    "GraphNorm": same("GraphNorm", (6, 8), num_segments=2, others=(GRAPHS,)),
    "CumulativeNorm": same("CumulativeNorm", 8, decode=True, only_nnx={"input_shape": SHAPE}),
    "AdaptiveNorm": Twin(
        linen=jnn.AdaptiveNorm(jnn.BatchNorm(), activation=nn.silu),
        make=lambda rngs: jnx.AdaptiveNorm(jnx.BatchNorm(8), 3, activation=nnx.silu, rngs=rngs),
        others=(CONDITION,),
        trained=True,
    ),
    "SPADE": Twin(
        linen=jnn.SPADE(jnn.InstanceNorm(), hidden=5),
        make=lambda rngs: jnx.SPADE(
            jnx.InstanceNorm(8), 3, hidden=5, num_position_axes=1, rngs=rngs
        ),
        others=(MAP,),
    ),
    "RevIN": same("RevIN", 8),
    "InputNorm": same("InputNorm", 8, clip=1.5, trained=True),
}
TWINS = {**CLASSICAL, **CATALOGUE}


def draw(rng, shape, dtype=jnp.float32):
    return jnp.asarray(rng.normal(0.5, 2, shape), dtype)


def merged(variables):
    """Returns all variables of a linen module as one tree, as those of the NNX module lie."""
    return functools.reduce(_merge, variables.values(), {})


def _merge(a, b):
    if not isinstance(b, dict):
        return b
    return {k: _merge(a.get(k, {}), b[k]) if k in b else a[k] for k in {**a, **b}}


def values(module, kind=nnx.Variable):
    """Returns the arrays of the variables of a kind, as nested dictionaries."""
    return nnx.to_pure_dict(nnx.state(module, kind))


def built(make, seed=0):
    """Returns the module that `make` makes, with values of which none is computed."""
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(
        graph, jax.tree.map(lambda s: rng.uniform(0.2, 1, s.shape).astype(s.dtype), state)
    )
