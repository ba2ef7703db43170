"""Layouts that inputs of some sizes get on CPU: the contract again, where it is not run on them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm import batch_norm, group_norm, layer_norm, rms_norm
from jaxnorm._core import plan
from tests import reference, test_contract_exact, test_contract_gradients
from tests.norms_batch import BATCH
from tests.norms_feature import FEATURE
from tests.test_contract_gradients import assert_gradients_close

NORMS = [*FEATURE, *(n for n in BATCH if n.name in ("batch_norm", "batch_norm_conv"))]
every_norm = pytest.mark.parametrize("norm", NORMS, ids=[n.name for n in NORMS])


on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="plans are of XLA on CPU")


def huge_plan(array, pooled, one_device):
    """Every choice that is made for huge inputs only."""
    plan = plan.cpu_plan(array, pooled, one_device)
    fused = one_device and plan.separate and array.ndim - 1 in pooled
    return plan._replace(fuse_rows=fused, fuse_moments=fused)


def planned_for_gpu(array, pooled, one_device):
    """Every choice that is made for a GPU but one: XLA on CPU does not add up in trees."""
    return plan.gpu_plan(array, pooled, one_device)._replace(split=True)


def sliced_plan(array, pooled, one_device):
    """Slices wherever there can be any, as on jax 0.10."""
    plan = plan.cpu_plan(array, pooled, one_device)
    slices = one_device and not plan.short_axes
    return plan._replace(slices=slices, slice_products=slices, fuse_rows=False, fuse_moments=False)


@pytest.fixture(params=[huge_plan, sliced_plan, planned_for_gpu], ids=["huge", "sliced", "gpu"])
def planned(request, monkeypatch):
    """Plans all programs of a test in another way; what was compiled before does not count."""
    plans = []

    def plan(*given):
        plans.append(request.param(*given))
        return plans[-1]

    monkeypatch.setattr(_primitives, "cpu_plan", plan)
    jax.clear_caches()
    yield
    jax.clear_caches()
    assert plans


def expect(x, axis, mask=None, formula=reference.standardized, epsilon=1e-6):
    """What a normalization over `axis` is in float64."""
    pools = reference.pools_over(x.shape, np.atleast_1d(axis))
    return reference.normalize(
        x, mask=mask, formula=formula, pools=pools, feature_axes=(), epsilon=epsilon
    )


def plan_of(shape, pooled=(1,), dtype=jnp.float32):
    return plan.cpu_plan(jax.ShapeDtypeStruct(shape, dtype), pooled, one_device=True)


@pytest.mark.parametrize("rows_are_pooled", [True, False])
def test_each_size_has_its_plan(rows_are_pooled):
    for rows, short_axes, separate in (
        (2, True, False),
        (4, False, False),
        (32, False, not rows_are_pooled),
        (128, False, True),
    ):
        plan = plan_of((rows, 1024), (int(rows_are_pooled),))
        assert (plan.short_axes, plan.separate) == (short_axes, separate)


@pytest.mark.parametrize(
    ("shape", "dtype", "squares", "moments"),
    [
        ((4095, 64), jnp.float32, False, False),
        ((4096, 64), jnp.float32, True, True),
        ((4096, 65), jnp.float32, True, False),
        ((4096, 384), jnp.float32, True, False),
        ((4096, 1023), jnp.float32, True, False),
        ((4096, 1024), jnp.float32, True, True),
        ((4096, 1024), jnp.bfloat16, True, False),
        ((4096, 4096), jnp.bfloat16, True, True),
        ((1024, 100_000), jnp.float32, False, False),  # XLA has no such loop
    ],
)
def test_many_rows_are_fused_where_that_is_faster(shape, dtype, squares, moments):
    plan, recent = plan_of(shape, dtype=dtype), plan.RECENT_XLA
    assert (plan.fuse_rows, plan.fuse_moments) == (squares and recent, moments and recent)
    columns = plan_of(shape, (0,), dtype)
    assert not (columns.fuse_rows or columns.fuse_moments)


@pytest.mark.parametrize("shape", [(2, 64), (64, 768), (4096, 1024)])
def test_what_needs_one_device(shape):
    # A maximum or slices of an array on several devices would be messages between them.
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    without = {"one_device", "short_axes", "fuse_moments", "slices", "slice_products"}
    sharded = plan.cpu_plan(x, (1,), one_device=False)
    assert sharded == plan_of(shape)._replace(**dict.fromkeys(without, False))


@on_cpu
@pytest.mark.parametrize(
    ("shape", "axis", "count"),
    [
        ((64, 768), 1, 8),
        ((130, 300), 1, 6),
        ((600, 4, 48), 0, 8),
        ((600, 4, 48), (0, 1), 8),
        ((64, 771), 1, 0),  # three slices do not pay
        ((400, 128), 1, 0),  # nor do those of short rows
        ((1000, 32), 0, 0),  # of few elements
        ((50_000, 3), 0, 0),  # or of few channels
    ],
)
@pytest.mark.parametrize("planned", [sliced_plan], ids=["sliced"], indirect=True)
def test_long_axes_are_sliced(shape, axis, count, planned):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    text = jax.jit(functools.partial(rms_norm, axis=axis)).lower(x).as_text()
    assert text.count("stablehlo.slice") == count


@pytest.mark.parametrize("shape", [(32, 768), (64, 768), (1024, 768), (30, 28, 28, 16)])
def test_products_are_always_sliced(shape):
    """XLA on CPU has no loops of its own for the sum of a product, as it has for one array."""
    pooled = tuple(range(len(shape) - 1)) if len(shape) > 2 else (1,)
    plan = plan_of(shape, pooled)
    assert plan.slice_products and plan.of_products().slices
    assert plan.slices == (shape == (64, 768) or not plan.FAST_SUMS)


@on_cpu
@pytest.mark.skipif(not plan.RECENT_XLA, reason="XLA on CPU has these loops since jax 0.11")
@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_many_rows_are_one_loop(norm, dtype, rng):
    """The rows are normalized by their own statistics, exactly, in a single pass over memory."""
    x = rng.standard_normal((64, 80, 48), np.float32) + rng.integers(0, 1000, (64, 80, 1))
    x = jnp.asarray(x, dtype)
    gamma = jnp.asarray(rng.standard_normal(48), jnp.float32)
    normalize = functools.partial(norm, dtype=jnp.float32)
    program = jax.jit(normalize).lower(x, gamma).compile()
    assert len(re.findall(r" fusion\(| reduce\(", program.as_text().partition("\nENTRY")[2])) == 1
    assert program.memory_analysis().temp_size_in_bytes == 0
    formula = reference.standardized if norm is layer_norm else reference.over_rms
    expected = expect(x, -1, formula=formula) * np.asarray(gamma, np.float64)
    atol = 4e-6 * max(1, np.abs(expected).max() / 3)
    np.testing.assert_allclose(program(x, gamma), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mean", [-100, 1e6])
@pytest.mark.parametrize("shape", [(60, 60), (2, 16, 33), (100, 40), (8, 8, 8, 7)])
def test_small_pools_of_several_axes(shape, mean, masked, rng):
    """Axes that are each short make no short sum together."""
    x = rng.standard_normal((1, *shape), np.float32) + np.float32(mean)
    kept = rng.random(x.shape) < (0.8 if masked else 2)
    axes = tuple(range(1, x.ndim))
    y = jax.jit(functools.partial(layer_norm, axis=axes))(x, mask=kept if masked else None)
    expected = expect(x, axes, kept)
    # A third of what is allowed.
    np.testing.assert_allclose(y, expected, rtol=0, atol=4e-6 / 3 * np.abs(expected).max() / 3)


def test_groups_of_many_elements_are_summed_in_parts(rng):
    x = rng.standard_normal((96, 16, 64, 5), np.float32) - np.float32(100)
    y = jax.jit(functools.partial(group_norm, axis=(1, 3), channel_axis=0, num_groups=1))(x)
    np.testing.assert_allclose(y, expect(x, (0, 1, 3)), rtol=0, atol=4e-6)


@pytest.mark.parametrize(
    ("shape", "mask_shape", "axis"),
    [
        ((16, 2, 500, 1, 16), (1, 1, 500, 1, 1), (0,)),
        ((64, 1, 4096), (1, 1, 4096), (0, 1, 2)),
        ((1, 96, 33, 1, 33), (1, 96, 1, 1, 33), (0, 2, 3, 4)),
        ((2, 1, 33, 50, 64), (1, 1, 33, 50, 64), (0, 1, 2, 3, 4)),
        ((1, 300, 1, 200), (1, 1, 1, 200), (3,)),
    ],
)
def test_masks_that_vary_on_one_side_of_an_axis_of_size_one(shape, mask_shape, axis, rng):
    x = rng.standard_normal(shape, np.float32)
    mask = rng.random(mask_shape) < 0.7
    y = jax.jit(functools.partial(layer_norm, axis=axis))(x, mask=mask)
    np.testing.assert_allclose(y, expect(x, axis, mask), rtol=0, atol=8e-6)


@pytest.mark.parametrize("mean", [0, 1e4])
def test_many_longer_rows(mean, rng):
    """By quick sums, or by one loop where these are not exact enough."""
    x = rng.standard_normal((4096, 96), np.float32) + np.float32(mean)
    if mean:
        x[17] = 3  # whatever its neighbours need, a constant is normalized to 0
    y = jax.jit(layer_norm)(x)
    expected = expect(x, -1)
    np.testing.assert_allclose(y, expected, rtol=0, atol=4e-6 * np.abs(expected).max() / 3)
    assert np.asarray(y)[17].any() == (mean == 0)


@pytest.mark.parametrize("mean", [0, 1e4])
@pytest.mark.parametrize("mask_shape", [(300, 1), (1, 700), (300, 700)])
@pytest.mark.parametrize("axis", [0, 1])
def test_masks_of_large_inputs(mean, mask_shape, axis, rng):
    """By quick sums or exact ones, with NaN in the slots that are left out."""
    mask = rng.random(mask_shape) < 0.7
    kept = np.broadcast_to(mask, (300, 700))
    x = rng.standard_normal(kept.shape, np.float32) + np.float32(mean)
    x[~kept] = np.nan
    y = jax.jit(functools.partial(layer_norm, axis=axis))(x, mask=mask)
    expected = expect(x, axis, mask)
    np.testing.assert_allclose(y, expected, rtol=0, atol=4e-6 * max(1, np.abs(expected).max() / 3))


def test_statistics_of_many_rows_are_returned_too(rng):
    x = rng.standard_normal((4096, 16), np.float32) + np.float32(100)
    y, moments = jax.jit(functools.partial(batch_norm, axis=-1))(x)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(moments.mean, wide.mean(-1), rtol=1e-6)
    np.testing.assert_allclose(moments.var, wide.var(-1), rtol=4e-6)
    np.testing.assert_allclose(y, expect(x, -1, epsilon=1e-5), rtol=0, atol=4e-6)


@pytest.mark.parametrize("num_groups", [1, 4, 64])
@pytest.mark.parametrize("shape", [(3, 1), (1, 1), (3, 64)])
def test_small_groups_with_parameters_of_any_shape(num_groups, shape, rng):
    # Their cotangents are short sums over the channels, which must stay in their groups.
    x, dy = rng.normal(size=(2, 3, 64)).astype(np.float32)
    gamma = rng.normal(size=shape).astype(np.float32)
    norm = functools.partial(group_norm, num_groups=num_groups, axis=0)
    by = jax.jit(jax.grad(lambda x, gamma: (dy * norm(x, gamma)).sum(), (0, 1)))(x, gamma)
    after = jax.jit(jax.grad(lambda x, gamma: (dy * norm(x) * gamma).sum(), (0, 1)))(x, gamma)
    for got, wanted in zip(by, after, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_gpus_sample_the_mean_but_of_rows_that_are_read_once():
    def plan(shape, pooled, one_device=True):
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        return plan.gpu_plan(x, pooled, one_device)

    assert plan((64, 1024), (1,)).fuse_rows
    assert plan((64, 1, 1024), (1, 2)).fuse_rows
    assert not plan((64, 1 << 15), (1,)).fuse_rows
    assert not plan((64, 1024), (0,)).fuse_rows
    assert not plan((64, 8, 128), (1, 2)).fuse_rows
    assert plan((64, 1024), (0,)).sample
    assert not plan((64, 1024), (0,), one_device=False).sample
    (rows,) = jax.export.symbolic_shape("b")
    assert not plan((rows, 1024), (0,)).sample


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
@pytest.mark.parametrize("axis", [0, 1])
def test_gpus_slice_where_they_sample(axis, platform):
    x = jax.ShapeDtypeStruct((1024, 64), jnp.float32)
    program = jax.jit(functools.partial(layer_norm, axis=axis)).trace(x)
    text = program.lower(lowering_platforms=(platform,)).as_text()
    # Columns: an eighth of each, and its first element. Rows are in one kernel.
    assert text.count("stablehlo.slice") == (2 if axis == 0 and platform != "tpu" else 0)


def test_sums_over_mapped_axes_stay_short(rng):
    # Values of few bits, whose rounding errors in a long sum have one sign.
    x = jnp.asarray(rng.standard_normal((300, 300), np.float32) - 100, jnp.bfloat16)

    def over_both(row):
        return batch_norm(row, axis=0, axis_name="rows", dtype=jnp.float32)[0]

    y = jax.jit(jax.vmap(over_both, axis_name="rows"))(x)
    wanted = expect(x.astype(jnp.float32), (0, 1), epsilon=1e-5)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=4e-6 * np.abs(wanted).max() / 3)


def test_sums_over_axes_that_are_no_neighbours(rng):
    x = jnp.asarray(rng.standard_normal((5, 4096, 5, 3), np.float32) - 100, jnp.bfloat16)
    norm = jax.jit(functools.partial(layer_norm, axis=(0, 1, 3), dtype=jnp.float32))
    wanted = expect(x.astype(jnp.float32), (0, 1, 3))
    with jax.set_mesh(jax.make_mesh((1,), ("devices",), (jax.sharding.AxisType.Explicit,))):
        y = norm(jax.device_put(x, jax.P()))
    np.testing.assert_allclose(y, wanted, rtol=0, atol=4e-6 * np.abs(wanted).max() / 3)


@pytest.mark.parametrize("first", [slice(0, 1), slice(0, 64), slice(3, None, 8)])
@pytest.mark.parametrize("shape", [(512, 64), (2, 512)])
@pytest.mark.parametrize("planned", [planned_for_gpu], ids=["gpu"], indirect=True)
def test_samples_far_from_the_mean(shape, first, rng, planned):
    x = rng.standard_normal(shape, np.float32)
    axis = shape.index(512)
    x[(first, slice(None))[:: 1 - 2 * axis]] += 1e4
    y, moments = jax.jit(lambda x: batch_norm(x, axis=axis, epsilon=1e-6))(x)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(moments.var, wide.var(axis), rtol=4e-6)
    np.testing.assert_allclose(y, expect(x, axis), atol=4e-6 * np.abs(expect(x, axis)).max())


@on_cpu
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((4, 128), 1),
        ((128, 4), 0),
        ((3, 96), -1),
        ((2, 34, 5), 1),
        ((1, 256), 1),
        ((7, 512), 1),
        ((5, 768), 1),
        ((768, 5), 0),
        ((3, 1024), 1),
        ((2, 37), 1),
        ((3, 1056), 1),
    ],
)
@pytest.mark.parametrize("mean", [100, 1e6])
def test_small_sums_are_single_loops(shape, axis, mean, rng):
    """XLA on CPU starts three loops for a sum over more than 32 elements of an axis."""
    x = rng.standard_normal(shape, np.float32) + np.float32(mean)
    program = jax.jit(functools.partial(layer_norm, axis=axis)).lower(x).compile()
    size = shape[axis]
    loops = re.findall(r" fusion\(| reduce\(", program.as_text().partition("\nENTRY")[2])
    if size <= 1024 and size % 37:
        assert len(loops) == 3  # the mean, the variance, the result
    else:
        assert len(loops) > 3  # long, or without factors of at most 32
    wanted = expect(x, axis)
    scale = 1 if mean == 100 else max(1, np.abs(wanted).max() / 3)
    np.testing.assert_allclose(program(x), wanted, atol=4e-6 * scale)


@every_norm
def test_exact(norm, rng, planned):
    test_contract_exact.test_exact_at_every_mean(norm, norm.shapes["large"], rng)


@pytest.mark.parametrize("name", ["layer_norm", "layer_norm_inner", "group_norm"])
def test_constant_gives_exactly_beta(name, rng, planned):
    (norm,) = (norm for norm in FEATURE if norm.name == name)
    test_contract_exact.test_constant_gives_exactly_beta(norm, norm.shapes["large"], rng)


@every_norm
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_equal_the_closed_form(norm, masked, rng, planned):
    x, gamma, beta, mask = norm.draw(rng, norm.shapes["large"], mask=masked)
    assert_gradients_close(norm, x + 1e3, gamma, beta, mask, rng)


@every_norm
def test_half_precision_gradients(norm, rng, planned):
    test = test_contract_gradients.test_half_precision_gradients_are_accumulated_in_float32
    test(norm, norm.shapes["large"], jnp.bfloat16, rng)
