"""Formulas of the norms by the size of responses, in float64."""

import functools

import numpy as np

import jaxnorm
from tests.techniques.technique import CENTERED, Technique, mean_of


def frn(x, gamma, beta, tau, learned, mask=None):
    """Singh & Krishnan 2019, equations 1 to 3."""
    scale = np.sqrt(mean_of(x**2, (1, 2), mask) + 1e-6 + np.abs(learned))
    return np.maximum(gamma * x / scale + beta, tau)


def grn(x, gamma, beta, mask=None):
    """Woo et al. 2023, algorithm 1."""
    kept = np.ones(x.shape) if mask is None else mask
    size = np.sqrt((np.where(kept > 0, x, 0) ** 2).sum((1, 2), keepdims=True))
    mean = mean_of(size, (-1,), kept.any((1, 2), keepdims=True))
    return gamma * x * size / (mean + 1e-6) + beta + x


def lrn(x):
    """Krizhevsky et al. 2012, section 3.3, alpha divided by the size."""
    total = np.zeros_like(x)
    for c in range(x.shape[-1]):
        total[..., c] = (x[..., max(0, c - 2) : c + 2] ** 2).sum(-1)
    return x / (2 + 0.5 * total / 4) ** 0.75


def divisive(x, gamma, beta, sigma, mask=None, windows=((1, 1), (2, 2)), center=True):
    """Ren et al. 2016, equation 3; `windows` are pairs of an axis and how far it reaches."""
    kept = np.ones(x.shape) if mask is None else np.asarray(mask, float)

    def local_mean(v):
        total, count = np.where(kept > 0, v, 0), kept
        for axis, side in windows:
            total, count = (window_total(a, axis, side) for a in (total, count))
        return total / np.maximum(count, 1)

    v = x - local_mean(x) if center else x
    return gamma * v / np.sqrt(sigma**2 + local_mean(v**2)) + beta


def window_total(a, axis, side):
    moved = np.moveaxis(a, axis, 0)
    parts = [moved[max(0, i - side) : i + side + 1].sum(0) for i in range(len(moved))]
    return np.moveaxis(np.stack(parts), 0, axis)


def length(x, gamma, mask=None, p=2.0):
    kept = np.abs(x) if mask is None else np.where(mask, np.abs(x), 0)
    size = (
        kept.max(-1, keepdims=True) if p == np.inf else (kept**p).sum(-1, keepdims=True) ** (1 / p)
    )
    return gamma * x / np.maximum(size, 1e-12)


CHANNELS = (("gamma", (4,)), ("beta", (4,)))


def _frn(x, gamma, beta, tau, learned, **options):
    return jaxnorm.filter_response_norm(x, gamma, beta, tau=tau, learned_epsilon=learned, **options)


def _divisive(x, gamma, beta, sigma, **options):
    return jaxnorm.divisive_norm(x, gamma, beta, sigma=sigma, **options)


RESPONSE = [
    *(
        Technique(
            name=f"lp_norm_{p}",
            public="lp_norm",
            function=functools.partial(jaxnorm.lp_norm, p=p),
            reference=functools.partial(length, p=p),
            shape=(3, 8),
            parameters=(("gamma", (8,)),),
        )
        for p in (1, 3.5, np.inf)
    ),
    Technique(
        name="filter_response_norm_learned",
        public="filter_response_norm",
        function=_frn,
        reference=frn,
        shape=(2, 3, 5, 4),
        parameters=(*CHANNELS, ("tau", (4,)), ("epsilon", (4,))),
    ),
    Technique(
        name="global_response_norm",
        public="global_response_norm",
        function=jaxnorm.global_response_norm,
        reference=grn,
        shape=(2, 3, 5, 4),
        parameters=CHANNELS,
    ),
    Technique(
        name="local_response_norm",
        public="local_response_norm",
        function=functools.partial(jaxnorm.local_response_norm, size=4, alpha=0.5, k=2.0),
        reference=lrn,
        shape=(3, 2, 7),
        masked=False,
    ),
    Technique(
        name="divisive_norm",
        public="divisive_norm",
        function=functools.partial(_divisive, axis=(-2, 1), window=(5, 3)),
        reference=divisive,
        shape=(2, 6, 7, 4),
        parameters=(*CHANNELS, ("sigma", (4,))),
        means=CENTERED,
    ),
    Technique(
        name="divisive_norm_uncentered",
        public="divisive_norm",
        function=functools.partial(_divisive, axis=-1, window=3, center=False),
        reference=functools.partial(divisive, windows=((2, 1),), center=False),
        shape=(2, 3, 4),
        parameters=(*CHANNELS, ("sigma", (4,))),
    ),
]
