"""The entries of the norms by the size of responses."""

import numpy as np

import jaxnorm
from tests.contract.norm import NOT_CENTERED, Norm, over
from tests.support import reference


def over_length(v, epsilon):
    """v / max(|v|, epsilon), over the last axis (Nguyen & Salazar 2019, equation 5)."""
    return v / np.maximum(np.sqrt((np.abs(v) ** 2).sum(-1, keepdims=True)), epsilon)


def over_length_vjp(v, g, epsilon):
    """(g - v_hat sum(g v_hat)) / |v|, or g / epsilon where |v| is smaller."""
    length = np.sqrt((np.abs(v) ** 2).sum(-1, keepdims=True))
    hat = v / np.maximum(length, epsilon)
    inner = np.where(length > epsilon, hat * (g * hat).sum(-1, keepdims=True), 0)
    return (g - inner) / np.maximum(length, epsilon)


RESPONSE = [
    Norm(
        name="lp_norm",
        public="lp_norm",
        function=jaxnorm.lp_norm,
        pools=over(-1),
        feature_axes=(-1,),
        formula=over_length,
        vjp=over_length_vjp,
        takes=frozenset({"gamma", "mask", "dtype", "epsilon"}),
        shapes={"plain": (8, 16), "five": (3, 5), "many": (2, 100_000), "large": (1024, 768)},
        exempt={"shift": NOT_CENTERED, "constant": NOT_CENTERED},
    ),
    Norm(
        name="filter_response_norm",
        public="filter_response_norm",
        function=jaxnorm.filter_response_norm,
        pools=lambda shape: reference.pools_over(shape, range(1, len(shape) - 1)),
        feature_axes=(-1,),
        formula=reference.over_rms,
        vjp=reference.over_rms_vjp,
        shapes={
            "plain": (8, 3, 4, 8),
            "five": (2, 5, 1, 3),
            "many": (1, 250, 400, 2),
            "large": (8, 28, 28, 64),
        },
        exempt={"shift": NOT_CENTERED, "constant": NOT_CENTERED},
    ),
]
