"""Whitening across devices: by the name of an axis, and of sharded arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm
from tests.support.hlo import collectives
from tests.techniques.whitening import METHODS, close, correlated

pytestmark = pytest.mark.quickly_compiled


def shard(function, **specs):
    mesh = jax.make_mesh((4,), ("d",), (AxisType.Auto,), devices=jax.devices()[:4])
    return jax.jit(jax.shard_map(function, mesh=mesh, **specs))


@pytest.mark.parametrize("method", METHODS)
def test_synchronised_equals_one_device(method, rng):
    x = (correlated(rng, 16, 5, 4) + 1e3).astype(np.float32)
    mask = rng.random((16, 5, 1)) < 0.6
    mask[4:8] = False  # a whole shard
    weight = rng.normal(size=x.shape).astype(np.float32)

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
    if method == "iterative":  # collectives are the same, by vmap as well
        return
    parts = [a.reshape(4, 4, *a.shape[1:]) for a in (x, mask, weight)]
    mapped = jax.vmap(functools.partial(results, names="d"), axis_name="d")
    y, w, gradient = jax.jit(mapped)(*parts)
    close(y.reshape(x.shape), alone[0])
    jax.tree.map(lambda one, all_: close(all_, np.stack([one] * 4)), alone[1], w)
    close(gradient.reshape(x.shape), alone[2])


def test_synchronised_within_groups_of_devices(rng):
    x = correlated(rng, 4, 10, 4).astype(np.float32)
    whiten = functools.partial(jaxnorm.whiten, axis=0)
    groups = [[0, 3], [2, 1]]
    grouped = functools.partial(whiten, axis_name="d", axis_index_groups=groups)
    y, w = jax.tree.map(np.asarray, jax.jit(jax.vmap(grouped, axis_name="d"))(x))
    alone = jax.jit(whiten)
    for a, b in groups:
        both, v = alone(np.concatenate([x[a], x[b]]))
        close(np.concatenate([y[a], y[b]]), both)
        close(w.projection[a], v.projection)
        assert float(w.count[b]) == 20


def test_two_collectives(rng):
    x = correlated(rng, 16, 4).astype(np.float32)
    mask = rng.random((16, 1)) < 0.6

    def whiten(x, mask=None):
        return jaxnorm.whiten(x, axis=0, mask=mask, axis_name="d")[0]

    for arguments in ((x,), (x, mask)):
        found = collectives(
            shard(whiten, in_specs=(P("d"),) * len(arguments), out_specs=P("d")), *arguments
        )
        assert [kind for kind, _ in found] == ["all-reduce"] * 2


@functools.partial(jax.jit, static_argnums=1)
def of_both(x, axis):
    def loss(x):
        y, w = jaxnorm.whiten(x, axis=axis)
        z = jaxnorm.decorrelate(x, w, axis=axis)
        return jnp.sum(jnp.sin(y + z)), (y, w, z)

    return jax.grad(loss, has_aux=True)(x)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_sharded_arrays(kind, rng):
    x = correlated(rng, 16, 8, 4).astype(np.float32)
    mesh = jax.make_mesh((8,), ("d",), (kind,))
    split = jax.device_put(x, NamedSharding(mesh, P("d", None, None)))
    for axis, expected in (((0, 1), ["all-reduce"] * 2), (1, [])):
        alone = of_both(x, axis)
        with jax.set_mesh(mesh):
            results = of_both(split, axis)
            found = collectives(lambda x, axis=axis: jaxnorm.whiten(x, axis=axis)[0], split)
        jax.tree.map(close, results, alone)
        assert results[0].sharding.spec[0] == results[1][0].sharding.spec[0] == "d"
        assert [kind for kind, _ in found] == expected
