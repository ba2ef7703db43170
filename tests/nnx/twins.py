"""A module of `jaxnorm.nnx` beside the one of `jaxnorm.linen`, with the same values."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import jaxnorm.linen
import jaxnorm.nnx

KEY = jax.random.key(0)

# Modules, sizes for NNX, the shape of the input, and options that both have.
NORMS = {
    "batch": ("BatchNorm", 4, (6, 3, 4), {}),
    "batch_axes": ("BatchNorm", (3, 4), (6, 3, 4), {"reduction_axes": 0, "momentum": 0.7}),
    "batch_debias": ("BatchNorm", 4, (6, 3, 4), {"debias": True, "unbiased": False}),
    "batch_average": ("BatchNorm", 4, (6, 3, 4), {"momentum": None, "use_gamma": False}),
    "batch_virtual": ("BatchNorm", 4, (6, 3, 4), {"num_virtual_batches": 3}),
    "batch_renorm": ("BatchNorm", 4, (6, 3, 4), {"train_statistics": "renorm"}),
    "batch_channels": ("BatchNorm", 3, (6, 3, 4), {"feature_axes": 1}),
    "layer": ("LayerNorm", 4, (6, 3, 4), {}),
    "layer_axes": (
        "LayerNorm",
        (3, 4),
        (6, 3, 4),
        {"reduction_axes": (1, 2), "feature_axes": (-1, 1)},
    ),
    "layer_beta": ("LayerNorm", 4, (6, 3, 4), {"use_gamma": False, "gamma_offset": 1.0}),
    "rms": ("RMSNorm", 4, (6, 3, 4), {}),
    "rms_cast": ("RMSNorm", 4, (6, 3, 4), {"cast_before_gamma": True, "gamma_offset": 1.0}),
    "group": ("GroupNorm", 4, (6, 3, 4), {"num_groups": 2}),
    "group_size": ("GroupNorm", 4, (6, 4, 3), {"group_size": 2, "channel_axis": 1}),
    "instance": ("InstanceNorm", 4, (6, 3, 4), {}),
    "whiten": ("DecorrelatedBatchNorm", 4, (6, 3, 4), {"num_groups": 2}),
    "whiten_iterative": ("DecorrelatedBatchNorm", 4, (6, 3, 4), {"method": "iterative"}),
}
TRAINED = ("BatchNorm", "DecorrelatedBatchNorm")


def draw(rng, shape, dtype=jnp.float32):
    return jnp.asarray(rng.normal(0.5, 2, shape), dtype)


def make_twins(rng, name, sizes, shape, options):
    """Returns a linen module, its variables with random values, and the NNX module with them."""
    twin = getattr(jaxnorm.nnx, name)(sizes, **options)
    linen = getattr(jaxnorm.linen, name)(**options)
    training = {"use_running_average": True} if name in TRAINED else {}
    variables = nn.unbox(linen.init(KEY, jnp.zeros(shape), **training))
    variables = jax.tree.map(lambda a: jnp.abs(draw(rng, a.shape, a.dtype)), variables)
    nnx.update(twin, merged(variables))
    return linen, variables, twin


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
