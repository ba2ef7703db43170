"""What programs need, as segments and windows grow: no more memory, nor more operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxnorm
from jaxnorm.functional._window import window_count, window_sum
from tests.contract import registry
from tests.contract.test_exact import excess
from tests.support.hlo import collectives
from tests.support.programs import QUICKLY

NODES, FEATURES = 4096, 16
SEGMENTS = {
    "segment_batch_norm": lambda x, ids, number: jaxnorm.segment_batch_norm(
        x, ids, num_segments=number, axis=0
    )[0],
    "graph_norm": lambda x, ids, number: jaxnorm.graph_norm(
        x, ids, num_segments=number, alpha=jnp.full(FEATURES, 0.5)
    ),
    "pair_norm": lambda x, ids, number: jaxnorm.pair_norm(x, ids, num_segments=number),
}


def count(jaxpr):
    """The equations of a jaxpr and of those inside it."""
    inner = [
        getattr(v, "jaxpr", v) for e in jaxpr.eqns for v in jax.tree.leaves(list(e.params.values()))
    ]
    return len(jaxpr.eqns) + sum(count(j) for j in inner if hasattr(j, "eqns"))


def costs(f, *arrays):
    """Temporary memory in inputs, and equations, of the result and the input's gradient."""

    def both(x, *others):
        y, transpose = jax.vjp(lambda x: f(x, *others), x)
        return y, transpose(jnp.sin(y))

    compiled = jax.jit(both, compiler_options=QUICKLY).lower(*arrays).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes / arrays[0].nbytes
    return memory, count(jax.make_jaxpr(both)(*arrays).jaxpr)


@pytest.mark.parametrize("name", SEGMENTS)
def test_segments(name, rng):
    x = jnp.asarray(rng.standard_normal((NODES, FEATURES)), jnp.float32)
    found = []
    for number in (2, 400):
        ids = jnp.asarray(rng.integers(-1, number + 1, NODES), jnp.int32)
        found.append(costs(lambda x, ids, n=number: SEGMENTS[name](x, ids, n), x, ids))
    (_, few), (memory, many) = found
    # Beside two arrays like the input, a few numbers for each feature of each of the 400 segments.
    # XLA before 0.12 keeps one array more of the statistics: 5.7.
    assert max(memory, found[0][0]) < (5 if jax.__version_info__ >= (0, 12) else 6)
    assert abs(many - few) < 80 and many < 900


def test_more_segments_than_nodes(rng):
    """Their statistics are of the size of the input, not larger than it."""
    x = jnp.asarray(rng.standard_normal((512, 256)), jnp.float32)
    ids = jnp.asarray(rng.integers(-1, 40, 512) * 501, jnp.int32)

    def norm(x, ids, number=20_000):
        return jaxnorm.graph_norm(x, ids, num_segments=number, alpha=jnp.full(256, 0.5))

    memory, _ = costs(norm, x, ids)
    # Beyond the limit of 5: statistics of each of 512 segments are arrays like the input. Those of
    # 20,000 would be 40 times as large.
    assert memory < 14
    few = norm(x, jnp.where(ids < 0, -1, ids // 501), 40)
    np.testing.assert_allclose(norm(x, ids), few, atol=4e-6)


def test_moments_of_more_segments_than_nodes(rng):
    x = jnp.asarray(rng.standard_normal((6, 2)), jnp.float32)
    ids = np.array([900, 3, 900, -1, 3, 1000])
    _, moments = jaxnorm.segment_batch_norm(x, ids, num_segments=1000, axis=0)
    mean, var, count = np.zeros((3, 1000, 2))
    for segment in (3, 900):
        own = np.float64(x)[ids == segment]
        mean[segment], var[segment], count[segment] = own.mean(0), own.var(0), len(own)
    for values, expected in zip(moments, (mean, var, count), strict=True):
        np.testing.assert_allclose(values, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("axis", "windows", "most"),
    # Of a prime number of places one is added by itself, which takes two more arrays.
    [((1, 2), (3, 63), 5.5), (2, (31, 301), 9), ((0, 1, 2), (9,), 7)],
)
def test_windows(axis, windows, most, rng):
    x = jnp.asarray(rng.standard_normal((6, 48, 48, 16)), jnp.float32)
    found = [
        costs(functools.partial(jaxnorm.divisive_norm, axis=axis, window=window), x)
        for window in windows
    ]
    memory, operations = zip(*found, strict=True)
    assert max(memory) < most
    assert max(operations) < 250


def affine(size):
    return jnp.ones(size), jnp.zeros(size)


def running(size=64):
    return jaxnorm.Moments(jnp.zeros(size), jnp.ones(size), jnp.ones(()))


IMAGE, TOKENS, KERNEL = (8, 16, 16, 64), (8, 64, 256), (3, 3, 64, 128)
BATCH = {"axis": (0, 1, 2)}
STEP = jaxnorm.Moments(np.zeros(64, np.float32), np.ones(64, np.float32), np.zeros(64, np.float32))
# Of every public function a result like its input, and the input's shape.
CATALOGUE = {
    "adaptive_instance_norm": (lambda x: jaxnorm.adaptive_instance_norm(x, x[:, :4]), IMAGE),
    "batch_instance_norm": (
        lambda x: jaxnorm.batch_instance_norm(x, jnp.full(64, 0.5), *affine(64))[0],
        IMAGE,
    ),
    "batch_norm": (lambda x: jaxnorm.batch_norm(x, *affine(64), **BATCH)[0], IMAGE),
    "batch_norm_step": (
        lambda x: jaxnorm.batch_norm_step(x, STEP, training=True, **BATCH)[0],
        IMAGE,
    ),
    "batch_renorm": (
        lambda x: jaxnorm.batch_renorm(x, running(), r_max=3.0, d_max=5.0, **BATCH)[0],
        IMAGE,
    ),
    "blended_batch_norm": (
        lambda x: jaxnorm.blended_batch_norm(x, running(), weight=0.5, **BATCH)[0],
        IMAGE,
    ),
    "cumulative_norm": (
        lambda x: jaxnorm.cumulative_norm(x, *affine(256), axis=-1)[0],
        TOKENS,
    ),
    "decorrelate": (
        lambda x: jaxnorm.decorrelate(
            x, jaxnorm.Whitening(jnp.zeros(64), jnp.eye(64)[None], jnp.ones(())), axis=0
        ),
        (2048, 64),
    ),
    "demodulate": (
        lambda x: jaxnorm.demodulate(x, jnp.ones((1, 64)), axis=(0, 1, 2)),
        KERNEL,
    ),
    "dynamic_erf": (lambda x: jaxnorm.dynamic_erf(x, 0.5, 0.0, *affine(256)), TOKENS),
    "dynamic_tanh": (lambda x: jaxnorm.dynamic_tanh(x, 0.5, *affine(256)), TOKENS),
    "evo_norm_b0": (lambda x: jaxnorm.evo_norm_b0(x, jnp.ones(64), **BATCH)[0], IMAGE),
    "evo_norm_b1": (lambda x: jaxnorm.evo_norm_b1(x, **BATCH)[0], IMAGE),
    "evo_norm_b2": (lambda x: jaxnorm.evo_norm_b2(x, **BATCH)[0], IMAGE),
    "evo_norm_s0": (lambda x: jaxnorm.evo_norm_s0(x, jnp.ones(64), num_groups=8), IMAGE),
    "evo_norm_s1": (lambda x: jaxnorm.evo_norm_s1(x, num_groups=8), IMAGE),
    "evo_norm_s2": (lambda x: jaxnorm.evo_norm_s2(x, num_groups=8), IMAGE),
    "filter_response_norm": (
        lambda x: jaxnorm.filter_response_norm(x, *affine(64), tau=jnp.zeros(64)),
        IMAGE,
    ),
    "gated_rms_norm": (lambda x: jaxnorm.gated_rms_norm(x, x, jnp.ones(256)), TOKENS),
    "ghost_batch_norm": (
        lambda x: jaxnorm.ghost_batch_norm(x, num_virtual_batches=8, **BATCH)[0],
        IMAGE,
    ),
    "global_response_norm": (lambda x: jaxnorm.global_response_norm(x, *affine(64)), IMAGE),
    "group_norm": (lambda x: jaxnorm.group_norm(x, *affine(64), num_groups=8), IMAGE),
    "instance_norm": (lambda x: jaxnorm.instance_norm(x, *affine(64)), IMAGE),
    "layer_norm": (lambda x: jaxnorm.layer_norm(x, *affine(256)), TOKENS),
    "local_response_norm": (lambda x: jaxnorm.local_response_norm(x, size=5), IMAGE),
    "lp_norm": (jaxnorm.lp_norm, TOKENS),
    "poly_norm": (lambda x: jaxnorm.poly_norm(x, jnp.ones(3), 0.5), TOKENS),
    "rms_norm": (lambda x: jaxnorm.rms_norm(x, jnp.ones(256)), TOKENS),
    "scaled_weight_standardize": (
        lambda x: jaxnorm.scaled_weight_standardize(x, jnp.ones(128), axis=(0, 1, 2)),
        KERNEL,
    ),
    "spectral_norm": (lambda x: jaxnorm.spectral_norm(x, jnp.ones(128))[0], KERNEL),
    "standardize": (
        lambda x: jaxnorm.standardize(x, running(), *affine(64), epsilon=1e-5, **BATCH),
        IMAGE,
    ),
    "switchable_norm": (
        lambda x: jaxnorm.switchable_norm(x, jnp.ones(3), jnp.ones(3), *affine(64))[0],
        IMAGE,
    ),
    "weight_norm": (lambda x: jaxnorm.weight_norm(x, jnp.ones(128), axis=(0, 1, 2)), KERNEL),
    "weight_standardize": (
        lambda x: jaxnorm.weight_standardize(x, jnp.ones(128), axis=(0, 1, 2)),
        KERNEL,
    ),
    "whiten": (lambda x: jaxnorm.whiten(x, axis=0, num_groups=8)[0], (2048, 64)),
}
GROWING = {*SEGMENTS, "divisive_norm"}  # which have tests of their own, above


def test_the_catalogue_is_whole():
    assert CATALOGUE.keys() | GROWING == set(jaxnorm.__all__) - set(registry.OTHERS)


@pytest.mark.parametrize("name", CATALOGUE)
def test_memory_of_the_catalogue(name, rng):
    """At most four arrays like the input, one of which is the cotangent, made of y."""
    function, shape = CATALOGUE[name]
    memory, _ = costs(function, jnp.asarray(rng.standard_normal(shape), jnp.float32))
    # And statistics: a few numbers for each channel, or for each of 512 rows of 256.
    assert memory <= 4 + 12 / 256


@pytest.mark.parametrize("before", [0, 3, 16, 50])
@pytest.mark.parametrize("after", [0, 3, 22, 33])
def test_windows_of_every_length(before, after, rng):
    """Also longer than the array, and beside what is a million times as large."""
    for size in (1, 5, 40):
        x = rng.standard_normal((2, size)).astype(np.float32)
        places = [slice(max(0, i - before), i + after + 1) for i in range(size)]
        x[:, 0] *= 1e6
        expected = np.stack([np.float64(x[:, s]).sum(1) for s in places], 1)
        found = window_sum(jnp.asarray(x), {1: (before, after)})
        far = np.array([s.start > 0 for s in places])
        np.testing.assert_allclose(found[:, far], expected[:, far], atol=1e-5)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        counts = window_count(None, x.shape, {1: (before, after)}, jnp.dtype(jnp.float32))
        assert counts[0].tolist() == [len(range(size)[s]) for s in places]


def draw_unequal(rng, number=40):
    """Nodes most of which are in one graph, some in none, of features that are 0 or 1."""
    ids = np.where(rng.random(40_000) < 0.8, 3, rng.integers(-1, number + 1, 40_000))
    x = np.stack([rng.random(40_000) < 0.5, np.where(ids % 2, 1e6, 0) + rng.random(40_000)], 1)
    return jnp.asarray(x, jnp.float32), jnp.asarray(ids, jnp.int32)


def test_a_large_segment_is_as_exact_as_small_ones(rng):
    """A scatter of equal squares alone would be off by thousands of roundings."""
    x, ids = draw_unequal(rng)
    dy = jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
    norm = functools.partial(jaxnorm.segment_batch_norm, num_segments=40, axis=0)

    @jax.jit
    def run(x, ids, dy):
        y, transpose, moments = jax.vjp(lambda x: norm(x, ids), x, has_aux=True)
        return y, transpose(dy)[0], moments

    y, dx, moments = jax.device_get(run(x, ids, dy))
    wide, expected, slope = np.float64(x), np.zeros(x.shape), np.zeros(x.shape)
    for segment in range(40):
        own = np.asarray(ids) == segment
        rest = wide[own] - wide[own].mean(0)
        inverse = 1 / np.sqrt(np.square(rest).mean(0) + 1e-5)
        expected[own], u = rest * inverse, np.float64(dy)[own]
        slope[own] = inverse * (u - u.mean(0) - expected[own] * (u * expected[own]).mean(0))
        assert moments.count[segment].tolist() == [own.sum()] * 2
    assert excess(y, expected) <= 1
    np.testing.assert_allclose(dx, slope, atol=8e-6 * np.abs(slope).max())


def test_devices_send_sums_of_segments_alone(rng):
    x, ids = draw_unequal(rng)
    mesh = jax.make_mesh((8,), ("nodes",), axis_types=(AxisType.Auto,))
    x, ids = jax.device_put((x, ids), NamedSharding(mesh, PartitionSpec("nodes")))

    def loss(x, ids):
        return jnp.sum(jaxnorm.segment_batch_norm(x, ids, num_segments=40, axis=0)[0] ** 3)

    found = collectives(jax.grad(loss), x, ids)
    assert {kind for kind, _ in found} == {"all-reduce"}
    # Means and counts; two sums; of the gradient two more, and the counts again: of 40 segments and
    # 2 features.
    assert sum(size for _, size in found) <= 4 * 40 * (2 + 1 + 4 + 4 + 1) + 64


@pytest.mark.parametrize("spec", [("data",), (None, "data")])
def test_windows_over_devices(spec, rng):
    """Of axes that are divided over devices: the batch's, and the window's own."""
    x = jnp.asarray(rng.standard_normal((8, 16, 4)), jnp.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    norm = jax.jit(functools.partial(jaxnorm.divisive_norm, axis=1, window=7))
    divided = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    np.testing.assert_allclose(norm(divided), norm(x), atol=1e-5)
