"""Contract 7 on eight devices: the same values, and no collective where none is needed."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm
from tests.contract import registry
from tests.contract.norm import first, in_groups
from tests.contract.test_exact import assert_exact
from tests.support.programs import QUICKLY

pytestmark = pytest.mark.quickly_compiled

COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"


def mesh(axis_type=AxisType.Auto):
    return jax.make_mesh((8,), ("devices",), axis_types=(axis_type,))


def spec(rank, axis):
    return P(*("devices" if a == axis else None for a in range(rank)))


def collectives(compiled):
    return set(re.findall(rf"= \S+ ({COLLECTIVES})\b", compiled.as_text()))


def outputs(norm, gamma, beta):
    """The result, with a mask, and the gradient for x."""

    def f(x, dy, mask):
        y, vjp = jax.vjp(lambda x: norm(x, gamma, beta), x)
        return y, norm(x, gamma, beta, mask), vjp(dy)[0]

    return f


def masked_outputs(norm, gamma, beta):
    """The result with a mask, and its gradient for x: one pass forward and one backward."""

    def f(x, dy, mask):
        y, vjp = jax.vjp(lambda x: norm(x, gamma, beta, mask), x)
        return y, vjp(dy)[0]

    return f


def sharded_axes(point="shards", free=False, core=None, first=False, last=False):
    """Every norm with each axis that eight devices can share, of those not pooled if `free`.

    With `first` or `last` one of them.
    """
    chosen = []
    for norm in registry.applicable(point, core):
        shape = norm.shapes["plain"]
        axes = [a for a, size in enumerate(shape) if size % 8 == 0]
        axes = [a for a in axes if not free or a in norm.free_axes(shape)]
        chosen += [(norm, a) for a in (axes[:1] if first else axes[-1:] if last else axes)]
    return pytest.mark.parametrize(
        ("norm", "axis"), chosen, ids=[f"{norm.name}-{axis}" for norm, axis in chosen]
    )


def check_sharded_jit(norm, axis, rng, f, options=None):
    """Checks `f` of `norm`, whose last result is dx and the one before it a masked y."""
    shape = norm.shapes["plain"]
    sharding = NamedSharding(mesh(), spec(len(shape), axis))
    # Along an axis that no statistic crosses nothing is sent. Along the others a sum is.
    allowed = set() if axis in norm.free_axes(shape) else {"all-reduce"}
    x, gamma, beta, mask = norm.draw(rng, shape, mask=True)
    compiled = jax.jit(f(norm, gamma, beta), out_shardings=sharding, compiler_options=options)
    dy = rng.normal(size=x.shape).astype(x.dtype)
    compiled = compiled.lower(*jax.device_put((x, dy, mask), sharding)).compile()
    assert collectives(compiled) <= allowed
    for mean in (0.0, 1e6):
        assert_right(norm, x + mean, gamma, beta, mask, dy, compiled, sharding)


def assert_right(norm, x, gamma, beta, mask, dy, f, sharding):
    *y, dx = f(*jax.device_put((x, dy, mask), sharding))
    masks = (None, mask) if len(y) == 2 else (mask,)
    if "exact" not in norm.exempt:
        for value, given in zip(y, masks, strict=True):
            assert_exact(value, norm.expected(x, gamma, beta, given))
    # Of the unmasked, where both are there.
    exact = norm.expected_vjp(x, gamma, beta, masks[0], dy)[0]
    np.testing.assert_allclose(dx, exact, atol=8e-6 * max(1.0, np.abs(exact).max()))


@sharded_axes(core=True)
def test_sharded_jit(norm, axis, rng):
    check_sharded_jit(norm, axis, rng, outputs)


@sharded_axes(core=False)
def test_sharded_jit_of_what_composes_the_core(norm, axis, rng):
    check_sharded_jit(norm, axis, rng, masked_outputs, QUICKLY)


@sharded_axes(core=True)
def test_parameters_gradients_of_a_sharded_jit(norm, axis, rng):
    x, gamma, beta, _ = norm.draw(rng, norm.shapes["plain"])
    dy = rng.normal(size=x.shape).astype(x.dtype)

    def parameters(x, dy):
        return jax.vjp(lambda gamma, beta: norm(x, gamma, beta), gamma, beta)[1](dy)

    shards = jax.device_put((x, dy), NamedSharding(mesh(), spec(x.ndim, axis)))
    compiled = jax.jit(parameters).lower(*shards).compile()
    assert collectives(compiled) <= {"all-reduce"}
    exact = norm.expected_vjp(x, gamma, beta, None, dy)
    for value, expected in zip(compiled(*shards), exact[1:], strict=True):
        if value is not None:
            np.testing.assert_allclose(value, expected, atol=1e-4)


@sharded_axes(core=True)
def test_large_mean_stays_exact_when_sharded(norm, axis, rng):
    x, *_ = norm.draw(rng, norm.shapes["plain"])
    x = x + 1e6
    sharding = NamedSharding(mesh(), spec(x.ndim, axis))
    y = jax.jit(norm, out_shardings=sharding)(jax.device_put(x, sharding))
    assert_exact(y, norm.expected(x))


def assert_explicit_axes_work(norm, axis, x, gamma, beta, mask, dy, f=None, options=None):
    f = jax.jit((f or outputs)(norm, gamma, beta), compiler_options=options)
    with jax.set_mesh(mesh(AxisType.Explicit)):
        place = spec(x.ndim, axis)
        for value in jax.eval_shape(f, *jax.device_put((x, dy, mask), place)):
            assert value.sharding.spec == place
        assert_right(norm, x, gamma, beta, mask, dy, f, place)


@sharded_axes("explicit", core=True)
def test_explicit_mesh_axes(norm, axis, rng):
    x, gamma, beta, mask = norm.draw(rng, norm.shapes["plain"], mask=True)
    dy = rng.normal(size=x.shape).astype(x.dtype)
    assert_explicit_axes_work(norm, axis, x, gamma, beta, mask, dy)


@sharded_axes("explicit", core=False, last=True)
def test_explicit_mesh_axes_of_what_composes_the_core(norm, axis, rng):
    """Along each axis in turn, the types of the results say where these lie.

    What they are, with the last axis on all devices, test_explicit.py says of those that can
    be divided without a mesh of explicit axes, too.
    """
    x, gamma, beta, mask = norm.draw(rng, norm.shapes["plain"], mask=True)
    dy = rng.normal(size=x.shape).astype(x.dtype)
    f = masked_outputs(norm, gamma, beta)
    explicit = mesh(AxisType.Explicit)
    for along in range(x.ndim):
        if x.shape[along] % 8 == 0:
            with jax.set_mesh(explicit):
                place = spec(x.ndim, along)
                for value in jax.eval_shape(f, *jax.device_put((x, dy, mask), place)):
                    assert value.sharding.spec == place
    if "shards" in norm.exempt:
        assert_explicit_axes_work(norm, axis, x, gamma, beta, mask, dy, masked_outputs, QUICKLY)


@pytest.mark.parametrize("shape", [(8, 3, 16), (8, 1, 16)])
def test_explicit_mesh_axes_of_fewer_groups_than_devices(shape, rng):
    (norm,) = (n for n in registry.NORMS if n.name == "group_norm")
    function = first(jaxnorm.group_norm, num_groups=2)
    norm = dataclasses.replace(norm, function=function, pools=in_groups(2))
    x, gamma, beta, mask = norm.draw(rng, shape, mask=True)
    dy = rng.normal(size=x.shape).astype(x.dtype)
    assert_explicit_axes_work(norm, 2, x, gamma, beta, mask, dy)


@pytest.mark.parametrize("axis", [0, 2])
def test_explicit_mesh_axes_of_as_many_groups_as_devices(axis, rng):
    (norm,) = (n for n in registry.NORMS if n.name == "group_norm")
    function = first(jaxnorm.group_norm, num_groups=8)
    norm = dataclasses.replace(norm, function=function, pools=in_groups(8))
    x, gamma, beta, mask = norm.draw(rng, (8, 3, 16), mask=True)
    dy = rng.normal(size=x.shape).astype(x.dtype)
    assert_explicit_axes_work(norm, axis, x, gamma, beta, mask, dy)


def mapped_over_devices(norm, axis, arguments):
    """`norm` of what each device has, in a shard_map that checks what varies over devices."""
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

    def both(dy, *arguments):
        y, vjp = jax.vjp(mapped, *arguments[:3], arguments[3])
        return y, vjp(dy)[:3]

    return both


@sharded_axes(free=True)
def test_shard_map_where_nothing_crosses_devices(norm, axis, rng):
    arguments = norm.draw(rng, norm.shapes["plain"], mask=True)
    x = arguments[0]
    dy = rng.normal(size=x.shape).astype(x.dtype)
    both = mapped_over_devices(norm, axis, arguments)
    if norm.name not in registry.CORE:
        # The program of each device is that of one; here it is traced.
        y, (dx, *_) = jax.eval_shape(both, dy, *arguments)
        assert y.shape == dx.shape == x.shape
        return
    y, (dx, *_) = jax.jit(both)(dy, *arguments)
    exact = norm.expected_vjp(*arguments, dy)[0]
    np.testing.assert_allclose(y, norm.expected(*arguments), atol=8e-6)
    np.testing.assert_allclose(dx, exact, atol=8e-6 * max(1.0, np.abs(exact).max()))
