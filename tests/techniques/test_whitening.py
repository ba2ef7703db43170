"""Whitening against float64: over any axes, at large means, under masks, in every dtype."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from tests.support.programs import QUICKLY
from tests.techniques.whitening import METHODS, close, correlated, zca


def reference(x, axis, feature_axes=-1, num_groups=1, mask=None):
    """Group by group, kept index by kept index: packs the examples that the mask keeps."""
    x = np.asarray(x)
    axes = [a % x.ndim for a in np.atleast_1d(axis)]
    features = sorted(a % x.ndim for a in np.atleast_1d(feature_axes))
    kept = [a for a in range(x.ndim) if a not in axes + features]
    order = kept + axes + features
    moved = x.transpose(order)
    units = int(np.prod([x.shape[a] for a in features]))
    rows = moved.reshape(int(np.prod([x.shape[a] for a in kept])), -1, units)
    keep = np.ones(x.shape, bool) if mask is None else np.broadcast_to(mask, x.shape)
    keep = keep.transpose(order).reshape(rows.shape)[..., 0]
    y = np.zeros(rows.shape, rows.dtype)
    means, projections = [], []
    for i in range(len(rows)):
        for group in np.split(np.arange(units), num_groups):
            at = np.ix_([i], np.flatnonzero(keep[i]), group)
            out, mean, projection = zca(rows[at][0])
            y[at] = out[None]
            means.append(mean)
            projections.append(projection)
    kept_shape = [x.shape[a] for a in kept]
    mean = np.reshape(means, kept_shape + [x.shape[a] for a in features])
    rank = [a for a in range(x.ndim) if a not in axes]
    mean = mean.transpose([(kept + features).index(a) for a in rank])
    projection = np.reshape(projections, [*kept_shape, num_groups, *projections[0].shape])
    return y.reshape(moved.shape).transpose(np.argsort(order)), mean, projection


CASES = {
    "dense": ((40, 6), {"axis": 0}),
    "groups": ((40, 6), {"axis": 0, "num_groups": 2}),
    "conv": ((5, 4, 3, 6), {"axis": (2, 0, -3), "num_groups": 3}),
    "channels_first": ((5, 6, 4, 3), {"axis": (0, 2, 3), "feature_axes": 1}),
    "per_example": ((2, 9, 7, 3), {"axis": (1, 2)}),
    "two_unit_axes": ((40, 3, 4), {"axis": 0, "feature_axes": (2, -2), "num_groups": 2}),
    "kept_after_units": ((40, 3, 4), {"axis": 0, "feature_axes": 1}),
    "examples_last": ((6, 40), {"axis": -1, "feature_axes": 0}),
}


@pytest.mark.parametrize("name", CASES)
def test_values_over_any_axes(name, rng):
    shape, where = CASES[name]
    x = correlated(rng, *shape).astype(np.float32)
    expected, mean, projection = reference(x.astype(np.float64), **where)

    def results(x):
        y, w = jaxnorm.whiten(x, **where)
        again = jaxnorm.decorrelate(
            x, w, axis=where["axis"], feature_axes=where.get("feature_axes", -1)
        )
        return y, w, again, jaxnorm.whiten(x, **where, method="iterative")

    y, w, again, (iterated, _) = jax.jit(results, compiler_options=QUICKLY)(x)
    close(y, expected)
    close(w.mean, mean)
    close(w.projection, projection)
    assert float(w.count) == np.prod([shape[a] for a in np.atleast_1d(where["axis"])])
    close(again, expected)
    close(iterated, expected)


@pytest.mark.parametrize("method", METHODS)
def test_no_linear_relationship_is_left(method, rng):
    # Eigenvalues of the covariance from 0.01 to 9: singular values of the mixing matrix squared.
    rotation = [np.linalg.qr(rng.normal(size=(16, 16)))[0] for _ in range(2)]
    mix = rotation[0] * np.linspace(0.1, 3, 16) @ rotation[1]
    values = rng.normal(size=(8, 8, 8, 16)) @ mix
    whiten = jax.jit(functools.partial(jaxnorm.whiten, axis=(0, 1, 2), method=method, epsilon=1e-6))
    for mean in (0.0, 1e2, -1e4):
        y, _ = whiten(jnp.asarray(values + mean, jnp.float32))
        flat = np.asarray(y, np.float64).reshape(-1, 16)
        # The bound; adding the mean rounds the input, which whitening takes as given.
        assert np.abs(np.cov(flat.T, bias=True) - np.eye(16)).max() < 1e-3
        assert np.abs(flat.mean(0)).max() < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_exact_at_large_means(method, rng):
    whiten = jax.jit(functools.partial(jaxnorm.whiten, axis=0, method=method))
    for mean in (1e2, -1e4, 1e6):
        # What float32 makes of x is the input; the reference sees the same.
        x = (correlated(rng, 200, 6) + mean * rng.uniform(0.5, 1, 6)).astype(np.float32)
        y, w = whiten(x)
        expected, mean_, projection = reference(x.astype(np.float64), 0)
        close(y, expected)
        close(w.projection, projection)
        np.testing.assert_allclose(w.mean, mean_, rtol=1e-6)


def test_one_unit_per_group_is_batch_norm(rng):
    x = correlated(rng, 4, 5, 6).astype(np.float32)
    gamma, beta = rng.normal(size=(2, 6)).astype(np.float32)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def both(x, mask):
        whitened = jaxnorm.whiten(x, gamma, beta, axis=(0, 1), num_groups=6, mask=mask)
        return *whitened, *jaxnorm.batch_norm(x, gamma, beta, axis=(0, 1), epsilon=1e-5, mask=mask)

    for m in (None, rng.random((4, 5, 1)) < 0.7):
        y, w, z, moments = both(x, m)
        np.testing.assert_allclose(y, z, rtol=4e-6, atol=4e-6)
        np.testing.assert_allclose(w.mean, moments.mean, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(
            w.projection[:, 0, 0], 1 / np.sqrt(moments.var + 1e-5), rtol=1e-5
        )


def test_five_iterations_whiten_in_part(rng):
    x = correlated(rng, 400, 16).astype(np.float32)
    whiten = functools.partial(jaxnorm.whiten, axis=0, method="iterative")
    results = jax.jit(
        lambda x: [whiten(x, num_iterations=steps)[0] for steps in (0, 5, 15)],
        compiler_options=QUICKLY,
    )
    spread = []
    for y in results(x):
        spread.append(np.linalg.eigvalsh(np.cov(np.asarray(y, np.float64).T, bias=True)))
    # No step divides by the root of the trace: the eigenvalues sum to 1.
    np.testing.assert_allclose(spread[0].sum(), 1, rtol=1e-4)
    assert 0.05 < spread[1].min() < 0.999 < spread[2].min()
    assert spread[1].max() < 1.001


@pytest.mark.parametrize("method", METHODS)
def test_masks(method, rng):
    x = correlated(rng, 6, 7, 4).astype(np.float32)
    mask = rng.random((6, 7, 1)) < 0.7
    weight = rng.normal(size=x.shape).astype(np.float32)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def results(x, mask):
        def loss(x):
            y, w = jaxnorm.whiten(x, axis=(0, 1), mask=mask, method=method)
            return jnp.sum(jnp.sin(y) * weight), (y, w)

        return jax.value_and_grad(loss, has_aux=True)(x)

    (_, (y, w)), gradient = results(x, mask)
    expected, mean, projection = reference(x.astype(np.float64), (0, 1), mask=mask)
    close(y, expected)
    close(w.mean, mean)
    close(w.projection, projection)
    assert float(w.count[0]) == mask.sum()
    # The gradient of the packed examples.
    kept = np.broadcast_to(mask, (6, 7, 1))[..., 0]

    def packed(rows):
        return jnp.sum(jnp.sin(jaxnorm.whiten(rows, axis=0, method=method)[0]) * weight[kept])

    gradient = np.asarray(gradient)
    close(gradient[kept], jax.jit(jax.grad(packed), compiler_options=QUICKLY)(x[kept]))
    # What is masked reaches nothing.
    spoiled = np.where(mask, x, np.where(rng.random(x.shape) < 0.5, np.nan, np.inf))
    (_, (y_, w_)), gradient_ = results(spoiled, mask)
    for one, two in zip((y, *w, gradient), (y_, *w_, gradient_), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.any(np.asarray(y)[~kept]) and not np.any(gradient[~kept])
    for all_or_none in (True, False):
        (_, (y, w)), gradient = results(
            spoiled if not all_or_none else x, mask & False | all_or_none
        )
        assert np.isfinite(y).all() and np.isfinite(gradient).all()
        assert float(w.count[0]) == (42 if all_or_none else 0)
        assert all_or_none or not np.any(y)


def test_masks_along_kept_axes(rng):
    x = correlated(rng, 3, 20, 4).astype(np.float32)
    mask = rng.random((3, 20, 1)) < 0.7

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def results(x, mask):
        y, w = jaxnorm.whiten(x, axis=1, mask=mask)
        return y, w, jaxnorm.decorrelate(x, w, axis=1, mask=mask)

    y, w, again = results(x, mask)
    expected, mean, _ = reference(x.astype(np.float64), 1, mask=mask)
    close(y, expected)
    close(w.mean, mean)
    np.testing.assert_array_equal(w.count, mask.sum(1))
    close(again, expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_one_rounding_from_float32(dtype, rng):
    x = jnp.asarray(correlated(rng, 40, 4), dtype)
    gamma = jnp.asarray(rng.normal(size=4), dtype)

    @jax.jit
    def results(x, wide):
        y, w = jaxnorm.whiten(x, gamma, axis=0)
        exact, v = jaxnorm.whiten(wide, gamma, axis=0)
        return y, w, exact, v, jaxnorm.decorrelate(x, w, gamma, axis=0, dtype=jnp.float32)

    y, w, exact, v, wide = results(x, x.astype(jnp.float32))
    assert y.dtype == dtype
    assert {a.dtype for a in w} == {jnp.dtype("float32")}
    close(w.projection, v.projection)
    close(wide, exact)
    spacing = float(jnp.finfo(dtype).eps) * np.maximum(np.abs(exact), 2.0**-14)
    # Half a spacing, and the float32 error in what is rounded.
    assert (np.abs(np.asarray(y, np.float32) - exact) <= 0.5 * spacing + 2e-5).all()


def test_complex(rng):
    x = (correlated(rng, 40, 4) + 1j * correlated(rng, 40, 4) @ rng.normal(size=(4, 4))).astype(
        np.complex64
    )

    @functools.partial(jax.jit, static_argnums=1, compiler_options=QUICKLY)
    def results(x, method):
        y, w = jaxnorm.whiten(x, axis=0, method=method)
        return y, jaxnorm.decorrelate(x, w, axis=0)

    for method in METHODS:
        y, again = results(x, method)
        assert y.dtype == jnp.complex64
        close(np.asarray(y).T @ np.asarray(y).conj() / 40, np.eye(4), atol=1e-3)
        close(y, zca(x.astype(np.complex128))[0])
        close(again, y)


def test_constant_input_gives_exactly_beta(rng):
    beta = jnp.asarray(rng.normal(size=4), jnp.float32)
    whiten = jax.jit(functools.partial(jaxnorm.whiten, axis=0))
    for constant in (0.0, 1 / 3, -1e6 / 7, 1e15):
        x = np.tile(constant * (1 + rng.random(4)), (24, 1)).astype(np.float32)
        y, _ = whiten(x, None, beta)
        np.testing.assert_array_equal(y, np.tile(beta, (24, 1)))


def test_update_whitening(rng):
    old = jaxnorm.Whitening(
        jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
        jnp.asarray(rng.normal(size=(3, 2, 2, 2)), jnp.float32),
        jnp.asarray([[5.0], [0.0], [7.0]]),
    )
    batch = jaxnorm.Whitening(
        jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
        jnp.asarray(rng.normal(size=(3, 2, 2, 2)), jnp.float32),
        jnp.asarray([[10.0], [0.0], [1.0]]),
    )
    new = jaxnorm.update_whitening(old, batch, momentum=0.75)
    assert new.mean[1].tolist() == old.mean[1].tolist()
    np.testing.assert_array_equal(new.projection[1], old.projection[1])
    np.testing.assert_array_equal(new.count, [[15], [0], [8]])
    for i, factor in ((0, 0.9), (2, 1.0)):
        close(new.mean[i], 0.75 * old.mean[i] + 0.25 * batch.mean[i])
        expected = 0.75 * old.projection[i] + 0.25 * factor**0.5 * batch.projection[i]
        close(new.projection[i], expected)
    biased = jaxnorm.update_whitening(old, batch, momentum=0.75, unbiased=False)
    close(biased.projection[0], 0.75 * old.projection[0] + 0.25 * batch.projection[0])
