"""The entries of whitening, whose pools are all units of all examples together."""

import numpy as np

import jaxnorm
from tests.contract.norm import Norm, first, over

UNITS = 8  # per example, of the entry that whitens them together


def spectrum(v, epsilon):
    """Centered examples [m, UNITS], eigenvectors and roots of the eigenvalues + epsilon."""
    x = v.reshape(-1, UNITS)
    centered = x - x.mean(0)
    values, vectors = np.linalg.eigh(centered.T @ centered.conj() / len(x))
    return centered, vectors, np.sqrt(values + epsilon)


def whitened(v, epsilon):
    """Huang et al. 2018, equations 3 and 4: P (x - mean), P = V diag(roots)^-1 V^H."""
    centered, vectors, roots = spectrum(v, epsilon)
    projection = (vectors / roots) @ vectors.conj().T
    return (centered @ projection.T).reshape(v.shape)


def whitened_vjp(v, g, epsilon):
    """That of y = P (x - mean), by the divided differences of the inverse root.

    d(S^-1/2) = V (F * V^T dS V) V^T, F_ij = -1 / (r_i r_j (r_i + r_j)) (Daleckii & Krein 1965).
    """
    centered, vectors, roots = spectrum(v, epsilon)
    g = g.reshape(centered.shape)
    projection = (vectors / roots) @ vectors.T
    inner = centered.T @ g
    inner = vectors.T @ (inner + inner.T) @ vectors / 2
    inner = -inner / (roots[:, None] * roots * (roots[:, None] + roots))
    dx = g @ projection + 2 / len(centered) * centered @ vectors @ inner @ vectors.T
    return (dx - dx.mean(0)).reshape(v.shape)


def alone(x, **given):
    """Every unit a group of its own."""
    return jaxnorm.whiten(x, axis=0, num_groups=x.shape[-1], **given)[0]


MEAN, PROJECTION = 3.0, 0.5


def decorrelate_given(x, *, epsilon, **given):
    """Every unit a group of its own, with one mean and one projection."""
    del epsilon  # the projection has been computed with it
    mean = np.full(x.shape[1:], MEAN, np.float32)
    projection = np.full((x.shape[-1], 1, 1), PROJECTION, np.float32)
    return jaxnorm.decorrelate(x, (mean, projection, np.float32(1)), axis=0, **given)


TAKES = frozenset({"gamma", "beta", "dtype", "epsilon"})
ALL_UNITS = "it needs all units of an example or none; test_whitening.py masks examples"
COVARIANCE = "inverting a covariance amplifies errors; test_whitening.py bounds them"
MATRICES = "it keeps two matrices for each group of units, as test_whitening_gradients.py checks"
GIVEN = "its statistics are arguments, which the input does not change"

WHITENING = [
    Norm(
        name="whiten",
        public="whiten",
        function=first(jaxnorm.whiten, axis=(-2, 0)),
        pools=lambda shape: np.arange(int(np.prod(shape)))[None],
        feature_axes=(-1,),
        formula=whitened,
        vjp=whitened_vjp,
        takes=TAKES,
        shapes={
            "plain": (32, 8, UNITS),
            "five": (5, 4, UNITS),
            "many": (6250, 2, UNITS),
            "large": (2048, 16, UNITS),
        },
        exempt={
            "masks": ALL_UNITS,
            "exact": COVARIANCE,
            "dtypes": COVARIANCE,
            "complex": COVARIANCE,
            "constant": "a constant for all units is no constant for each; see whiten_alone",
            "memory": MATRICES,
            "shards": "the covariance needs units that lie on other devices, all of them",
            "scale": "the gradient is orthogonal to x - mean, which is not the whitened x",
        },
    ),
    Norm(
        name="whiten_alone",
        public="whiten",
        function=alone,
        pools=over(0),
        feature_axes=(-1,),
        takes=TAKES,
        shapes={"plain": (8, 16), "five": (5, 7), "many": (100_000, 2), "large": (2048, 128)},
        exempt={"masks": ALL_UNITS},
    ),
    Norm(
        name="decorrelate",
        public="decorrelate",
        function=decorrelate_given,
        pools=over(0),
        feature_axes=(-1,),
        formula=lambda v, epsilon: (v - MEAN) * PROJECTION,
        vjp=lambda v, g, epsilon: g * PROJECTION,
        takes=TAKES - {"epsilon"},
        shapes={"plain": (8, 16), "five": (5, 7), "many": (100_000, 2), "large": (4096, 64)},
        exempt={
            "masks": ALL_UNITS,
            "errors": "it takes no epsilon; test_whitening_errors.py has the errors that it raises",
            "shift": GIVEN,
            "scale": GIVEN,
            "constant": GIVEN,
        },
    ),
]
