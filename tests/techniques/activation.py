"""Formulas of activations in a norm's place, and of norms with one, in float64."""

import functools
import math

import numpy as np

import jaxnorm
from tests.contract.norm import first
from tests.techniques.technique import Technique, mean_of, var_of

AFFINE = (("gamma", (4,)), ("beta", (4,)))
IMAGE = (3, 4, 5, 4)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def over_rms(u, axes, epsilon, mask=None):
    return u / np.sqrt(mean_of(u**2, axes, mask) + epsilon)


def tanh(x, alpha, gamma, beta):
    """Zhu et al. 2025, equation 1."""
    return gamma * np.tanh(alpha * x) + beta


def erf(x, alpha, shift, gamma, beta):
    """Chen et al. 2025, equation 1."""
    return gamma * np.vectorize(math.erf)(alpha * x + shift) + beta


def poly(x, weights, bias, mask=None):
    """Zhuo et al. 2024, equation 5."""
    powers = (over_rms(x**n, (-1,), 1e-6, mask) for n in (3, 2, 1))
    return sum(w * p for w, p in zip(weights, powers, strict=True)) + bias


def gated(x, gate, gamma, groups=2, before=False):
    """Dao & Gu 2024, section 7: gated RMS norm in groups."""
    v = x if before else x * silu(gate)
    parts = np.split(v, groups, -1)
    y = gamma * np.concatenate([over_rms(part, (-1,), 1e-5) for part in parts], -1)
    return y * silu(gate) if before else y


def grouped(x, statistic, mask=None):
    """A statistic of two groups of channels of each example, for each element."""
    kept = np.ones(x.shape) if mask is None else mask
    halves = [np.split(a, 2, -1) for a in (x, kept)]
    parts = [statistic(v, (1, 2, 3), m) for v, m in zip(*halves, strict=True)]
    return np.concatenate([np.broadcast_to(p, halves[0][0].shape) for p in parts], -1)


def s0(x, v, gamma, beta, mask=None):
    """Liu et al. 2020, table 1: EvoNorm-S0."""
    return gamma * x * sigmoid(v * x) / np.sqrt(grouped(x, var_of, mask) + 1e-5) + beta


def s1(x, gamma, beta, mask=None):
    return s0(x, 1, gamma, beta, mask)


def s2(x, gamma, beta, mask=None):
    return gamma * silu(x) / np.sqrt(grouped(x**2, mean_of, mask) + 1e-5) + beta


def by_batch(x, other, gamma, beta, mask):
    batch = np.sqrt(var_of(x, (0, 1, 2), mask) + 1e-5)
    return gamma * x / np.maximum(batch, other) + beta


def b0(x, v, gamma, beta, mask=None):
    """Liu et al. 2020, table 1: EvoNorm-B0."""
    other = v * x + np.sqrt(var_of(x, (1, 2), mask) + 1e-5)
    return by_batch(x, other, gamma, beta, mask)


def b1(x, gamma, beta, mask=None):
    size = np.sqrt(mean_of(x**2, (1, 2), mask) + 1e-5)
    return by_batch(x, (x + 1) * size, gamma, beta, mask)


def b2(x, gamma, beta, mask=None):
    size = np.sqrt(mean_of(x**2, (1, 2), mask) + 1e-5)
    return by_batch(x, size - x, gamma, beta, mask)


def evolved(name, formula, **options):
    public = f"evo_norm_{name}"
    function = first(getattr(jaxnorm, public), **options)

    def call(x, *parameters, **given):
        named = dict(zip(("v", "gamma", "beta")[-len(parameters) :], parameters, strict=True))
        return function(x, **named, **given)

    return Technique(
        name=public,
        public=public,
        function=call,
        reference=formula,
        shape=IMAGE,
        parameters=((("v", (4,)), *AFFINE) if name[1] == "0" else AFFINE),
        # Both sides of the maximum are the same at zero.
        finite_at=(0.0, 1.0),
    )


ACTIVATION = [
    Technique(
        name="dynamic_tanh",
        public="dynamic_tanh",
        function=jaxnorm.dynamic_tanh,
        reference=tanh,
        shape=(3, 4),
        parameters=(("alpha", ()), *AFFINE),
        masked=False,
    ),
    Technique(
        name="dynamic_erf",
        public="dynamic_erf",
        function=jaxnorm.dynamic_erf,
        reference=erf,
        shape=(3, 4),
        parameters=(("alpha", ()), ("shift", (4,)), *AFFINE),
        masked=False,
    ),
    Technique(
        name="poly_norm",
        public="poly_norm",
        function=jaxnorm.poly_norm,
        reference=poly,
        shape=(4, 16),
        parameters=(("weights", (3,)), ("bias", ())),
    ),
    *(
        Technique(
            name=f"gated_rms_norm_{'before' if before else 'after'}",
            public="gated_rms_norm",
            function=functools.partial(
                jaxnorm.gated_rms_norm,
                group_size=4 if not before else None,
                norm_before_gate=before,
            ),
            reference=functools.partial(gated, before=before, groups=1 if before else 2),
            shape=(4, 8),
            parameters=(("gate", (4, 8)), ("gamma", (8,))),
            masked=False,
        )
        for before in (False, True)
    ),
    evolved("s0", s0, num_groups=2),
    evolved("s1", s1, num_groups=2),
    evolved("s2", s2, num_groups=2),
    evolved("b0", b0, axis=(0, 1, 2)),
    evolved("b1", b1, axis=(0, 1, 2)),
    evolved("b2", b2, axis=(0, 1, 2)),
]
