"""Every axis subset, order and sign, and every shape of gamma and beta, equals NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from tests.support import reference

pytestmark = pytest.mark.quickly_compiled

SHAPE = (2, 3, 4, 5)


def axis_tuples(rng, rank):
    """Every subset of the axes, each in a random order and with random signs."""
    for size in range(1, rank + 1):
        for axes in itertools.combinations(range(rank), size):
            yield tuple(int(a) - rank * rng.integers(2).item() for a in rng.permutation(axes))


def normalized(x, axes, epsilon=1e-5):
    axes = tuple(a % x.ndim for a in axes)
    x = reference.wide(x)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def test_every_axis_tuple(rng):
    x = rng.normal(1, 2, SHAPE).astype(np.float32)
    tuples = list(axis_tuples(rng, len(SHAPE)))

    @jax.jit
    def results(x):
        layer = [jaxnorm.layer_norm(x, axis=a, epsilon=1e-5) for a in tuples]
        batch = [jaxnorm.batch_norm(x, axis=a) for a in tuples]
        given = [
            jaxnorm.standardize(x, m, axis=a, epsilon=1e-5)
            for a, (_, m) in zip(tuples, batch, strict=True)
        ]
        return layer, batch, given

    for axes, layer, (batch, moments), given in zip(tuples, *results(x), strict=True):
        expected = normalized(x, axes)
        for y in (layer, batch, given):
            np.testing.assert_allclose(y, expected, atol=4e-6, err_msg=str(axes))
        positive = tuple(a % 4 for a in axes)
        np.testing.assert_allclose(moments.mean, reference.wide(x).mean(positive), atol=1e-6)
        np.testing.assert_allclose(moments.var, reference.wide(x).var(positive), atol=4e-6)
        assert float(moments.count) == np.prod([SHAPE[a] for a in positive])


def test_rms_norm_of_every_number_of_axes(rng):
    x = rng.normal(1, 2, SHAPE).astype(np.float32)
    tuples = list(axis_tuples(rng, len(SHAPE)))[2::3]
    assert {len(axes) for axes in tuples} == {1, 2, 3, 4}
    results = jax.jit(lambda x: [jaxnorm.rms_norm(x, axis=axes) for axes in tuples])(x)
    for axes, y in zip(tuples, results, strict=True):
        mean_square = (reference.wide(x) ** 2).mean(tuple(a % 4 for a in axes), keepdims=True)
        np.testing.assert_allclose(y, x / np.sqrt(mean_square + 1e-6), atol=4e-6)


@pytest.mark.parametrize("shape", [(7,), (1,), (3, 1), (1, 1, 4), (2, 1, 1, 1, 3)], ids=str)
def test_any_rank_and_axes_of_size_one(shape, rng):
    x = rng.normal(1, 2, shape).astype(np.float32)
    tuples = list(axis_tuples(rng, len(shape)))
    results = jax.jit(lambda x: [jaxnorm.layer_norm(x, axis=a, epsilon=1e-5) for a in tuples])(x)
    for axes, y in zip(tuples, results, strict=True):
        np.testing.assert_allclose(y, normalized(x, axes), atol=4e-6)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)], ids=str)
def test_empty_arrays(shape):
    x = jnp.zeros(shape)
    for axis in range(len(shape)):
        y, moments = jaxnorm.batch_norm(x, axis=axis)
        assert y.shape == shape
        assert jaxnorm.layer_norm(x, axis=axis).shape == shape
        assert jaxnorm.rms_norm(x, axis=axis).shape == shape
        assert all(np.isfinite(m).all() for m in moments)
        assert moments.mean.shape == (*shape[:axis], *shape[axis + 1 :])
        assert jax.grad(lambda x, a=axis: jnp.sum(jaxnorm.layer_norm(x, axis=a)))(x).shape == shape


def test_feature_axes_are_a_set(rng):
    """Whatever their order and signs, gamma and beta have the sizes in ascending order."""
    x = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    gamma, beta = rng.normal(size=(2, *SHAPE[1:])).astype(np.float32)
    orders = [
        tuple(a - sign for a, sign in zip(axes, signs, strict=True))
        for axes in itertools.permutations((1, 2, 3))
        for signs in ((0, 0, 0), (4, 4, 4), (4, 0, 0))
    ]

    @jax.jit
    def results(x, gamma, beta):
        batch = [jaxnorm.batch_norm(x, gamma, beta, axis=0, feature_axes=o)[0] for o in orders]
        layer = [jaxnorm.layer_norm(x, gamma, beta, axis=o, epsilon=1e-5) for o in orders]
        default, _ = jaxnorm.batch_norm(x, gamma, beta, axis=0)
        return [*batch, default], layer

    for pooled, ys in zip(((0,), (1, 2, 3)), results(x, gamma, beta), strict=True):
        for y in ys:
            np.testing.assert_allclose(y, normalized(x, pooled) * gamma + beta, atol=2e-5)


def test_gamma_in_another_order_of_axes_is_an_error():
    with pytest.raises(ValueError, match=r"expected \(3, 4\), .*\(1, 2\) in ascending order"):
        jaxnorm.layer_norm(jnp.ones((2, 3, 4)), jnp.ones((4, 3)), axis=(2, 1))


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_gamma_and_beta_of_rank_0_are_one_value_for_all(rank, rng):
    x = rng.normal(size=(4,) * rank).astype(np.float32)
    expected = 2 * normalized(x, (rank - 1,)) + 3

    @jax.jit
    def results(x, gamma):
        gradient = jax.grad(lambda g: jaxnorm.layer_norm(x, g, epsilon=1e-5)[..., 0].sum())(gamma)
        return jaxnorm.layer_norm(x, 2.0, 3.0, epsilon=1e-5), gradient

    y, gradient = results(x, 2.0)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(gradient, normalized(x, (rank - 1,))[..., 0].sum(), atol=4e-6)


def test_full_rank_gamma_and_beta_of_every_shape(rng):
    # Per example, per position, per channel or none: conditional and spatial affines.
    x = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    shapes = list(itertools.product(*((1, s) for s in SHAPE)))
    gammas = [rng.normal(size=s).astype(np.float32) for s in shapes]
    betas = [rng.normal(size=s).astype(np.float32) for s in reversed(shapes)]

    @jax.jit
    def results(x, gammas, betas):
        return [
            jaxnorm.layer_norm(x, gamma, beta, axis=(1, 3), epsilon=1e-5)
            for gamma, beta in zip(gammas, betas, strict=True)
        ]

    hat = normalized(x, (1, 3))
    for gamma, beta, y in zip(gammas, betas, results(x, gammas, betas), strict=True):
        np.testing.assert_allclose(y, hat * gamma + beta, atol=2e-5, err_msg=str(gamma.shape))


def test_default_feature_axes(rng):
    x = rng.normal(size=SHAPE).astype(np.float32)
    channel = rng.normal(size=5).astype(np.float32)
    several = rng.normal(size=SHAPE[1:]).astype(np.float32)

    @jax.jit
    def results(x, several, channel):
        layer = [jaxnorm.layer_norm(x, g, axis=(1, 2, 3), epsilon=1e-5) for g in (several, channel)]
        batch = [jaxnorm.batch_norm(x, channel, axis=axis) for axis in (0, (0, 1, 2))]
        return layer, batch, jaxnorm.batch_norm(x, jnp.asarray(2.0), axis=(0, 1, 2, 3))

    layer, batch, everything = results(x, several, channel)
    # Layer norm over several axes: gamma has their shape, or is one value per channel.
    hat = normalized(x, (1, 2, 3))
    for gamma, y in zip((several, channel), layer, strict=True):
        np.testing.assert_allclose(y, hat * gamma, atol=2e-5)
    # Position-wise batch norm: one mean per position and channel, gamma for each or per channel.
    y, moments = batch[0]
    assert moments.mean.shape == (3, 4, 5)
    np.testing.assert_allclose(y, normalized(x, (0,)) * channel, atol=2e-5)
    # After a convolution: one per channel. Over everything: a scalar.
    assert batch[1][1].mean.shape == (5,)
    y, moments = everything
    assert moments.mean.shape == ()
    np.testing.assert_allclose(y, 2 * normalized(x, (0, 1, 2, 3)), atol=2e-5)
