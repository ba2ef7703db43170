"""What the tests of whitening share."""

import functools

import numpy as np

# Contract 1 allows 4e-6 for outputs near 1. Here the float32 covariance is inverted, which
# amplifies its rounding errors by the ratio of its eigenvalues, below 50 in these tests.
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
METHODS = ("zca", "iterative")


def correlated(rng, *shape):
    """Examples whose last axis is correlated, of means and scales that differ."""
    mix = np.eye(shape[-1]) + 0.4 * rng.normal(size=(shape[-1], shape[-1])) / shape[-1] ** 0.5
    return rng.normal(size=shape) @ mix * rng.uniform(0.7, 1.5, shape[-1]) + rng.normal(
        size=shape[-1]
    )


def zca(x, epsilon=1e-5):
    """Huang et al. 2018, equations 3 and 4: x is [examples, units]; returns y, mean, projection."""
    centered = x - x.mean(0)
    values, vectors = np.linalg.eigh(centered.T @ centered.conj() / len(x))
    projection = (vectors / np.sqrt(values + epsilon)) @ vectors.conj().T
    return centered @ projection.T, x.mean(0), projection
