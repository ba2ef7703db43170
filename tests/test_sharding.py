"""Contract 7 on eight devices: the same values, and no collective where none is needed."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm
from tests import registry
from tests.norm import first, in_groups

COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"


def mesh(axis_type=AxisType.Auto):
    return jax.make_mesh((8,), ("devices",), axis_types=(axis_type,))


def spec(rank, axis):
    return P(*("devices" if a == axis else None for a in range(rank)))


def collectives(compiled):
    return set(re.findall(rf"= \S+ ({COLLECTIVES})\b", compiled.as_text()))


def outputs(norm, gamma, beta):
    """The result, with a mask, and the gradients for x and for the parameters."""

    def f(x, dy, mask):
        y, vjp = jax.vjp(lambda x: norm(x, gamma, beta), x)
        return y, norm(x, gamma, beta, mask), vjp(dy)[0]

    def parameters(x, dy):
        return jax.vjp(lambda gamma, beta: norm(x, gamma, beta), gamma, beta)[1](dy)

    return f, parameters


def sharded_axes(point="shards", free=False):
    """Every norm with each axis that eight devices can share, of those not pooled if `free`."""
    return [
        pytest.param(norm, axis, id=f"{norm.name}-{axis}")
        for norm in registry.NORMS
        if point not in norm.exempt
        for axis, size in enumerate(norm.shapes["plain"])
        if size % 8 == 0 and not (free and axis not in norm.free_axes(norm.shapes["plain"]))
    ]


@pytest.mark.parametrize(("norm", "axis"), sharded_axes())
def test_sharded_jit(norm, axis, rng):
    x, gamma, beta, mask = norm.draw(rng, norm.shapes["plain"], mask=True)
    dy = jnp.asarray(rng.normal(size=x.shape), x.dtype)
    sharding = NamedSharding(mesh(), spec(x.ndim, axis))
    f, parameters = outputs(norm, gamma, beta)
    shards = jax.device_put((x, dy, mask), sharding)
    compiled = jax.jit(f, out_shardings=sharding).lower(*shards).compile()
    # Along an axis that no statistic crosses nothing is sent. Along the others a sum is.
    allowed = set() if axis in norm.free_axes(x.shape) else {"all-reduce"}
    assert collectives(compiled) <= allowed
    compiled_parameters = jax.jit(parameters).lower(*shards[:2]).compile()
    assert collectives(compiled_parameters) <= {"all-reduce"}

    y, masked, dx = compiled(*shards)
    dparameters = compiled_parameters(*shards[:2])
    exact = norm.expected_vjp(x, gamma, beta, None, dy)
    np.testing.assert_allclose(y, norm.expected(x, gamma, beta), atol=8e-6)
    np.testing.assert_allclose(masked, norm.expected(x, gamma, beta, mask), atol=8e-6)
    np.testing.assert_allclose(dx, exact[0], atol=8e-6 * max(1.0, np.abs(exact[0]).max()))
    for value, expected in zip(dparameters, exact[1:], strict=True):
        if value is not None:
            np.testing.assert_allclose(value, expected, atol=1e-4)


@pytest.mark.parametrize(("norm", "axis"), sharded_axes())
def test_large_mean_stays_exact_when_sharded(norm, axis, rng):
    x, *_ = norm.draw(rng, norm.shapes["plain"])
    x = x + 1e6
    sharding = NamedSharding(mesh(), spec(x.ndim, axis))
    y = jax.jit(norm, out_shardings=sharding)(jax.device_put(x, sharding))
    expected = norm.expected(x)
    scale = max(1, np.abs(expected).max() / 3)
    np.testing.assert_allclose(y, expected, atol=4e-6 * scale, rtol=0)


def assert_explicit_axes_work(norm, axis, x, gamma, beta, mask, dy):
    f, _ = outputs(norm, gamma, beta)
    with jax.set_mesh(mesh(AxisType.Explicit)):
        place = spec(x.ndim, axis)
        y, masked, dx = jax.jit(f)(*jax.device_put((x, dy, mask), place))
        for value in (y, masked, dx):
            assert value.sharding.spec == place
    exact = norm.expected_vjp(x, gamma, beta, None, dy)[0]
    np.testing.assert_allclose(y, norm.expected(x, gamma, beta), atol=8e-6)
    np.testing.assert_allclose(masked, norm.expected(x, gamma, beta, mask), atol=8e-6)
    np.testing.assert_allclose(dx, exact, atol=8e-6 * max(1.0, np.abs(exact).max()))


@pytest.mark.parametrize(("norm", "axis"), sharded_axes("explicit"))
def test_explicit_mesh_axes(norm, axis, rng):
    x, gamma, beta, mask = norm.draw(rng, norm.shapes["plain"], mask=True)
    dy = jnp.asarray(rng.normal(size=x.shape), x.dtype)
    assert_explicit_axes_work(norm, axis, x, gamma, beta, mask, dy)


@pytest.mark.parametrize("shape", [(8, 3, 16), (8, 1, 16)])
def test_explicit_mesh_axes_of_fewer_groups_than_devices(shape, rng):
    (norm,) = (n for n in registry.NORMS if n.name == "group_norm")
    function = first(jaxnorm.group_norm, num_groups=2)
    norm = dataclasses.replace(norm, function=function, pools=in_groups(2))
    x, gamma, beta, mask = norm.draw(rng, shape, mask=True)
    dy = jnp.asarray(rng.normal(size=x.shape), x.dtype)
    assert_explicit_axes_work(norm, 2, x, gamma, beta, mask, dy)


@pytest.mark.parametrize("axis", [0, 2])
def test_explicit_mesh_axes_of_as_many_groups_as_devices(axis, rng):
    (norm,) = (n for n in registry.NORMS if n.name == "group_norm")
    function = first(jaxnorm.group_norm, num_groups=8)
    norm = dataclasses.replace(norm, function=function, pools=in_groups(8))
    x, gamma, beta, mask = norm.draw(rng, (8, 3, 16), mask=True)
    dy = jnp.asarray(rng.normal(size=x.shape), x.dtype)
    assert_explicit_axes_work(norm, axis, x, gamma, beta, mask, dy)


@pytest.mark.parametrize(("norm", "axis"), sharded_axes(free=True))
def test_shard_map_where_nothing_crosses_devices(norm, axis, rng):
    arguments = norm.draw(rng, norm.shapes["plain"], mask=True)
    x = arguments[0]
    place = spec(x.ndim, axis)
    features = [a % x.ndim for a in norm.feature_axes]
    parameter = P(*("devices" if a == axis else None for a in features))
    mapped = jax.shard_map(
        norm,
        mesh=mesh(),
        in_specs=tuple(
            None if a is None else p
            for a, p in zip(arguments, (place, parameter, parameter, place), strict=True)
        ),
        out_specs=place,
    )

    @jax.jit
    def both(dy, *arguments):
        y, vjp = jax.vjp(lambda x: mapped(x, *arguments[1:]), arguments[0])
        return y, vjp(dy)[0]

    dy = jnp.asarray(rng.normal(size=x.shape), x.dtype)
    y, dx = both(dy, *arguments)
    exact = norm.expected_vjp(*arguments, dy)[0]
    np.testing.assert_allclose(y, norm.expected(*arguments), atol=8e-6)
    np.testing.assert_allclose(dx, exact, atol=8e-6 * max(1.0, np.abs(exact).max()))
