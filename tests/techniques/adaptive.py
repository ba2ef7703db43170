"""Formulas of instance norms with statistics from elsewhere, in float64."""

import functools

import numpy as np

import jaxnorm
from tests.techniques.technique import CENTERED, Technique, mean_of, var_of

AFFINE = (("gamma", (4,)), ("beta", (4,)))
IMAGE = (3, 4, 5, 4)


def adain(x, style, mask=None):
    """Huang & Belongie 2017, equation 8."""
    mean, var = mean_of(style, (1, 2)), var_of(style, (1, 2))
    centered = x - mean_of(x, (1, 2), mask)
    return np.sqrt(var + 1e-5) * centered / np.sqrt(var_of(x, (1, 2), mask) + 1e-5) + mean


def softmax(w):
    return np.exp(w) / np.exp(w).sum()


def switchable(x, mean_weights, var_weights, gamma, beta, mask=None):
    """Luo et al. 2018, equation 3."""
    pools = ((1, 2), (1, 2, 3), (0, 1, 2))
    means, variances = softmax(mean_weights), softmax(var_weights)
    mean = sum(w * mean_of(x, axes, mask) for w, axes in zip(means, pools, strict=True))
    var = sum(w * var_of(x, axes, mask) for w, axes in zip(variances, pools, strict=True))
    return gamma * (x - mean) / np.sqrt(var + 1e-5) + beta


def batch_instance(x, rho, gamma, beta, mask=None):
    """Nam & Kim 2018, equation 3."""
    parts = [
        (x - mean_of(x, axes, mask)) / np.sqrt(var_of(x, axes, mask) + 1e-5)
        for axes in ((0, 1, 2), (1, 2))
    ]
    rho = np.clip(rho, 0, 1)
    return gamma * (rho * parts[0] + (1 - rho) * parts[1]) + beta


def demodulated(w, style):
    """Karras et al. 2020, equations 1 and 3."""
    scaled = w * style.reshape(2, 1, 4, 1)
    return scaled / np.sqrt((scaled**2).sum((1, 2), keepdims=True) + 1e-8)


ADAPTIVE = [
    Technique(
        name="adaptive_instance_norm",
        public="adaptive_instance_norm",
        function=jaxnorm.adaptive_instance_norm,
        reference=adain,
        shape=IMAGE,
        parameters=(("style", (3, 2, 3, 4)),),
        means=CENTERED,
    ),
    Technique(
        name="switchable_norm",
        public="switchable_norm",
        function=lambda x, *p, **o: jaxnorm.switchable_norm(x, *p, **o)[0],
        reference=switchable,
        shape=IMAGE,
        parameters=(("weights", (3,)), ("weights", (3,)), *AFFINE),
        means=CENTERED,
    ),
    Technique(
        name="batch_instance_norm",
        public="batch_instance_norm",
        function=lambda x, *p, **o: jaxnorm.batch_instance_norm(x, *p, **o)[0],
        reference=batch_instance,
        shape=IMAGE,
        parameters=(("rho", (4,)), *AFFINE),
        means=CENTERED,
    ),
    Technique(
        name="demodulate",
        public="demodulate",
        function=functools.partial(jaxnorm.demodulate, axis=(0, 1)),
        reference=demodulated,
        shape=(3, 4, 5),
        parameters=(("style", (2, 4)),),
        masked=False,
        has_dtype=False,
    ),
]
