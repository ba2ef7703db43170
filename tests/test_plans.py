"""Layouts that inputs of some sizes get on CPU: the contract again, where it is not run on them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm import _plan, layer_norm
from tests import test_contract_exact, test_contract_gradients
from tests.norms_feature import FEATURE
from tests.test_contract_gradients import assert_gradients_close

every_feature_norm = pytest.mark.parametrize("norm", FEATURE, ids=[n.name for n in FEATURE])


@pytest.fixture
def everything_is_huge(monkeypatch):
    monkeypatch.setattr(_plan, "CPU_HUGE", 0)
    monkeypatch.setattr(_plan, "CPU_HUGE_BACKWARD", 0)


@pytest.mark.parametrize("rows_are_pooled", [True, False])
def test_each_size_has_its_plan(rows_are_pooled):
    recent = _plan.RECENT_XLA
    for rows, short_axes, separate, fuse_cotangents, fuse_rows in (
        (2, True, False, False, False),
        (4, False, False, False, False),
        (32, False, not rows_are_pooled, False, False),
        (128, False, True, False, False),
        (2048, False, True, recent, False),
        (8192, False, True, recent, recent),
    ):
        x = jax.ShapeDtypeStruct((rows, 1024), jnp.float32)
        plan = _plan.cpu_plan(x, (not rows_are_pooled, rows_are_pooled), one_device=True)
        assert (plan.short_axes, plan.separate) == (short_axes, separate)
        assert (plan.fuse_cotangents, plan.fuse_rows) == (fuse_cotangents, fuse_rows)


def test_short_axes_need_one_device():
    x = jax.ShapeDtypeStruct((2, 64), jnp.float32)
    assert not _plan.cpu_plan(x, (False, True), one_device=False).short_axes


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="plans are of XLA on CPU")
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((4, 128), 1), ((128, 4), 0), ((3, 96), -1), ((2, 34, 5), 1), ((2, 37), 1), ((1, 256), 1)],
)
def test_small_sums_are_single_loops(shape, axis, rng):
    """XLA on CPU starts three loops for a sum over more than 32 elements of an axis."""
    x = rng.standard_normal(shape, np.float32) + np.float32(100)
    program = jax.jit(functools.partial(layer_norm, axis=axis)).lower(x).compile()
    size = shape[axis]
    loops = re.findall(r" fusion\(| reduce\(", program.as_text().partition("\nENTRY")[2])
    if size <= 128 and size % 37:
        assert len(loops) == 3  # the mean, the variance, the result
    else:
        assert len(loops) > 3  # long, or without factors of at most 32
    wide = x.astype(np.float64)
    mean, var = wide.mean(axis, keepdims=True), wide.var(axis, keepdims=True)
    np.testing.assert_allclose(program(x), (wide - mean) / np.sqrt(var + 1e-6), atol=4e-6)


@every_feature_norm
def test_exact(norm, rng, everything_is_huge):
    test_contract_exact.test_exact_at_every_mean(norm, norm.shapes["large"], rng)


@pytest.mark.parametrize("name", ["layer_norm", "layer_norm_inner", "group_norm"])
def test_constant_gives_exactly_beta(name, rng, everything_is_huge):
    (norm,) = (norm for norm in FEATURE if norm.name == name)
    test_contract_exact.test_constant_gives_exactly_beta(norm, norm.shapes["large"], rng)


@every_feature_norm
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_equal_the_closed_form(norm, masked, rng, everything_is_huge):
    x, gamma, beta, mask = norm.draw(rng, norm.shapes["large"], mask=masked)
    assert_gradients_close(norm, x + 1e3, gamma, beta, mask, rng)


@every_feature_norm
def test_half_precision_gradients(norm, rng, everything_is_huge):
    test = test_contract_gradients.test_half_precision_gradients_are_accumulated_in_float32
    test(norm, norm.shapes["large"], jnp.bfloat16, rng)
