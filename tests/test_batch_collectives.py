"""How much a synchronised batch norm communicates, read from the compiled program."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxnorm
import jaxnorm.linen as jnn
from tests.hlo import collectives

P = PartitionSpec
CHANNELS = 6
FLOATS = 4 * CHANNELS  # bytes of one statistic of all channels


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((8,), ("d",), axis_types=(kind,))


def batch(mesh):
    return jax.device_put(jnp.ones((48, 5, 5, CHANNELS)), NamedSharding(mesh, P("d")))


def communication(norm, mapped):
    """Of a layer in training: its forward pass, and forward and backward together."""
    x = batch(mesh())
    variables = norm.init(jax.random.key(0), jnp.ones(x.shape), use_running_average=False)

    def forward(params, x):
        stats = {"batch_stats": variables["batch_stats"]}
        y, new = norm.apply(
            {"params": params, **stats}, x, use_running_average=False, mutable=["batch_stats"]
        )
        return y, new["batch_stats"]

    if mapped:
        forward = jax.shard_map(
            forward, mesh=mesh(), in_specs=(P(), P("d")), out_specs=(P("d"), P())
        )

    def both(params, x, dy):
        y, transpose, stats = jax.vjp(forward, params, x, has_aux=True)
        return y, transpose(dy), stats

    params = jax.device_put(variables["params"], NamedSharding(mesh(), P()))
    return collectives(forward, params, x), collectives(both, params, x, x)


@pytest.mark.parametrize("mapped", [False, True], ids=["sharded jit", "shard_map"])
def test_a_synchronised_layer(mapped):
    """Two small all-reduces forward and one backward, which carries gamma's and beta's as well.

    flax.linen has one forward. The second is what makes the variance exact: it sums the squares
    of what is left when the common mean is taken away, where flax.linen sums x^2. In statistics
    per channel: forward three (a mean, then two sums) to flax.linen's two; backward two in a
    sharded jit, where XLA may send them with the forward ones, and four in shard_map; flax.linen
    has three in both.
    """
    name = "d" if mapped else None
    forward, both = communication(jnn.BatchNorm(axis_name=name), mapped)
    flax_forward, flax_both = communication(nn.BatchNorm(axis_name=name), mapped)
    assert forward == [("all-reduce", FLOATS), ("all-reduce", 2 * FLOATS)]
    assert flax_forward == [("all-reduce", 2 * FLOATS)]
    assert {kind for kind, _ in both} == {"all-reduce"}
    assert len(flax_both) == 2
    assert len(both) == 3 if mapped else len(both) <= 3
    assert sum(size for _, size in both) == (7 if mapped else 5) * FLOATS
    assert sum(size for _, size in flax_both) == 5 * FLOATS


def norms():
    running = jaxnorm.Moments(jnp.zeros(CHANNELS), jnp.ones(CHANNELS), jnp.zeros(()))
    ids = jnp.arange(48) % 3
    return {
        "batch": jaxnorm.batch_norm,
        "renorm": functools.partial(jaxnorm.batch_renorm, running=running, r_max=2.0, d_max=1.0),
        "blend": functools.partial(jaxnorm.blended_batch_norm, running=running, weight=0.3),
        "segments": functools.partial(jaxnorm.segment_batch_norm, segment_ids=ids, num_segments=3),
    }


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda k: k.name)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["batch", "renorm", "blend", "segments"])
def test_two_all_reduces_in_a_sharded_jit(name, masked, kind):
    """With a mask too: the counts travel with the sums. The input itself never moves."""
    x = batch(mesh(kind))

    def apply(x, mask):
        return norms()[name](x, axis=(0, 1, 2), mask=mask)

    mask = (x[..., :1] > 0) if masked else None
    found = collectives(apply, x, mask)
    assert [kind for kind, _ in found] == ["all-reduce"] * 2
    # Of three segments, at most: a mean, two sums, and the counts where there is a mask.
    assert sum(size for _, size in found) <= 3 * 4 * FLOATS
