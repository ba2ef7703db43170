"""The entries of the norms that pool over examples."""

import jax.numpy as jnp
import numpy as np

import jaxnorm
from tests.contract.norm import STOPPED, Norm, first, over
from tests.support import reference

GIVEN = jaxnorm.Moments(np.float32(3.0), np.float32(4.0), np.float32(1.0))


def standardize_given(x, **given):
    scalar = (1,) * x.ndim
    moments = jaxnorm.Moments(*(np.full(scalar, m) for m in GIVEN))
    return jaxnorm.standardize(x, moments, axis=0, feature_axes=-1, **given)


RUNNING = (3.0, 4.0)  # mean and variance


def with_running(function, **options):
    """A function of the input and of running moments, its first result."""

    def call(x, **given):
        moments = jaxnorm.Moments(*(np.full(x.shape[1:], m, np.float32) for m in (*RUNNING, 1.0)))
        return function(x, moments, axis=0, **options, **given)[0]

    return call


R_MAX, D_MAX = 1.2, 0.5


def corrections(v, epsilon):
    """r and d of Ioffe 2017, algorithm 1."""
    mean, root = RUNNING[0], np.sqrt(RUNNING[1] + epsilon)
    sigma = np.sqrt(v.var(-1, keepdims=True) + epsilon)
    d = (v.mean(-1, keepdims=True) - mean) / root
    # Of a complex d the length is limited, which for a real one is to clip it.
    return np.clip(sigma / root, 1 / R_MAX, R_MAX), d * (D_MAX / np.maximum(np.abs(d), D_MAX))


def renormalized(v, epsilon):
    """v_hat r + d."""
    r, d = corrections(v, epsilon)
    return reference.standardized(v, epsilon) * r + d


def renormalized_vjp(v, g, epsilon):
    """That of v_hat, times r: r and d are constants for differentiation."""
    return reference.standardized_vjp(v, g, epsilon) * corrections(v, epsilon)[0]


WEIGHT = 0.5


def blended(v, epsilon):
    """(v - m) / sqrt(s + epsilon), m and s half the pool's mean and variance, half the running."""
    centered, root = blend(v, epsilon)
    return centered / root


def blend(v, epsilon):
    mean, var = v.mean(-1, keepdims=True), v.var(-1, keepdims=True)
    mean, var = (WEIGHT * a + (1 - WEIGHT) * b for a, b in zip((mean, var), RUNNING, strict=True))
    return v - mean, np.sqrt(var + epsilon)


def blended_vjp(v, g, epsilon):
    """(g - w mean(g)) / root - w (v - mean) mean(g (v - m)) / root^3."""
    centered, root = blend(v, epsilon)
    through_var = reference.centered_at_mean(v) * (g * centered).mean(-1, keepdims=True)
    return (g - WEIGHT * g.mean(-1, keepdims=True)) / root - WEIGHT * through_var / root**3


def two_parts(shape):
    """Pools over axis 0, of its first and of its second half."""
    indices = np.arange(int(np.prod(shape))).reshape(2, shape[0] // 2, -1)
    return indices.transpose(0, 2, 1).reshape(-1, shape[0] // 2)


def two_segments(shape):
    """Pools over axis 0, of its even and of its odd places."""
    indices = np.arange(int(np.prod(shape))).reshape(shape[0] // 2, 2, -1)
    return indices.transpose(1, 2, 0).reshape(-1, shape[0] // 2)


def segment_batch_norm(x, **given):
    ids = jnp.arange(x.shape[0]) % 2
    return jaxnorm.segment_batch_norm(x, ids, num_segments=2, axis=0, **given)[0]


def batch_norm_step(x, **given):
    """In training, at the start of it."""
    # An input of integers is an error of the step, not of what it starts with.
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.float32
    running = jaxnorm.init_running(x.shape[1:], dtype=dtype)
    return jaxnorm.batch_norm_step(x, running, training=True, axis=0, **given)[0]


GIVEN_MOMENTS = "its moments are arguments, which the input does not change"
MOVED = "the running moments, which the input does not change, are half of its own"

BATCH = [
    Norm(
        name="batch_norm",
        public="batch_norm",
        function=first(jaxnorm.batch_norm, axis=0),
        pools=over(0),
        feature_axes=(-1,),
        shapes={"plain": (8, 16), "five": (5, 3), "many": (100_000, 2), "large": (2048, 128)},
    ),
    Norm(
        name="batch_norm_conv",
        public="batch_norm",
        function=first(jaxnorm.batch_norm, axis=(0, 1, 2)),
        pools=over(0, 1, 2),
        feature_axes=(-1,),
        shapes={
            "plain": (8, 2, 3, 8),
            "five": (5, 1, 1, 3),
            "many": (40, 50, 50, 2),
            "large": (16, 28, 28, 32),
        },
    ),
    Norm(
        name="ghost_batch_norm",
        public="ghost_batch_norm",
        function=first(jaxnorm.ghost_batch_norm, num_virtual_batches=2, axis=0),
        pools=two_parts,
        feature_axes=(-1,),
        shapes={"plain": (8, 16), "five": (10, 3), "many": (200_000, 2), "large": (2048, 128)},
        batch_size="2*b",
    ),
    Norm(
        name="segment_batch_norm",
        public="segment_batch_norm",
        function=segment_batch_norm,
        pools=two_segments,
        feature_axes=(-1,),
        shapes={"plain": (8, 16), "five": (10, 3), "many": (200_000, 2), "large": (2048, 128)},
        # Which segment each example belongs to, too.
        statistics=lambda shape: 5 * 2 * shape[1] + 2 * shape[0],
    ),
    Norm(
        name="batch_norm_step",
        public="batch_norm_step",
        function=batch_norm_step,
        pools=over(0),
        feature_axes=(-1,),
        shapes={"plain": (8, 16), "five": (5, 3), "many": (100_000, 2), "large": (4096, 256)},
    ),
    Norm(
        name="batch_renorm",
        public="batch_renorm",
        function=with_running(jaxnorm.batch_renorm, r_max=R_MAX, d_max=D_MAX),
        pools=over(0),
        feature_axes=(-1,),
        formula=renormalized,
        vjp=renormalized_vjp,
        shapes={"plain": (8, 16), "five": (5, 3), "many": (100_000, 2), "large": (2048, 128)},
        # The running moments, too; they may be arrays of the whole batch's pools.
        statistics=lambda shape: 7 * shape[1],
        exempt={"constant": MOVED, "second_order": STOPPED},
    ),
    Norm(
        name="blended_batch_norm",
        public="blended_batch_norm",
        function=with_running(jaxnorm.blended_batch_norm, weight=WEIGHT),
        pools=over(0),
        feature_axes=(-1,),
        formula=blended,
        vjp=blended_vjp,
        shapes={"plain": (8, 16), "five": (5, 3), "many": (100_000, 2), "large": (2048, 128)},
        # The running moments, too; they may be arrays of the whole batch's pools.
        statistics=lambda shape: 7 * shape[1],
        exempt={"constant": MOVED, "shift": MOVED, "scale": MOVED},
    ),
    Norm(
        name="standardize",
        public="standardize",
        function=standardize_given,
        pools=over(0),
        feature_axes=(-1,),
        formula=lambda v, epsilon: (v - 3.0) / np.sqrt(4.0 + epsilon),
        vjp=lambda v, g, epsilon: g / np.sqrt(4.0 + epsilon),
        shapes={"plain": (8, 16), "five": (5, 3), "many": (100_000, 2), "large": (2048, 128)},
        exempt={"shift": GIVEN_MOMENTS, "scale": GIVEN_MOMENTS, "constant": GIVEN_MOMENTS},
    ),
]
