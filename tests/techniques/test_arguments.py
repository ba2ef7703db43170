"""Complex input, axes and the errors of the catalogue's functions."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm

pytestmark = pytest.mark.quickly_compiled

GRAPHS = np.array([0, 1, 0, 1])

# Functions of x that turn with it: f(e^(i t) x) = e^(i t) f(x).
TURNING = {
    "lp_norm": lambda x, **o: jaxnorm.lp_norm(x, p=3, **o),
    "lp_norm_inf": lambda x, **o: jaxnorm.lp_norm(x, p=jnp.inf, **o),
    "filter_response_norm": lambda x, **o: jaxnorm.filter_response_norm(
        x, learned_epsilon=0.1, **o
    ),
    "global_response_norm": jaxnorm.global_response_norm,
    "local_response_norm": lambda x: jaxnorm.local_response_norm(x, size=3),
    "divisive_norm": lambda x, **o: jaxnorm.divisive_norm(x, axis=1, window=3, **o),
    "gated_rms_norm": lambda x: jaxnorm.gated_rms_norm(x, jnp.cos(jnp.abs(x))),
    "switchable_norm": lambda x, **o: jaxnorm.switchable_norm(x, jnp.ones(3), jnp.ones(3), **o)[0],
    "batch_instance_norm": lambda x, **o: jaxnorm.batch_instance_norm(x, 0.5, **o)[0],
    "graph_norm": lambda x, **o: jaxnorm.graph_norm(x, GRAPHS, num_segments=2, alpha=0.5, **o),
    "pair_norm": lambda x, **o: jaxnorm.pair_norm(x, GRAPHS, num_segments=2, **o),
    "cumulative_norm": lambda x, **o: jaxnorm.cumulative_norm(x, axis=-1, **o)[0],
    "adaptive_instance_norm": lambda x, **o: jaxnorm.adaptive_instance_norm(x, 2 * x, **o),
}


@pytest.mark.parametrize("name", TURNING)
def test_complex(name, rng):
    function = TURNING[name]
    x = np.complex64(rng.normal(1, 2, (4, 3, 5)) + 1j * rng.normal(size=(4, 3, 5)))
    masks = [{}]
    if name not in ("local_response_norm", "gated_rms_norm"):
        masks.append({"mask": rng.random((4, 3, 1)) < 0.7})
    turn = np.complex64(np.exp(0.7j))

    @jax.jit
    def run(xs, real, zeros):
        found = [
            (jax.vmap(lambda x, m=m: function(x, **m))(xs), function(real, **m)) for m in masks
        ]
        return found, jax.grad(lambda x: jnp.sum(jnp.abs(function(x)) ** 2))(zeros)

    found, zero = run(np.stack([x, x * turn, x.real]), x.real, np.zeros_like(x))
    for of_each, expected in found:
        y, turned, real = np.asarray(of_each)
        assert y.dtype == np.complex64
        np.testing.assert_allclose(turned, y * turn, atol=4e-6 * max(1, np.abs(y).max()))
        np.testing.assert_allclose(real, expected, atol=4e-6 * max(1, np.abs(expected).max()))
    assert np.isfinite(zero).all()


def test_polynomials_and_squashing_of_complex_numbers(rng):
    x = jnp.asarray(rng.normal(size=(3, 8)) + 1j * rng.normal(size=(3, 8)), jnp.complex64)
    wide = np.asarray(x, np.complex128)
    y = jaxnorm.poly_norm(x, jnp.asarray([1.0, 2.0, 3.0]))
    terms = [(w, wide**n) for w, n in ((1, 3), (2, 2), (3, 1))]
    scaled = [w * t / np.sqrt((np.abs(t) ** 2).mean(-1, keepdims=True) + 1e-6) for w, t in terms]
    np.testing.assert_allclose(y, sum(scaled), atol=8e-6)
    np.testing.assert_allclose(jaxnorm.dynamic_tanh(x, 0.5), np.tanh(0.5 * wide), atol=4e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: jaxnorm.dynamic_erf(x, 1.0),
        lambda x: jaxnorm.evo_norm_s0(x, num_groups=1),
        lambda x: jaxnorm.evo_norm_b0(x, axis=(0, 1)),
        lambda x: jaxnorm.filter_response_norm(x, tau=0.0),
    ],
)
def test_what_complex_numbers_have_no_part_in(call):
    with pytest.raises(TypeError, match="x must have a real floating-point dtype, got complex64"):
        call(jnp.ones((2, 3, 4), jnp.complex64))


X = np.ones((2, 3, 4), np.float32)

ERRORS = {
    "p must be at least 1, got 0.5": lambda: jaxnorm.lp_norm(X, p=0.5),
    "size must be at least 1, got 0": lambda: jaxnorm.local_response_norm(X, size=0),
    "window=4 must be odd": lambda: jaxnorm.divisive_norm(X, axis=1, window=4),
    "window=(3, 3) has 2 sizes for axis=1": lambda: jaxnorm.divisive_norm(X, axis=1, window=(3, 3)),
    "weights must have shape (3,)": lambda: jaxnorm.poly_norm(X, jnp.ones(2)),
    "bias must be a single number": lambda: jaxnorm.poly_norm(X, jnp.ones(3), jnp.ones(4)),
    "gate of shape (2, 3, 1) must have": lambda: jaxnorm.gated_rms_norm(X, X[..., :1]),
    "group_size=3 does not divide the 4 features": lambda: jaxnorm.gated_rms_norm(
        X, X, group_size=3
    ),
    "group_size=2 needs a single axis": lambda: jaxnorm.gated_rms_norm(
        X, X, group_size=2, axis=(1, 2)
    ),
    "num_groups=3 does not divide the 4 channels": lambda: jaxnorm.evo_norm_s0(X, num_groups=3),
    "axis=0 must hold the batch's axis and those": lambda: jaxnorm.evo_norm_b0(X, axis=0),
    "has no axis besides the batch and the channels": lambda: jaxnorm.global_response_norm(X[0]),
    "axis=(1, 2) contains the channel axis 2": lambda: jaxnorm.global_response_norm(X, axis=(1, 2)),
    "style of shape (2, 3, 5) does not fit": lambda: jaxnorm.adaptive_instance_norm(
        X, jnp.ones((2, 3, 5))
    ),
    "mean_weights must have shape (3,)": lambda: jaxnorm.switchable_norm(
        X, jnp.ones(2), jnp.ones(3)
    ),
    "axis 0 of the input of shape (2, 3, 4) holds the examples": lambda: (
        jaxnorm.batch_instance_norm(X, 0.5, axis=(0, 1))
    ),
    "batch_moments.mean of shape (3,) does not fit": lambda: jaxnorm.batch_instance_norm(
        X, 0.5, batch_moments=(jnp.ones(3), jnp.ones(3), 1.0)
    ),
    "style of shape (5,) must have 3 factors": lambda: jaxnorm.demodulate(
        X, jnp.ones(5), axis=(0, 1)
    ),
    "segment_ids must have shape (2,)": lambda: jaxnorm.pair_norm(X, GRAPHS, num_segments=2),
    "alpha of shape (3,) does not fit": lambda: jaxnorm.dynamic_tanh(X, jnp.ones(3)),
    "rho of shape (3,) does not fit": lambda: jaxnorm.batch_instance_norm(X, jnp.ones(3)),
    "tau of shape (3,) does not fit": lambda: jaxnorm.filter_response_norm(X, tau=jnp.ones(3)),
    "var of shape (3,) does not fit": lambda: jaxnorm.evo_norm_b1(X, axis=(0, 1), var=jnp.ones(3)),
    "epsilon must be finite and at least 0": lambda: jaxnorm.pair_norm(X, epsilon=-1.0),
    "time_axis=3 is out of range": lambda: jaxnorm.cumulative_norm(X, axis=2, time_axis=3),
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        ERRORS[text]()


def test_huge_and_tiny_vectors_have_their_length(rng):
    x = rng.normal(size=(3, 8))
    for p in (1, 2, 3.5, np.inf):
        expected = x / np.linalg.norm(x, p, axis=-1, keepdims=True)
        compiled = jax.jit(functools.partial(jaxnorm.lp_norm, p=p, epsilon=0.0))
        for scale in (1e37, 1e30, 1e-30):
            np.testing.assert_allclose(compiled(np.float32(x * scale)), expected, atol=4e-6)
    # The powers of what follows are infinite in float32; the norms are not.
    y = jaxnorm.poly_norm(jnp.asarray(1e20 * x, jnp.float32), jnp.asarray([0.0, 0.0, 1.0]))
    np.testing.assert_allclose(y, x / np.sqrt((x**2).mean(-1, keepdims=True)), atol=4e-6)
    positions = jnp.asarray(1e30 * x[:, None], jnp.float32)
    y = jaxnorm.global_response_norm(positions) / 1e30
    expected = x * np.abs(x) / np.abs(x).mean(-1, keepdims=True) + x
    np.testing.assert_allclose(y[:, 0], expected, atol=1e-5)


def test_two_axes_and_channels_first(rng):
    x = np.float32(rng.normal(0.5, 2, (2, 8, 3, 5)))
    gamma = np.float32(rng.normal(1, 0.3, 8))
    one, three = np.float32([1, 1, 1]), np.float32([0.1, 0.5, -0.3])
    norms = (
        lambda x, c: jaxnorm.filter_response_norm(x, gamma, tau=gamma, channel_axis=c),
        lambda x, c: jaxnorm.global_response_norm(x, gamma, channel_axis=c),
        lambda x, c: jaxnorm.local_response_norm(x, size=4, channel_axis=c),
        lambda x, c: jaxnorm.evo_norm_s0(x, gamma, num_groups=2, channel_axis=c),
        lambda x, c: jaxnorm.switchable_norm(x, one, three, gamma, channel_axis=c)[0],
        lambda x, c: jaxnorm.batch_instance_norm(x, gamma, channel_axis=c)[0],
        lambda x, c: jaxnorm.adaptive_instance_norm(x, x + 1, channel_axis=c),
        lambda x, c: jaxnorm.evo_norm_b0(
            x, gamma, gamma, axis=tuple(a for a in range(4) if a != c % 4)
        )[0],
    )
    compiled = jax.jit(lambda x, last: [(norm(x, 1), norm(last, -1)) for norm in norms])
    for y, expected in compiled(x, np.moveaxis(x, 1, -1)):
        np.testing.assert_allclose(np.moveaxis(y, 1, -1), expected, atol=8e-6)


def test_filter_response_norm_after_a_dense_layer(rng):
    x = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    y = jaxnorm.filter_response_norm(x, learned_epsilon=-0.5, epsilon=0.0)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(y, exact / np.sqrt(exact**2 + 0.5), atol=4e-6)
    np.testing.assert_allclose(
        jaxnorm.filter_response_norm(x, epsilon=0.5), exact / np.sqrt(exact**2 + 0.5), atol=4e-6
    )


def test_demodulate_without_a_style_is_weight_norm(rng):
    w = jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32)
    y = jaxnorm.demodulate(w, axis=(0, 1))
    np.testing.assert_allclose(y, jaxnorm.weight_norm(w, axis=(0, 1), epsilon=1e-8), atol=1e-6)
    one = jaxnorm.demodulate(w, jnp.ones(4), axis=(0, 1))
    np.testing.assert_allclose(one, y, atol=1e-6)
