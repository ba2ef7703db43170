"""Features or positions divided over devices: each norm of an example equals that of one device."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import jaxnorm
import jaxnorm.linen as jnn
from tests.support import reference
from tests.support.hlo import collectives

pytestmark = pytest.mark.quickly_compiled

P = PartitionSpec
SHAPE = (3, 16, 8)  # examples, positions, channels

# The function, the axis that is divided, and the pools. Divided channels carry their own gamma.
NORMS = {
    "layer": (jaxnorm.layer_norm, 2, reference.pools_over(SHAPE, (2,))),
    "layer, positions": (
        functools.partial(jaxnorm.layer_norm, axis=(1, 2), feature_axes=2),
        1,
        reference.pools_over(SHAPE, (1, 2)),
    ),
    "rms": (jaxnorm.rms_norm, 2, reference.pools_over(SHAPE, (2,))),
    "group": (
        functools.partial(jaxnorm.group_norm, num_groups=4),
        1,
        reference.pools_of_groups(SHAPE, 4, 2, (1,)),
    ),
    "one group": (
        functools.partial(jaxnorm.group_norm, num_groups=1),
        2,
        reference.pools_over(SHAPE, (1, 2)),
    ),
    "instance": (jaxnorm.instance_norm, 1, reference.pools_over(SHAPE, (1,))),
}


def draw(rng, kind, masked):
    x = rng.normal(size=SHAPE)
    x += {"centered": 0, "off": rng.normal(size=(3, 1, 1)), "far": 1e6}[kind]
    gamma, beta = rng.normal(size=(2, SHAPE[2]))
    arrays = [a.astype(np.float32) for a in (x, gamma, beta, rng.normal(size=SHAPE))]
    # Parts with all, some and none of their elements.
    share = np.linspace(0, 1.4, SHAPE[1])[:, None] * np.linspace(0, 1.4, SHAPE[2])
    return [*arrays, rng.random(SHAPE) < share if masked else None]


def results(norm, names, groups, x, gamma, beta, dy, mask, typed=True):
    """The result and all gradients on each device.

    Without types that say what varies, JAX differentiates the sum of the devices' losses itself.
    """

    def loss(x, gamma, beta):
        y = norm(x, gamma, beta, mask=mask, axis_name=names, axis_index_groups=groups)
        loss = (y * dy).sum()
        return (jax.lax.psum(loss, names) if typed else loss), y

    gradients, y = jax.grad(loss, (0, 1, 2), has_aux=True)(x, gamma, beta)
    return y, *gradients


def check(actual, arguments, name, pools):
    x, gamma, beta, dy, mask = [None if a is None else np.asarray(a) for a in arguments]
    rms = name.startswith("rms")
    kind = {
        "formula": reference.over_rms if rms else reference.standardized,
        "pools": pools,
        "feature_axes": (2,),
        "epsilon": 1e-6,
    }
    y, *gradients = actual
    expected = reference.normalize(x, gamma, beta, mask, **kind)
    # The contract's bound.
    atol = 4e-6 * max(1, np.abs(expected).max() / 3)
    np.testing.assert_allclose(y, expected, atol=atol, rtol=0)
    vjp = reference.over_rms_vjp if rms else reference.standardized_vjp
    expected = reference.normalize_vjp(x, gamma, beta, mask, dy, vjp=vjp, **kind)
    # dx is a sum of values of the size of dy gamma / sigma; dgamma and dbeta are sums of up to 48
    # terms up to 5.
    spread = reference.apply_over_pools(lambda v: _inverse_sigma(v, rms), pools, mask, x)
    bounds = (4e-6 * np.abs(dy * gamma).max() * spread, 48 * 5 * 1.2e-7, 48 * 5 * 1.2e-7)
    for value, exact, bound in zip(gradients, expected, bounds, strict=True):
        assert (np.abs(value - exact) <= bound).all()


def _inverse_sigma(v, rms):
    centered = v if rms else reference.centered_at_mean(v)
    return np.ones_like(v) / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)


def shard_mapped(function, axis, sizes=(8,), names=("d",), **options):
    mesh = jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(names))
    x = P(*(names if a == axis else None for a in range(3)))
    own = P(names) if axis == 2 else P()
    return jax.jit(
        jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(x, own, own, x, x),
            out_specs=(x, x, own, own),
            **options,
        )
    )


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("name", NORMS)
def test_shard_map_equals_one_device(name, masked, rng):
    norm, axis, pools = NORMS[name]
    mapped = shard_mapped(functools.partial(results, norm, "d", None), axis)
    for kind in ("centered", "off", "far"):
        arguments = draw(rng, kind, masked)
        check(mapped(*arguments), arguments, name, pools)


def test_two_named_axes_vmap_and_no_types_equal_one_device(rng):
    norm, _, pools = NORMS["layer"]
    arguments = draw(rng, "off", True)
    over = shard_mapped(functools.partial(results, norm, ("a", "b"), None), 2, (4, 2), ("a", "b"))
    check(over(*arguments), arguments, "layer", pools)

    def split(a, axis):
        return np.stack(np.split(a, 4, axis), 0)

    parts = [split(a, -1) for a in arguments]
    untyped = functools.partial(results, norm, "d", None, typed=False)
    mapped = jax.jit(jax.vmap(untyped, axis_name="d"))(*parts)
    check([np.concatenate(list(a), -1) for a in mapped], arguments, "layer", pools)
    unchecked = shard_mapped(untyped, 2, check_vma=False)
    check(unchecked(*arguments), arguments, "layer", pools)


def test_groups_of_devices_pool_apart(rng):
    """Four devices hold the first half of the positions, as if they were another example."""
    norm, axis, _ = NORMS["instance"]
    groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
    mapped = shard_mapped(functools.partial(results, norm, "d", groups), axis)
    arguments = draw(rng, "far", True)
    halves = np.arange(np.prod(SHAPE)).reshape(3, 2, 8, 8).transpose(0, 1, 3, 2).reshape(-1, 8)
    check(mapped(*arguments), arguments, "instance", halves)


def test_axis_index_groups_need_axis_name():
    with pytest.raises(ValueError, match=r"axis_index_groups=.* give both or neither"):
        jaxnorm.layer_norm(jnp.ones((2, 3)), axis_index_groups=[[0, 1]])


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("name", NORMS)
def test_one_small_all_reduce_forward_and_no_more_than_two(name, masked, rng):
    """Sums and counts of each pool; of the input nothing, and nothing of it is gathered."""
    norm, axis, pools = NORMS[name]

    def forward(x, gamma, beta, dy, mask):
        return norm(x, gamma, beta, mask=mask, axis_name="d"), x, gamma, beta

    mapped = shard_mapped(forward, axis)
    arguments = draw(rng, "off", masked)
    bound = (3 if masked else 2) * 4 * len(pools)
    often, rare = (collectives(mapped, *arguments, rare=r) for r in (False, True))
    assert [kind for kind, _ in often] == ["all-reduce"] and often[0][1] <= bound
    assert [kind for kind, _ in rare] == ["all-reduce"] * (not name.startswith("rms"))


MODULES = {
    "layer": (jnn.LayerNorm, nn.LayerNorm, {}, 2),
    "rms": (jnn.RMSNorm, nn.RMSNorm, {}, 2),
    "group": (jnn.GroupNorm, nn.GroupNorm, {"num_groups": 4}, 1),
    "instance": (jnn.InstanceNorm, nn.InstanceNorm, {}, 1),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_equal_flax_linen(name, rng):
    """Ours can be initialised where no axis is bound."""
    ours, theirs, options, axis = MODULES[name]
    ours = ours(**options, axis_name="d", param_names=("scale", "bias"))
    x = draw(rng, "centered", False)[0]
    part = x[..., :1] if axis == 2 else x
    mine, shapes = (
        jax.eval_shape(module.init, jax.random.key(0), part) for module in (ours, theirs(**options))
    )
    chex.assert_trees_all_equal_shapes(mine, shapes)
    variables = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(p.dtype), shapes)

    spec = P(*("d" if a == axis else None for a in range(3)))
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
    def apply(x):
        return [module.apply(variables, x) for module in (ours, theirs(**options, axis_name="d"))]

    # flax.linen subtracts E[x]^2 from E[x^2], which loses a few bits.
    chex.assert_trees_all_close(*apply(x), atol=2e-5)
