"""Virtual batches: the same parts, and the same result, whatever the number of devices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxnorm
import jaxnorm.linen as jnn
from tests.support.hlo import collectives
from tests.support.sum_tolerance import assert_parameter_gradients_close

pytestmark = pytest.mark.quickly_compiled

P = PartitionSpec
# As in test_batch_sync: a few roundings of values below 10.
CLOSE = {"rtol": 2e-6, "atol": 4e-6}


@pytest.fixture
def data(rng):
    x, dy = jnp.asarray(rng.normal(size=(2, 48, 3, 4)) + 2, jnp.float32)
    mask = jnp.asarray(rng.random((48, 3, 1)) < 0.7)
    gamma, beta = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
    return x, mask, dy, gamma, beta


def apply(x, mask, dy, gamma, beta, **options):
    def norm(x, gamma, beta):
        return jaxnorm.ghost_batch_norm(x, gamma, beta, axis=(0, 1), mask=mask, **options)

    y, transpose, moments = jax.vjp(norm, x, gamma, beta, has_aux=True)
    dx, *sums = transpose(dy)
    moments = moments._replace(count=jnp.broadcast_to(moments.count, moments.mean.shape))
    return (y, moments, dx), sums


def part_by_part(x, mask, dy, gamma, beta, parts):
    """Each part normalized by a call of its own; parameters' gradients added up."""

    @jax.jit
    def of_one(x, mask, dy):
        def norm(x, gamma, beta):
            return jaxnorm.batch_norm(x, gamma, beta, axis=(0, 1), mask=mask)[0]

        y, transpose = jax.vjp(norm, x, gamma, beta)
        return y, *transpose(dy)

    def split(a):
        return [None] * parts if a is None else np.split(np.asarray(a), parts)

    pieces = zip(split(x), split(mask), split(dy), strict=True)
    y, dx, dgamma, dbeta = zip(*(of_one(*piece) for piece in pieces), strict=True)
    # By the law of total variance the parts' moments make those of the whole.
    moments = jaxnorm.moments(x, (0, 1), mask=mask)
    moments = moments._replace(count=jnp.broadcast_to(moments.count, moments.mean.shape))
    return (np.concatenate(y), moments, np.concatenate(dx)), [sum(dgamma), sum(dbeta)]


def assert_close(actual, expected, mask, dy, gamma, beta):
    (actual, sums), (expected, expected_sums) = jax.device_get((actual, expected))
    mask, dy, gamma, beta = jax.device_get((mask, dy, gamma, beta))
    chex.assert_trees_all_close(actual, expected, **CLOSE)
    dy = dy if mask is None else np.where(mask, dy, 0)
    assert_parameter_gradients_close(sums, expected_sums, dy, (expected[0] - beta) / gamma)


@pytest.mark.parametrize(("parts", "masked"), [(1, True), (3, True), (8, False)])
def test_equals_each_part_by_itself(data, parts, masked):
    x, mask, *rest = data
    mask = mask if masked else None
    actual = on_one_device(parts)(x, mask, *rest)
    expected = part_by_part(x, mask, *rest, parts=parts)
    assert_close(actual, expected, mask, *rest)


@functools.cache
def on_one_device(parts):
    """The program whose results those on several devices equal."""
    return jax.jit(functools.partial(apply, num_virtual_batches=parts))


@pytest.mark.parametrize(
    ("parts", "kind"),
    [(2, AxisType.Auto), (3, AxisType.Explicit), (8, AxisType.Auto), (16, AxisType.Explicit)],
    ids=lambda value: getattr(value, "name", value),
)
def test_sharded_jit_on_eight_devices(data, parts, kind):
    """Equal to one device; the input is never gathered, and whole parts need no communication."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
    expected = on_one_device(parts)(*data)
    placed = (*jax.device_put(data[:3], NamedSharding(mesh, P("d"))), *data[3:])
    actual = on_one_device(parts)(*placed)
    assert_close(actual, expected, *data[1:])

    def forward(x, mask):
        return jaxnorm.ghost_batch_norm(x, axis=(0, 1), mask=mask, num_virtual_batches=parts)[0]

    def both(x, mask, dy):
        y, transpose = jax.vjp(functools.partial(forward, mask=mask), x)
        return y, transpose(dy)

    found = collectives(both, *placed[:3])
    assert {kind for kind, _ in found} <= {"all-reduce"}
    # Of each part at most its mean, two sums and the count, or two sums backward.
    assert all(size <= 4 * parts * 4 * 4 for _, size in found)
    assert parts % 8 or found == []


@pytest.mark.parametrize("parts", [2, 8, 16])
def test_shard_map_with_a_named_axis(data, parts):
    """Parts are counted over all devices: it is the same batch norm as without a mesh."""
    mesh = jax.make_mesh((8,), ("d",))
    expected = on_one_device(parts)(*data)
    run = functools.partial(apply, num_virtual_batches=parts, axis_name="d")
    specs = {
        "in_specs": (P("d"), P("d"), P("d"), P(), P()),
        "out_specs": ((P("d"), P(), P("d")), P()),
    }
    placed = (*jax.device_put(data[:3], NamedSharding(mesh, P("d"))), *data[3:])
    actual = jax.jit(jax.shard_map(run, mesh=mesh, **specs))(*placed)
    assert_close(actual, expected, *data[1:])


def test_parts_that_do_not_fit_the_devices():
    with pytest.raises(ValueError) as error:
        jax.vmap(
            lambda x: jaxnorm.ghost_batch_norm(x, num_virtual_batches=3, axis=0, axis_name="d"),
            axis_name="d",
        )(jnp.ones((8, 6, 2)))
    assert str(error.value) == (
        "num_virtual_batches=3 must divide the 8 devices of axis_name='d' or be a multiple of them."
    )


@pytest.mark.parametrize("source", ["batch", "renorm", 0.3])
def test_the_module_combines_the_parts_by_the_law_of_total_variance(data, source):
    x = data[0]
    norm = jnn.BatchNorm(
        num_virtual_batches=4, momentum=0.0, unbiased=False, train_statistics=source
    )
    train = {"use_running_average": False, "mutable": ["batch_stats"]}
    variables = jax.jit(functools.partial(norm.init, use_running_average=False))(
        jax.random.key(0), x
    )
    y, new = jax.jit(functools.partial(norm.apply, **train))(variables, x)
    values = np.asarray(x, np.float64).reshape(4, -1, 4)
    within, between = values.var(1).mean(0), values.mean(1).var(0)
    np.testing.assert_allclose(new["batch_stats"]["var"], within + between, rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["mean"], values.mean((0, 1)), rtol=1e-6)

    plain = jax.jit(functools.partial(jnn.BatchNorm(train_statistics=source).apply, **train))
    parts = [plain(variables, part)[0] for part in np.split(np.asarray(x), 4)]
    np.testing.assert_allclose(y, np.concatenate(parts), **CLOSE)


def test_equals_groups_of_devices_in_pmap(data):
    """What `axis_index_groups` made of eight devices, one jitted program makes of any number."""
    x, _, _, gamma, beta = data
    variables = {"params": {"gamma": gamma, "beta": beta}}
    options = {"eval_statistics": "batch", "use_running_average": True}
    groups = [[0, 1], [2, 3], [4, 5], [6, 7]]
    norm = jnn.BatchNorm(axis_name="d", axis_index_groups=groups, **options)
    grouped = jax.pmap(lambda x: norm.apply(variables, x), axis_name="d")(x.reshape(8, 6, 3, 4))
    virtual = jnn.BatchNorm(num_virtual_batches=4, **options).apply(variables, x)
    np.testing.assert_allclose(jax.device_get(grouped).reshape(x.shape), virtual, **CLOSE)
