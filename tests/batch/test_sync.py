"""Statistics pooled over devices equal those of one device that holds the whole batch."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxnorm
import jaxnorm.linen as jnn
from tests.support.sum_tolerance import assert_parameter_gradients_close

pytestmark = pytest.mark.quickly_compiled

P = PartitionSpec
# Statistics are summed in another order, and each result is rounded a few times by 6e-8; outputs
# and gradients below stay under 10.
CLOSE = {"rtol": 2e-6, "atol": 4e-6}


def mesh(shape=(8,), names=("d",), kind=AxisType.Explicit):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names))


@pytest.fixture
def data(rng):
    """A batch, a mask that leaves shards with different counts (one with none), parameters."""
    x = rng.normal(size=(16, 3, 4)).astype(np.float32)
    mask = rng.random((16, 3, 1)) < 0.6
    mask[4:6] = False  # the third of eight shards
    mask[6:8] = True
    weights = rng.normal(size=(16, 3, 4)).astype(np.float32)
    gamma, beta = rng.normal(size=(2, 4)).astype(np.float32)
    return x, mask, weights, gamma, beta


def norm(x, mask, gamma, beta, *, masked=True, **sync):
    mask = mask if masked else None
    return jaxnorm.batch_norm(x, gamma, beta, axis=(0, 1), mask=mask, **sync)


def value_and_gradients(apply, x, mask, weights, gamma, beta):
    def loss(x, gamma, beta):
        y, moments = apply(x, mask, gamma, beta)
        return (y * weights).sum() + (moments.mean * moments.var).sum(), (y, moments)

    (_, aux), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(x, gamma, beta)
    return *aux, grads


@functools.partial(jax.jit, static_argnums=0)
def of_one_device(masked, *arguments):
    return value_and_gradients(functools.partial(norm, masked=masked), *arguments)


def under_shard_map(mesh, spec, names, masked=True):
    """Replicated moments are inferred: the default check_vma=True accepts out_specs P()."""
    return jax.shard_map(
        functools.partial(norm, axis_name=names, masked=masked),
        mesh=mesh,
        in_specs=(spec, spec, P(), P()),
        out_specs=(spec, jaxnorm.Moments(P(), P(), P())),
    )


def under_vmap(names, masked=True):
    def apply(x, mask, gamma, beta):
        def local(x, mask):
            return norm(x, mask, gamma, beta, axis_name=names, masked=masked)

        local = jax.vmap(local, axis_name=names[-1], out_axes=(0, None))
        shape = (8,)
        if len(names) == 2:
            local = jax.vmap(local, axis_name=names[0], out_axes=(0, None))
            shape = (4, 2)
        x_parts, mask_parts = (v.reshape(*shape, 2, *v.shape[1:]) for v in (x, mask))
        y, moments = local(x_parts, mask_parts)
        return y.reshape(x.shape), moments

    return apply


WAYS = {
    "shard_map": (mesh(kind=AxisType.Auto), P("d"), ("d",)),
    "shard_map of an explicit mesh": (mesh(), P("d"), ("d",)),
    "shard_map over two axes": (mesh((4, 2), ("a", "b")), P(("a", "b")), ("a", "b")),
    "vmap": (None, None, ("d",)),
    "vmap over two axes": (None, None, ("a", "b")),
    "sharded jit": (mesh(kind=AxisType.Auto), P("d"), None),
    "sharded jit of an explicit mesh": (mesh(), P("d"), None),
}


# A mask adds counts, however devices are named.
UNMASKED = ("shard_map", "vmap", "sharded jit")
EACH = [(way, True) for way in WAYS] + [(way, False) for way in UNMASKED]


@pytest.mark.parametrize(("way", "masked"), EACH)
def test_equals_one_device(data, way, masked):
    x, mask, weights, gamma, beta = data
    expected = of_one_device(masked, x, mask, weights, gamma, beta)

    one = functools.partial(norm, masked=masked)
    mesh, spec, names = WAYS[way]
    if mesh is None:
        apply = under_vmap(names, masked)
    else:
        x, mask, weights = jax.device_put((x, mask, weights), NamedSharding(mesh, spec))
        apply = one if names is None else under_shard_map(mesh, spec, names, masked)
    actual = jax.jit(functools.partial(value_and_gradients, apply))(x, mask, weights, gamma, beta)
    (*actual, (dx, *sums)), (*expected, (dx_, *sums_)) = jax.device_get((actual, expected))
    chex.assert_trees_all_close((actual, dx), (expected, dx_), **CLOSE)
    y, dy = expected[0], np.where(mask, weights, 0) if masked else weights
    assert_parameter_gradients_close(sums, sums_, dy, (y - np.asarray(beta)) / np.asarray(gamma))


@pytest.mark.parametrize("way", ["shard_map", "vmap", "sharded jit"])
def test_stable_at_a_large_mean(data, way):
    """mean/std 1e6: the float64 reference sees the same float32 input."""
    x, mask, *_ = data
    x = x + 1e6
    kept = np.asarray(x, np.float64)
    packed = np.ma.array(kept, mask=np.broadcast_to(~np.asarray(mask), x.shape))
    hat = (packed - packed.mean((0, 1))) / np.sqrt(packed.var((0, 1)) + 1e-5)
    mesh, spec, names = WAYS[way]
    if mesh is None:
        apply = under_vmap(names)
    else:
        x, mask = jax.device_put((x, mask), NamedSharding(mesh, spec))
        apply = norm if names is None else under_shard_map(mesh, spec, names)
    y, moments = jax.jit(apply)(x, mask, np.ones(4, np.float32), np.zeros(4, np.float32))
    # The contract's bound for float32; the mean itself is rounded to float32 (6e-2 here).
    np.testing.assert_allclose(y, hat.filled(0), atol=4e-6)
    np.testing.assert_allclose(moments.var, packed.var((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(moments.mean, packed.mean((0, 1)), rtol=6e-8)


@jax.jit
def of_one_group(x, mask, dy, gamma, beta):
    y, transpose = jax.vjp(lambda x: norm(x, mask, gamma, beta)[0], x)
    return y, transpose(dy)[0]


GROUPS = {
    "equal": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "interleaved": [[0, 2, 4, 6], [1, 3, 5, 7]],
    "unequal": [[0], [1, 2, 3], [4, 5, 6, 7]],
}


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("way", ["shard_map", "vmap"])
def test_groups_of_devices(data, kind, way):
    x, mask, _, gamma, beta = data
    x[4:6], mask[4:6] = 7, True
    groups = GROUPS[kind]
    parts, masks = x.reshape(8, 2, 3, 4), mask.reshape(8, 2, 3, 1)
    dy = np.cos(np.arange(x.size, dtype=np.float32)).reshape(parts.shape)
    expected, gradient = np.zeros(parts.shape), np.zeros(parts.shape)
    for group in groups:
        rows = np.array(group)
        joined, joined_mask, joined_dy = (
            v[rows].reshape(-1, *v.shape[2:]) for v in (parts, masks, dy)
        )
        shape = (len(group), 2, 3, 4)
        y, dx = of_one_group(joined, joined_mask, joined_dy, gamma, beta)
        expected[group], gradient[group] = (np.reshape(v, shape) for v in (y, dx))

    local = functools.partial(norm, gamma=gamma, beta=beta, axis_name="d", axis_index_groups=groups)
    if way == "vmap":

        def apply(x):
            return jax.vmap(lambda x, mask: local(x, mask)[0], axis_name="d")(x, masks)

    else:
        specs = {"in_specs": (P("d"), P("d")), "out_specs": P("d")}
        mapped = jax.shard_map(lambda x, mask: local(x, mask)[0], mesh=mesh(), **specs)
        parts, mask, dy = jax.device_put(
            (x, mask, dy.reshape(x.shape)), NamedSharding(mesh(), P("d"))
        )

        def apply(x):
            return mapped(x, mask)

    @jax.jit
    def both(x, dy):
        y, transpose = jax.vjp(apply, x)
        return y, transpose(dy)[0]

    y, dx = both(parts, dy)
    np.testing.assert_allclose(np.asarray(y).reshape(expected.shape), expected, **CLOSE)
    np.testing.assert_allclose(np.asarray(dx).reshape(expected.shape), gradient, **CLOSE)


def test_groups_must_hold_every_index_once():
    groups = [[0, 1], [1, 2, 3]]
    with pytest.raises(ValueError) as error:
        jax.vmap(
            lambda x: jaxnorm.moments(x, 0, axis_name="d", axis_index_groups=groups),
            axis_name="d",
        )(jnp.ones((4, 2)))
    assert str(error.value) == (
        "axis_index_groups=[[0, 1], [1, 2, 3]] must hold each index of axis_name='d', 0 to 3, "
        "exactly once."
    )


class Net(nn.Module):
    axis_name: str | None = None
    frozen: str | None = None

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4)(x)
        return jnn.BatchNorm(axis_name=self.axis_name, frozen=self.frozen, name="norm")(
            x, use_running_average=not train
        )


@pytest.mark.parametrize("way", ["shard_map", "vmap", "nn.vmap"])
def test_module(data, way):
    """Parameters' gradients and running statistics; evaluation needs no bound axis."""
    x = data[0]
    variables = jax.jit(functools.partial(Net().init, train=True))(jax.random.key(0), x)

    def loss(net, x, variables=variables):
        y, new = net.apply(variables, x, train=True, mutable=["batch_stats"])
        return y, new["batch_stats"]

    y, stats = jax.jit(functools.partial(loss, Net()))(x)
    if way == "shard_map":
        apply = jax.shard_map(
            functools.partial(loss, Net("d")), mesh=mesh(), in_specs=P("d"), out_specs=(P("d"), P())
        )
        with jax.set_mesh(mesh()):
            synced, new = jax.jit(apply)(jax.device_put(x, NamedSharding(mesh(), P("d"))))
    else:
        if way == "vmap":
            parts = x.reshape(8, 2, 3, 4)
            synced, new = jax.jit(
                jax.vmap(functools.partial(loss, Net("d")), axis_name="d", out_axes=(0, None))
            )(parts)
        else:
            lifted = nn.vmap(
                Net,
                in_axes=(0, None),
                variable_axes={"params": None, "batch_stats": None},
                split_rngs={"params": False},
                axis_name="d",
            )("d")
            apply = functools.partial(lifted.apply, mutable=["batch_stats"])
            parts = x.reshape(8, 2, 3, 4)
            synced, new = jax.jit(apply, static_argnums=2)(variables, parts, True)
            new = new["batch_stats"]
        synced = synced.reshape(y.shape)
    np.testing.assert_allclose(synced, y, **CLOSE)
    chex.assert_trees_all_close(jax.device_get(new), jax.device_get(stats), **CLOSE)
    jax.eval_shape(functools.partial(Net("d").apply, train=False), variables, x)
    frozen = Net("d", frozen="statistics")
    jax.eval_shape(functools.partial(frozen.apply, train=True), variables, x)


def test_an_unbound_axis_is_an_error_that_names_it_and_the_module(data):
    init = functools.partial(Net("d").init, train=True)
    variables = jax.eval_shape(init, jax.random.key(0), data[0])
    apply = functools.partial(Net("d").apply, train=True, mutable=["batch_stats"])
    with pytest.raises(NameError) as error:
        jax.eval_shape(apply, variables, data[0])
    assert str(error.value) == (
        "BatchNorm norm: axis_name='d' is not bound here. Call this inside jax.vmap or "
        "jax.shard_map with an axis of that name, or leave axis_name out: a jitted function of "
        "sharded arrays pools over all devices without it."
    )


def test_moments_of_devices_can_be_merged_later(data):
    """Each device normalizes by itself; only the running statistics are made common."""
    x, mask, *_ = data
    expected = jax.jit(lambda x, mask: jaxnorm.moments(x, (0, 1), mask=mask))(x, mask)

    def merged(x, mask):
        return jaxnorm.merge_moments(jaxnorm.moments(x, (0, 1), mask=mask), axis_name="d")

    specs = {"in_specs": P("d"), "out_specs": P()}
    x, mask = jax.device_put((x, mask), NamedSharding(mesh(), P("d")))
    actual = jax.jit(jax.shard_map(merged, mesh=mesh(), **specs))(x, mask)
    chex.assert_trees_all_close(jax.device_get(actual), jax.device_get(expected), **CLOSE)
