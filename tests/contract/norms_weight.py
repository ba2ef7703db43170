"""The entries of the norms of weights, whose gain is given as gamma."""

import numpy as np

import jaxnorm
from tests.contract.norm import NOT_CENTERED, STOPPED, Norm, over
from tests.support import reference

COLUMNS = 8  # output units of the weights that spectral norm is tested on


def spectral_norm(x, epsilon):
    return jaxnorm.spectral_norm(x, np.linspace(1, 2, COLUMNS), n_steps=1, epsilon=epsilon)[0]


def singular_pair(w):
    """Miyato et al. 2018, algorithm 1: one step of power iteration, then sigma = v^H W u."""
    u = np.linspace(1, 2, COLUMNS)
    v = w @ u
    u = w.conj().T @ (v / np.linalg.norm(v))
    u = u / np.linalg.norm(u)
    v = w @ u
    return v / np.linalg.norm(v), u, np.linalg.norm(v)


def over_sigma(v, epsilon):
    """W / sigma, of the whole matrix."""
    return v / singular_pair(v.reshape(-1, COLUMNS))[2]


def over_sigma_vjp(v, g, epsilon):
    """(G - <G, W / sigma> v u^H) / sigma (their equation 12), v and u constants."""
    w, g = v.reshape(-1, COLUMNS), g.reshape(-1, COLUMNS)
    left, right, sigma = singular_pair(w)
    return ((g - (g * w).sum() / sigma * np.outer(left, right)) / sigma).reshape(v.shape)


def weights(function, **options):
    """A function of weights, its gain given as gamma."""

    def call(x, gamma=None, *, epsilon):
        return function(x, gamma, epsilon=epsilon, **options)

    return call


def over_length(v, epsilon):
    """v / sqrt(sum |v|^2 + epsilon) (Salimans & Kingma 2016, equation 2 with g = 1)."""
    return v / np.sqrt((np.abs(v) ** 2).sum(-1, keepdims=True) + epsilon)


def over_length_vjp(v, g, epsilon):
    """(g - v_hat sum(g v_hat)) / sqrt(sum |v|^2 + epsilon) (their equation 4)."""
    hat = over_length(v, epsilon)
    length = np.sqrt((np.abs(v) ** 2).sum(-1, keepdims=True) + epsilon)
    return (g - hat * (g * hat).sum(-1, keepdims=True)) / length


NO_PADDING = "it normalizes weights, of which none is padding"

WEIGHT = [
    Norm(
        name="spectral_norm",
        public="spectral_norm",
        function=spectral_norm,
        pools=lambda shape: np.arange(int(np.prod(shape)))[None],
        feature_axes=(-1,),
        formula=over_sigma,
        vjp=over_sigma_vjp,
        takes=frozenset({"epsilon"}),
        called={"x": "w"},
        batch_axis=None,
        shapes={
            "plain": (8, 2, 8),
            "five": (5, 1, 8),
            "many": (12_500, 8),
            "large": (9, 512, 8),
        },
        # The two singular vectors and the value.
        statistics=lambda shape: int(np.prod(shape)) // COLUMNS + COLUMNS + 1,
        exempt={
            "masks": NO_PADDING,
            "shift": NOT_CENTERED,
            "constant": NOT_CENTERED,
            "second_order": STOPPED,
        },
    ),
    Norm(
        name="weight_norm",
        public="weight_norm",
        function=weights(jaxnorm.weight_norm, axis=(-2, 0)),
        pools=over(0, 1),
        feature_axes=(-1,),
        formula=over_length,
        vjp=over_length_vjp,
        takes=frozenset({"gamma", "epsilon"}),
        called={"x": "v", "gamma": "g"},
        batch_axis=None,
        shapes={
            "plain": (8, 2, 8),
            "five": (5, 1, 3),
            "many": (50_000, 2, 2),
            "large": (9, 256, 128),
        },
        exempt={"masks": NO_PADDING, "shift": NOT_CENTERED, "constant": NOT_CENTERED},
    ),
    Norm(
        name="weight_standardize",
        public="weight_standardize",
        function=weights(jaxnorm.weight_standardize, axis=(-2, 0)),
        pools=over(0, 1),
        feature_axes=(-1,),
        takes=frozenset({"gamma", "epsilon"}),
        called={"x": "w", "gamma": "gain"},
        batch_axis=None,
        shapes={
            "plain": (8, 2, 8),
            "five": (5, 1, 3),
            "many": (50_000, 2, 2),
            "large": (9, 256, 128),
        },
        exempt={"masks": NO_PADDING},
    ),
    Norm(
        name="scaled_weight_standardize",
        public="scaled_weight_standardize",
        function=weights(jaxnorm.scaled_weight_standardize, axis=(-2, 0)),
        pools=over(0, 1),
        feature_axes=(-1,),
        formula=lambda v, e: reference.standardized(v, e / v.shape[-1]) / v.shape[-1] ** 0.5,
        vjp=lambda v, g, e: reference.standardized_vjp(v, g, e / v.shape[-1]) / v.shape[-1] ** 0.5,
        takes=frozenset({"gamma", "epsilon"}),
        called={"x": "w", "gamma": "gain"},
        batch_axis=None,
        shapes={
            "plain": (8, 2, 8),
            "five": (5, 1, 3),
            "many": (50_000, 2, 2),
            "large": (9, 256, 128),
        },
        exempt={"masks": NO_PADDING},
    ),
]
