"""How much a synchronised batch norm communicates, read from the compiled program."""

import functools
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import nbformat
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxnorm
import jaxnorm.linen as jnn
from tests.support.hlo import collectives

pytestmark = pytest.mark.quickly_compiled

P = PartitionSpec
NOTEBOOK = pathlib.Path(__file__).parents[2] / "notebooks" / "06_exact_lean_fast.ipynb"
CHANNELS = 6
FLOATS = 4 * CHANNELS  # bytes of one statistic of all channels


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((8,), ("d",), axis_types=(kind,))


def batch(mesh):
    ones = np.ones((48, 5, 5, CHANNELS), np.float32)
    return jax.device_put(ones, NamedSharding(mesh, P("d")))


def kept(mesh):
    return jax.device_put(np.ones((48, 5, 5, 1), bool), NamedSharding(mesh, P("d")))


def communication(norm, mapped, masked=False):
    """What a layer sends in training: (forward, backward, both in one program if not masked)."""
    x = batch(mesh())
    mask = kept(mesh()) if masked else None
    init = functools.partial(norm.init, use_running_average=False)
    variables = jax.jit(init)(jax.random.key(0), np.ones(x.shape, np.float32))
    variables = jax.tree.map(np.asarray, variables)

    def forward(params, x):
        stats = {"batch_stats": variables["batch_stats"]}

        def apply(params, x, mask):
            y, new = norm.apply(
                {"params": params, **stats},
                x,
                mask=mask,
                use_running_average=False,
                mutable=["batch_stats"],
            )
            return y, new["batch_stats"]

        if mapped:
            specs = {"in_specs": (P(), P("d"), P("d")), "out_specs": (P("d"), P())}
            apply = jax.shard_map(apply, mesh=mesh(), **specs)
        return apply(params, x, mask)

    def transposed(params, x):
        y, transpose, stats = jax.vjp(forward, params, x, has_aux=True)
        return transpose, y, stats

    def both(params, x, dy):
        transpose, y, stats = transposed(params, x)
        return y, transpose(dy), stats

    params = jax.device_put(variables["params"], NamedSharding(mesh(), P()))
    transpose = jax.jit(transposed)(params, x)[0]
    return (
        collectives(forward, params, x),
        collectives(lambda transpose, dy: transpose(dy), transpose, x),
        [] if masked else collectives(both, params, x, x),
    )


def documented_row(name):
    """The row of the notebook's table: the number and bytes forward, then backward."""
    text = "\n".join(cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells)
    row = rf"^\| {re.escape(name)} \| (\d+) \| (\d+) C \| (\d+) \| (\d+) C \|$"
    return [int(n) for n in re.search(row, text, re.M).groups()]


def as_row(forward, backward):
    sizes = [[size for _, size in found] for found in (forward, backward)]
    return [n for s in sizes for n in (len(s), sum(s) // CHANNELS)]


@pytest.mark.parametrize("mapped", [False, True], ids=["sharded jit", "shard_map"])
def test_a_synchronised_layer_sends_what_the_notebook_says(mapped):
    """Over named axes one small all-reduce each way, of sums that a check on the data accepts.

    The backward one carries gamma's and beta's derivatives as well. A sharded jit has no check on
    CPU: a second all-reduce sums the squares of what is left when the common mean is taken away.
    """
    name, way = ("d", "`shard_map`") if mapped else (None, "sharded `jit`")
    forward, backward, both = communication(jnn.BatchNorm(axis_name=name), mapped)
    once = [("all-reduce", 2 * FLOATS)]
    assert forward == (once if mapped else [("all-reduce", FLOATS), *once])
    assert as_row(forward, backward) == documented_row(f"jaxnorm, {way}")
    flax_forward, flax_backward, flax_both = communication(nn.BatchNorm(axis_name=name), mapped)
    assert as_row(flax_forward, flax_backward) == documented_row(f"flax.linen, {way}")
    assert {kind for kind, _ in backward + both} == {"all-reduce"}
    # In one program XLA may send the backward pass's with the forward ones, never more.
    for one, parts in ((both, forward + backward), (flax_both, flax_forward + flax_backward)):
        assert len(one) <= len(parts)
        assert sum(size for _, size in one) <= sum(size for _, size in parts)


@pytest.mark.parametrize("mapped", [False, True], ids=["sharded jit", "shard_map"])
def test_a_mask_adds_counts_and_no_collective(mapped):
    norm = jnn.BatchNorm(axis_name="d" if mapped else None)
    forward, backward, _ = communication(norm, mapped, masked=True)
    assert [kind for kind, _ in forward] == ["all-reduce"] * (1 if mapped else 2)
    assert [kind for kind, _ in backward] == ["all-reduce"]
    # As the notebook says: at most two counts per channel.
    assert sum(size for _, size in forward) <= (3 if mapped else 3 + 2) * FLOATS
    assert sum(size for _, size in backward) == 2 * FLOATS


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

    mask = kept(mesh(kind)) if masked else None
    found = collectives(apply, x, mask)
    assert [kind for kind, _ in found] == ["all-reduce"] * 2
    # Of three segments, at most: a mean, two sums, and the counts where there is a mask.
    assert sum(size for _, size in found) <= 3 * 4 * FLOATS
