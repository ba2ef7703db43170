"""The contract again, as the plans of other platforms compute it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm import batch_norm, group_norm, layer_norm
from jaxnorm._core.plan import PORTABLE, plan_for
from jaxnorm._core.sums import sum_axes
from jaxnorm._core.xla import SUMS_COPY
from tests.contract import registry, test_exact, test_gradients
from tests.support import programs, reference
from tests.support.plans import PLANS, plan_of, planned_as

# Of each kind of pool one, at a shape that is sampled, and with more than one element per channel.
SHAPES = {
    "layer_norm": (24, 128),
    "layer_norm_inner": (3, 24, 32, 4),
    "rms_norm": (24, 128),
    "group_norm": (3, 20, 20, 8),
    "batch_norm_conv": (16, 20, 20, 4),
}
CENTERED = [name for name in SHAPES if name != "rms_norm"]
NORMS = {norm.name: norm for norm in registry.NORMS if norm.name in SHAPES}


@pytest.fixture(params=PLANS)
def planned(request):
    """All programs of a test are planned as a platform's, on one device or on several."""
    with planned_as(plan_of(request.param)):
        yield


# Samples of several chips are taken along another axis: the statistics differ, and no more.
but_for_several_chips = pytest.mark.parametrize(
    "planned", [name for name in PLANS if name not in ("gpus", "tpus")], indirect=True
)


def test_each_platform_has_its_plan():
    for one_device in (True, False):
        plans = [plan_for(name, one_device) for name in ("tpu", "gpu", "cpu", None, "new")]
        algorithms = [plan.algorithm for plan in plans]
        on_cpu = "shifted" if one_device and SUMS_COPY else "two_pass"
        assert algorithms == ["shifted", "sampled_shift", on_cpu, "two_pass", "two_pass"]
        assert [plan.reduction for plan in plans] == [None, "blocks", "axes", "axes", "axes"]
        assert {plan.one_device for plan in plans[:3]} == {one_device}
        # A reshape moves no data on one device alone.
        merges = one_device and not SUMS_COPY
        assert plans[2].merges_axes == (plans[2].row_kernel is not None) == merges
        assert plans[3] == plans[4] == PORTABLE


@pytest.mark.parametrize(("platform", "count"), [("tpu", 0), ("cuda", 1), ("rocm", 1), ("cpu", 0)])
def test_only_gpus_sample(platform, count):
    """But for rows alone, which one kernel reads once."""
    x = jax.ShapeDtypeStruct((1024, 64), jnp.float32)
    for axis in (0, 1):
        norm = functools.partial(layer_norm, axis=axis)
        both = [norm, jax.grad(lambda x, norm=norm: jnp.sum(norm(x)))]
        for function, expected in zip(both, (count * (axis == 0), count), strict=True):
            program = jax.jit(function).trace(x)
            text = program.lower(lowering_platforms=(platform,)).as_text()
            assert text.count("stablehlo.slice") == expected


@pytest.mark.parametrize("name", CENTERED)
def test_exact_at_every_mean_and_of_constants(name, rng, planned):
    test_exact.test_exact_at_every_mean(NORMS[name], SHAPES[name], rng)
    test_exact.test_constant_gives_exactly_beta(NORMS[name], SHAPES[name], rng)


@pytest.mark.parametrize("name", SHAPES)
@but_for_several_chips
def test_gradients_equal_the_closed_form(name, rng, planned):
    test = test_gradients.test_gradients_equal_the_closed_form
    test(NORMS[name], SHAPES[name], rng)


@pytest.mark.parametrize("name", ["layer_norm", "batch_norm_conv"])
@but_for_several_chips
def test_half_precision_gradients(name, rng, planned):
    test_gradients.check_half_precision(NORMS[name], SHAPES[name], jnp.bfloat16, rng)


@pytest.mark.parametrize("name", ["layer_norm", "group_norm", "batch_norm_conv"])
@but_for_several_chips
def test_masked_equals_packed(name, rng, planned):
    """With NaN in the slots left out, at means that quick sums can be trusted at or not."""
    norm, shape = NORMS[name], SHAPES[name]
    x, gamma, beta, mask = norm.draw(rng, shape, mask=True)

    def poisoned(x, gamma, beta, mask, dy):
        x, dy = (np.where(mask, v, np.nan).astype(v.dtype) for v in (x, dy))
        return programs.derivatives(norm)(x, gamma, beta, mask, dy)

    for mean in (0.0, 1e3, -1e6):
        test_gradients.assert_gradients_close(norm, x + mean, gamma, beta, mask, rng, poisoned)


def expect(x, axis, mask=None, epsilon=1e-6):
    """What a normalization over `axis` is in float64."""
    pools = reference.pools_over(x.shape, np.atleast_1d(axis))
    return reference.normalize(
        x, mask=mask, formula=reference.standardized, pools=pools, feature_axes=(), epsilon=epsilon
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(60, 60), (2, 16, 33), (100, 40), (8, 8, 8, 7)])
def test_small_pools_of_several_axes(shape, masked, rng):
    """Axes that are each short make no short sum together."""
    axes = tuple(range(1, len(shape) + 1))
    norm = jax.jit(functools.partial(layer_norm, axis=axes))
    for mean in (-100, 1e6):
        x = rng.standard_normal((1, *shape), np.float32) + np.float32(mean)
        kept = rng.random(x.shape) < (0.8 if masked else 2)
        y = norm(x, mask=kept if masked else None)
        # A third of what is allowed: sums of axes one by one leave that much room.
        assert test_exact.excess(y, expect(x, axes, kept)) <= 1 / 3, mean


def test_groups_of_many_elements_are_summed_in_parts(rng):
    x = rng.standard_normal((96, 16, 64, 5), np.float32) - np.float32(100)
    y = jax.jit(functools.partial(group_norm, axis=(1, 3), channel_axis=0, num_groups=1))(x)
    assert test_exact.excess(y, expect(x, (0, 1, 3))) <= 1


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
    assert test_exact.excess(y, expect(x, axis, mask)) <= 1


@pytest.mark.parametrize("mask_shape", [(300, 1), (1, 700), (300, 700)])
@pytest.mark.parametrize("axis", [0, 1])
def test_masks_of_large_inputs(mask_shape, axis, rng):
    """By quick sums or exact ones, with NaN in the slots that are left out."""
    mask = rng.random(mask_shape) < 0.7
    kept = np.broadcast_to(mask, (300, 700))
    norm = jax.jit(functools.partial(layer_norm, axis=axis))
    for mean in (0, 1e4):
        x = rng.standard_normal(kept.shape, np.float32) + np.float32(mean)
        x[~kept] = np.nan
        assert test_exact.excess(norm(x, mask=mask), expect(x, axis, mask)) <= 1, mean


def test_statistics_of_many_rows_are_returned_too(rng):
    x = rng.standard_normal((4096, 16), np.float32) + np.float32(100)
    y, moments = jax.jit(functools.partial(batch_norm, axis=-1))(x)
    wide = x.astype(np.float64)
    # Of the mean its rounding; of the variance the contract's bound.
    np.testing.assert_allclose(moments.mean, wide.mean(-1), rtol=1e-6)
    np.testing.assert_allclose(moments.var, wide.var(-1), rtol=4e-6)
    assert test_exact.excess(y, expect(x, -1, epsilon=1e-5)) <= 1


@pytest.mark.parametrize("num_groups", [1, 4, 64])
def test_small_groups_with_parameters_of_any_shape(num_groups, rng):
    # Their cotangents are short sums over the channels, which must stay in their groups.
    x, dy = rng.normal(size=(2, 3, 64)).astype(np.float32)
    gammas = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 1), (1, 1), (3, 64))]
    norm = functools.partial(group_norm, num_groups=num_groups, axis=0)
    gradients = jax.jit(
        lambda x, dy, gammas: [jax.vjp(norm, x, gamma)[1](dy) for gamma in gammas],
        compiler_options=programs.QUICKLY,
    )
    kind = {"formula": reference.standardized, "feature_axes": (), "epsilon": 1e-6}
    kind["pools"] = reference.pools_of_groups(x.shape, num_groups, 1, [0])
    # Of sizes around 1, in a few float32 roundings; mixed groups would be off by as much.
    for gamma, (dx, dgamma) in zip(gammas, gradients(x, dy, gammas), strict=True):
        y = reference.normalize(x, **kind)
        axes = tuple(a for a in range(2) if gamma.shape[a] == 1)
        np.testing.assert_allclose(dgamma, (dy * y).sum(axes, keepdims=True), rtol=1e-5, atol=1e-5)
        exact, *_ = reference.normalize_vjp(
            x, None, None, None, dy * gamma, vjp=reference.standardized_vjp, **kind
        )
        np.testing.assert_allclose(dx, exact, rtol=1e-5, atol=1e-5)


def test_sums_over_mapped_axes_stay_short(rng):
    # Values of few bits, whose rounding errors in a long sum have one sign.
    x = jnp.asarray(rng.standard_normal((300, 300), np.float32) - 100, jnp.bfloat16)

    def over_both(row):
        return batch_norm(row, axis=0, axis_name="rows", dtype=jnp.float32)[0]

    y = jax.jit(jax.vmap(over_both, axis_name="rows"))(x)
    wanted = expect(x.astype(jnp.float32), (0, 1), epsilon=1e-5)
    assert test_exact.excess(y, wanted) <= 1


def test_sums_over_axes_that_are_no_neighbours(rng):
    x = jnp.asarray(rng.standard_normal((5, 4096, 5, 3), np.float32) - 100, jnp.bfloat16)
    norm = jax.jit(functools.partial(layer_norm, axis=(0, 1, 3), dtype=jnp.float32))
    wanted = expect(x.astype(jnp.float32), (0, 1, 3))
    with jax.set_mesh(jax.make_mesh((1,), ("devices",), (jax.sharding.AxisType.Explicit,))):
        y = norm(jax.device_put(x, jax.P()))
    assert test_exact.excess(y, wanted) <= 1


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("planned", ["gpu"], indirect=True)
def test_samples_far_from_the_mean(axis, rng, planned):
    """The last two are all that is sampled, of columns and of rows, and nothing else."""
    norm = jax.jit(lambda x: batch_norm(x, axis=axis, epsilon=1e-6))
    for far in (range(1), range(64), range(3, 512, 8), [i for i in range(512) if i % 64 < 8]):
        x = rng.standard_normal((512, 3), np.float32)
        x[np.asarray(far)] += 1e4
        x = x if axis == 0 else x.T
        y, moments = norm(x)
        np.testing.assert_allclose(moments.var, x.astype(np.float64).var(axis), rtol=4e-6)
        assert test_exact.excess(y, expect(x, axis)) <= 1, far


@pytest.mark.parametrize(
    ("shape", "axes", "blocked"),
    [
        ((3, 16, 5, 4), (1, 2), (1, 8)),
        ((3, 28, 5, 4), (2, 1), (1, 4)),  # powers of 2 first
        ((3, 30, 30, 4), (1, 2), (1, 6)),
        ((3, 14, 4), (1,), (1, 7)),
        ((3, 31, 4), (1,), (1, 31)),
        ((2, 67, 15, 4), (1, 2), (2, 5)),  # 67 has no divisors: the next axis
        ((2, 3, 8, 4), (1, 2), (2, 8)),
        ((2, 3, 2, 4), (1, 2), None),
        ((16, 5, 4), (0, 1), None),  # XLA cuts what goes through all examples
        ((3, 16, 8), (1, 2), None),  # rows
        ((3, 0, 4), (1,), None),
        ((3, 1, 4), (1,), None),
        ((4,), (), None),
    ],
)
def test_sums_of_columns_in_blocks(shape, axes, blocked, rng):
    """On GPU; XLA writes x - mean in float32 before it sums few long columns."""
    plan = plan_for("gpu", one_device=True)
    x = jnp.asarray(rng.integers(-9, 9, shape), jnp.float32)  # whose sums are exact
    total = sum_axes(x, axes, plan)
    np.testing.assert_array_equal(total, np.sum(np.asarray(x), axes, keepdims=True))
    text = str(jax.make_jaxpr(lambda x: sum_axes(x, axes, plan))(x))
    assert text.count("reduce_sum") == (2 if blocked else 1)
    if blocked:
        axis, blocks = blocked
        sizes = (*shape[:axis], blocks, shape[axis] // blocks, *shape[axis + 1 :])
        assert f"[{','.join(map(str, sizes))}]" in text


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_on_gpu_depend_on_no_comparison(dtype):
    """But for the offset: XLA makes one kernel of rows if x less the shift depends on none."""
    x = jax.ShapeDtypeStruct((1024, 64), dtype)
    text = jax.jit(layer_norm).trace(x).lower(lowering_platforms=("cuda",)).as_text()
    before_offset = text[: text.index("stablehlo.subtract")]
    assert "stablehlo.reduce" in before_offset
    for operation in ("compare", "select", "is_finite", "clamp", "optimization_barrier"):
        assert f"stablehlo.{operation}" not in before_offset
    assert "optimization_barrier" not in text
