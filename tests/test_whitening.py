"""Whitening against float64, under masks, across devices, and in all its derivatives."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm
from tests.hlo import collectives

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


def reference(x, axis, feature_axes=-1, num_groups=1, mask=None):
    """Group by group, kept index by kept index: packs the examples that the mask keeps."""
    x = np.asarray(x)
    axes = [a % x.ndim for a in np.atleast_1d(axis)]
    features = [a % x.ndim for a in np.atleast_1d(feature_axes)]
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
    x = jnp.asarray(correlated(rng, *shape), jnp.float32)
    expected, mean, projection = reference(np.asarray(x, np.float64), **where)

    @jax.jit
    def results(x):
        y, w = jaxnorm.whiten(x, **where)
        again = jaxnorm.decorrelate(
            x, w, axis=where["axis"], feature_axes=where.get("feature_axes", -1)
        )
        return y, w, again, jaxnorm.whiten(x, **where, method="iterative")

    y, w, again, (iterated, _) = results(x)
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
    x = jnp.asarray(correlated(rng, 4, 5, 6), jnp.float32)
    gamma, beta = (jnp.asarray(rng.normal(size=6), jnp.float32) for _ in range(2))
    mask = jnp.asarray(rng.random((4, 5, 1)) < 0.7)
    for m in (None, mask):
        y, w = jaxnorm.whiten(x, gamma, beta, axis=(0, 1), num_groups=6, mask=m)
        z, moments = jaxnorm.batch_norm(x, gamma, beta, axis=(0, 1), epsilon=1e-5, mask=m)
        np.testing.assert_allclose(y, z, rtol=4e-6, atol=4e-6)
        np.testing.assert_allclose(w.mean, moments.mean, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(
            w.projection[:, 0, 0], 1 / np.sqrt(moments.var + 1e-5), rtol=1e-5
        )


def test_five_iterations_whiten_in_part(rng):
    x = jnp.asarray(correlated(rng, 400, 16), jnp.float32)
    spread = []
    for steps in (0, 5, 15):
        y, _ = jaxnorm.whiten(x, axis=0, method="iterative", num_iterations=steps)
        spread.append(np.linalg.eigvalsh(np.cov(np.asarray(y, np.float64).T, bias=True)))
    # No step divides by the root of the trace: the eigenvalues sum to 1.
    np.testing.assert_allclose(spread[0].sum(), 1, rtol=1e-4)
    assert 0.05 < spread[1].min() < 0.999 < spread[2].min()
    assert spread[1].max() < 1.001


def orthogonal(m, d):
    """Columns orthogonal to each other and to 1: a covariance of one repeated eigenvalue."""
    grid = np.arange(m)[:, None] * np.arange(1, d + 1)
    return np.sqrt(2) * np.cos(np.pi * (grid + np.arange(1, d + 1) / 2) / m)


def degenerate(rng):
    twins = rng.normal(size=(12, 4))
    return {
        "generic": correlated(rng, 12, 4),
        "repeated eigenvalues": orthogonal(12, 4),
        "fewer examples than units": rng.normal(size=(3, 4)),
        "equal units": np.concatenate([twins[:, :2], twins[:, :2]], 1),
        "constant": np.full((12, 4), 3.0),
        "zero": np.zeros((12, 4)),
    }


@pytest.mark.parametrize("method", METHODS)
def test_derivatives_of_both_orders(method, rng):
    # A large epsilon, so that finite differences see a smooth function everywhere.
    whiten = functools.partial(jaxnorm.whiten, axis=0, epsilon=0.1, method=method)

    def loss(x, weight):
        y, w = whiten(x)
        return jnp.sum(jnp.sin(y) * weight) + jnp.sum(w.mean**2) + jnp.sum(jnp.sin(w.projection))

    @jax.jit
    @jax.vmap
    def derivatives(x, dx, weight):
        def slope(x):
            return jax.jvp(lambda x: loss(x, weight), (x,), (dx,))[1]

        gradient = jax.grad(loss)
        _, forward_over_reverse = jax.jvp(lambda x: gradient(x, weight), (x,), (dx,))
        reverse_over_reverse = jax.grad(lambda x: jnp.sum(gradient(x, weight) * dx))(x)
        second = forward_over_reverse, reverse_over_reverse, jax.grad(slope)(x)
        steps = [x + s * dx for s in (1e-5, -1e-5)]
        values, gradients = ([f(step, weight) for step in steps] for f in (loss, gradient))
        by_steps = [(ahead - behind) / 2e-5 for ahead, behind in (values, gradients)]
        first = slope(x), jnp.sum(gradient(x, weight) * dx)
        return first, second, *by_steps

    cases = degenerate(rng)
    few = cases.pop("fewer examples than units")
    with jax.enable_x64(True):
        for x in (np.stack(list(cases.values())), few[None]):
            dx, weight = rng.normal(size=(2, *x.shape))
            first, second, slope, bend = derivatives(x, dx, weight)
            # Central differences in float64: h^2 = 1e-10 and rounding 1e-16 / h = 1e-11, times the
            # higher derivatives, of order epsilon^-2.
            for value in first:
                np.testing.assert_allclose(value, slope, rtol=1e-6, atol=1e-6)
            for value in second:
                np.testing.assert_allclose(value, bend, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("epsilon", [1e-5, 0.0])
def test_gradients_are_finite_in_float32(method, epsilon, rng):
    def loss(x, weight):
        return jnp.sum(jaxnorm.whiten(x, axis=0, method=method, epsilon=epsilon)[0] * weight)

    @jax.jit
    def derivatives(x, weight):
        gradient, again = jax.jvp(lambda x: jax.grad(loss)(x, weight), (x,), (weight,))
        return gradient, again, jax.jvp(lambda x: loss(x, weight), (x,), (weight,))

    for name, x in degenerate(rng).items():
        for scale in (1.0, 1e-20, 1e3):
            x_ = jnp.asarray(scale * x, jnp.float32)
            weight = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
            for value in jax.tree.leaves(derivatives(x_, weight)):
                assert np.isfinite(value).all(), (name, scale)


def test_gradient_equals_the_one_in_float64(rng):
    values = {
        name: x.astype(np.float32)
        for name, x in degenerate(rng).items()
        if name in ("generic", "repeated eigenvalues", "fewer examples than units")
    }
    weight = rng.normal(size=(12, 4)).astype(np.float32)

    def gradient(x, weight):
        def loss(x):
            return jnp.sum(jnp.sin(jaxnorm.whiten(x, axis=0)[0]) * weight)

        return jax.grad(loss)(x)

    for x in values.values():
        w = weight[: len(x)]
        single = jax.jit(gradient)(x, w)
        with jax.enable_x64(True):
            double = jax.jit(gradient)(x.astype(np.float64), w.astype(np.float64))
            projection = jaxnorm.whiten(x.astype(np.float64), axis=0)[1].projection
        # The gradient is a difference of terms as large as the projection: 316 = 1e-5^(-1/2) in
        # directions without variance.
        np.testing.assert_allclose(single, double, rtol=0, atol=1e-5 * np.abs(projection).max())
    # y does not change when a constant is added to a unit, or when x is rotated and scaled back.
    assert np.abs(np.asarray(single).sum(0)).max() < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_masks(method, rng):
    x = correlated(rng, 6, 7, 4).astype(np.float32)
    mask = rng.random((6, 7, 1)) < 0.7
    weight = jnp.asarray(rng.normal(size=x.shape), jnp.float32)

    @jax.jit
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

    close(gradient[kept], jax.jit(jax.grad(packed))(x[kept]))
    # What is masked reaches nothing.
    spoiled = np.where(mask, x, np.where(rng.random(x.shape) < 0.5, np.nan, np.inf))
    (_, (y_, w_)), gradient_ = results(spoiled, mask)
    for one, two in zip((y, *w, gradient), (y_, *w_, gradient_), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.any(np.asarray(y)[~kept]) and not np.any(np.asarray(gradient)[~kept])
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
    y, w = jaxnorm.whiten(x, axis=1, mask=mask)
    expected, mean, _ = reference(x.astype(np.float64), 1, mask=mask)
    close(y, expected)
    close(w.mean, mean)
    np.testing.assert_array_equal(w.count, mask.sum(1))
    close(jaxnorm.decorrelate(x, w, axis=1, mask=mask), expected)


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
    for method in METHODS:
        y, w = jax.jit(functools.partial(jaxnorm.whiten, axis=0, method=method))(x)
        assert y.dtype == jnp.complex64
        close(np.asarray(y).T @ np.asarray(y).conj() / 40, np.eye(4), atol=1e-3)
        close(y, zca(x.astype(np.complex128))[0])
        close(jaxnorm.decorrelate(x, w, axis=0), y)


def test_constant_input_gives_exactly_beta(rng):
    beta = jnp.asarray(rng.normal(size=4), jnp.float32)
    whiten = jax.jit(functools.partial(jaxnorm.whiten, axis=0))
    for constant in (0.0, 1 / 3, -1e6 / 7, 1e15):
        x = np.tile(constant * (1 + rng.random(4)), (24, 1)).astype(np.float32)
        y, _ = whiten(x, None, beta)
        np.testing.assert_array_equal(y, np.tile(beta, (24, 1)))


def test_under_vmap_and_scan_and_remat(rng):
    x = jnp.asarray(correlated(rng, 3, 20, 4), jnp.float32)

    def loss(x):
        return jnp.sum(jnp.sin(jaxnorm.whiten(x, axis=0)[0]))

    looped = jnp.stack([jax.grad(loss)(one) for one in x])
    close(jax.jit(jax.vmap(jax.grad(loss)))(x), looped)
    close(jax.vmap(jax.grad(loss), in_axes=1, out_axes=1)(x.swapaxes(0, 1)).swapaxes(0, 1), looped)
    close(jax.jit(lambda x: jax.lax.map(jax.grad(jax.checkpoint(loss)), x))(x), looped)
    # A kept axis is a vmap.
    close(jax.vmap(lambda x: jaxnorm.whiten(x, axis=0)[0])(x), jaxnorm.whiten(x, axis=1)[0])
    _, tangent = jax.linearize(loss, x[0])
    close(tangent(x[1]), np.sum(looped[0] * x[1]), rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_little_is_kept_for_the_backward_pass(method, rng):
    x = jnp.asarray(correlated(rng, 4000, 16), jnp.bfloat16)
    function = functools.partial(jaxnorm.whiten, axis=0, num_groups=2, method=method)
    _, vjp = jax.vjp(lambda x: function(x)[0], x)
    kept = sum({a.unsafe_buffer_pointer(): a.nbytes for a in jax.tree.leaves(vjp)}.values())
    # Per group of 8 units: a shift and an offset, and a few matrices of 8 x 8.
    assert kept <= 1.05 * x.nbytes + 2 * 4 * (2 * 8 + 8 * 8 * 8)


def shard(function, **specs):
    mesh = jax.make_mesh((4,), ("d",), (AxisType.Auto,), devices=jax.devices()[:4])
    return jax.jit(jax.shard_map(function, mesh=mesh, **specs))


@pytest.mark.parametrize("method", METHODS)
def test_synchronised_equals_one_device(method, rng):
    x = jnp.asarray(correlated(rng, 16, 5, 4) + 1e3, jnp.float32)
    mask = rng.random((16, 5, 1)) < 0.6
    mask[4:8] = False  # a whole shard
    mask = jnp.asarray(mask)
    weight = jnp.asarray(rng.normal(size=x.shape), jnp.float32)

    def results(x, mask, weight, names=None):
        def loss(x):
            y, w = jaxnorm.whiten(x, axis=(0, 1), mask=mask, axis_name=names, method=method)
            return jnp.sum(jnp.sin(y) * weight), (y, w)

        gradient, (y, w) = jax.grad(loss, has_aux=True)(x)
        return y, w, gradient

    alone = jax.jit(results)(x, mask, weight)
    stats = jaxnorm.Whitening(P(), P(), P())
    sharded = shard(
        functools.partial(results, names="d"),
        in_specs=(P("d"), P("d"), P("d")),
        out_specs=(P("d"), stats, P("d")),
    )
    jax.tree.map(close, sharded(x, mask, weight), alone)
    parts = [a.reshape(4, 4, *a.shape[1:]) for a in (x, mask, weight)]
    y, w, gradient = jax.jit(jax.vmap(functools.partial(results, names="d"), axis_name="d"))(*parts)
    close(y.reshape(x.shape), alone[0])
    jax.tree.map(lambda one, all_: close(all_, np.stack([one] * 4)), alone[1], w)
    close(gradient.reshape(x.shape), alone[2])


def test_synchronised_within_groups_of_devices(rng):
    x = jnp.asarray(correlated(rng, 4, 10, 4), jnp.float32)
    whiten = functools.partial(jaxnorm.whiten, axis=0)
    groups = [[0, 3], [2, 1]]
    y, w = jax.vmap(
        functools.partial(whiten, axis_name="d", axis_index_groups=groups), axis_name="d"
    )(x)
    for a, b in groups:
        both, v = whiten(jnp.concatenate([x[a], x[b]]))
        close(jnp.concatenate([y[a], y[b]]), both)
        close(w.projection[a], v.projection)
        assert float(w.count[b]) == 20


def test_two_collectives(rng):
    x = jnp.asarray(correlated(rng, 16, 4), jnp.float32)
    mask = jnp.asarray(rng.random((16, 1)) < 0.6)

    def whiten(x, mask=None):
        return jaxnorm.whiten(x, axis=0, mask=mask, axis_name="d")[0]

    for arguments in ((x,), (x, mask)):
        found = collectives(
            shard(whiten, in_specs=(P("d"),) * len(arguments), out_specs=P("d")), *arguments
        )
        assert [kind for kind, _ in found] == ["all-reduce"] * 2


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_sharded_arrays(kind, rng):
    x = jnp.asarray(correlated(rng, 16, 8, 4), jnp.float32)

    def function(x, axis):
        def loss(x):
            y, w = jaxnorm.whiten(x, axis=axis)
            z = jaxnorm.decorrelate(x, w, axis=axis)
            return jnp.sum(jnp.sin(y + z)), (y, w, z)

        return jax.grad(loss, has_aux=True)(x)

    mesh = jax.make_mesh((8,), ("d",), (kind,))
    split = jax.device_put(x, NamedSharding(mesh, P("d", None, None)))
    for axis, expected in (((0, 1), ["all-reduce"] * 2), (1, [])):
        alone = jax.jit(functools.partial(function, axis=axis))(x)
        with jax.set_mesh(mesh):
            results = jax.jit(functools.partial(function, axis=axis))(split)
            found = collectives(lambda x, axis=axis: jaxnorm.whiten(x, axis=axis)[0], split)
        jax.tree.map(close, results, alone)
        assert results[0].sharding.spec[0] == results[1][0].sharding.spec[0] == "d"
        assert [kind for kind, _ in found] == expected


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


def raises(error, message):
    # JAX may add a note on its own line.
    return pytest.raises(error, match="^" + re.escape(message) + "(\n|$)")


def test_errors():
    x = jnp.ones((5, 4))
    whiten = functools.partial(jaxnorm.whiten, axis=0)
    with raises(
        TypeError,
        "x must have a floating-point or complex dtype, got int32; convert it first, for example "
        "with x.astype(jnp.float32).",
    ):
        whiten(jnp.ones((5, 4), jnp.int32))
    with raises(
        ValueError,
        "axis=(0, 1) and feature_axes=-1 of the input of shape (5, 4) have an axis in common; "
        "examples are pooled, units are not.",
    ):
        whiten(x, axis=(0, 1))
    with raises(
        ValueError,
        "num_groups=3 does not divide the 4 units on axes (1,) of the input of shape (5, 4); "
        "choose a divisor of 4.",
    ):
        whiten(x, num_groups=3)
    with raises(ValueError, 'method must be "zca" or "iterative", got \'pca\'.'):
        whiten(x, method="pca")
    with raises(ValueError, "num_iterations must be at least 0, got -1."):
        whiten(x, num_iterations=-1)
    with raises(ValueError, "epsilon must be finite and at least 0, got -1."):
        whiten(x, epsilon=-1)
    with raises(
        ValueError,
        "mask of shape (5, 4) varies along feature_axes=(1,) of the input of shape (5, 4); "
        "whitening combines the units of an example, so that it needs all or none of them: give "
        "the mask size 1 there.",
    ):
        whiten(x, mask=jnp.ones((5, 4), bool))
    with raises(
        ValueError,
        "gamma of shape (5,) does not fit an input of shape (5, 4): expected (4,), the sizes of "
        "the feature axes (1,), or rank 2 with every size 1 or the input's. Pass feature_axes to "
        "say which axes gamma varies along.",
    ):
        whiten(x, jnp.ones(5))
    with raises(
        NameError,
        "axis_name='d' is not bound here. Call this inside jax.vmap or jax.shard_map with an axis "
        "of that name, or leave axis_name out: a jitted function of sharded arrays pools over all "
        "devices without it.",
    ):
        whiten(x, axis_name="d")
    for mean, projection, name, got, expected in (
        (jnp.ones(3), jnp.ones((2, 2, 2)), "mean", (3,), (4,)),
        (jnp.ones(4), jnp.ones((2, 3, 3)), "projection", (2, 3, 3), (2, 2, 2)),
    ):
        with raises(
            ValueError,
            f"whitening.{name} of shape {got} does not fit an input of shape (5, 4) pooled over "
            f"axes (0,), with units on axes (1,): expected {expected}.",
        ):
            jaxnorm.decorrelate(x, (mean, projection, 1.0), axis=0)
    start = jaxnorm.Whitening(jnp.zeros(4), jnp.eye(4)[None], jnp.zeros(()))
    with raises(ValueError, "momentum must lie in [0, 1], got 2."):
        jaxnorm.update_whitening(start, start, momentum=2)
