"""The entries of weights: a large kernel of a convolution and of a dense layer."""

from __future__ import annotations

import functools

import numpy as np

import jaxnorm
from jaxnorm.cli.bench.catalogue import by_hand
from jaxnorm.cli.bench.catalogue.entry import Entry, Shape

KERNELS = ((3, 3, 512, 512), (4096, 4096))


def list_entries() -> list[Entry]:
    """Returns each function with each kernel."""
    return [entry for shape in KERNELS for entry in _of_kernel(shape)]


def _of_kernel(shape: Shape) -> list[Entry]:
    axes = tuple(range(len(shape) - 1))
    inputs, units = shape[-2:]

    def entry(name, parameters, others, constants=(), **options):
        call = functools.partial(getattr(jaxnorm, name), **options)
        return Entry(name, shape, call, parameters, constants, others=others)

    def standardized(name, scaled):
        hand = functools.partial(by_hand.weight_standardize, axes=axes, scaled=scaled)
        return entry(name, ((units,),), {"by hand": hand}, axis=axes)

    u = np.random.default_rng(0).standard_normal(units, np.float32)
    demodulate = functools.partial(by_hand.demodulate, axes=axes)
    return [
        entry("weight_norm", ((units,),), {"flax.linen": _flax_weight_norm}, axis=axes),
        entry("spectral_norm", (), {"flax.linen": _flax_spectral_norm}, (u,)),
        standardized("weight_standardize", False),
        standardized("scaled_weight_standardize", True),
        entry("demodulate", ((inputs,),), {"by hand": demodulate}, axis=axes),
    ]


def _flax_weight_norm(*arrays):
    from jaxnorm.cli.bench.catalogue import of_flax

    return of_flax.weight_norm(*arrays)


def _flax_spectral_norm(*arrays):
    from jaxnorm.cli.bench.catalogue import of_flax

    return of_flax.spectral_norm(*arrays)
