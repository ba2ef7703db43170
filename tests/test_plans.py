"""Layouts that only huge inputs get on CPU: the contract again, on smaller inputs."""

import jax
import jax.numpy as jnp
import pytest

from jaxnorm import _plan
from tests import test_contract_exact, test_contract_gradients
from tests.norms_feature import FEATURE
from tests.test_contract_gradients import assert_gradients_close

every_feature_norm = pytest.mark.parametrize("norm", FEATURE, ids=[n.name for n in FEATURE])


@pytest.fixture
def everything_is_huge(monkeypatch):
    monkeypatch.setattr(_plan, "CPU_HUGE", 0)
    monkeypatch.setattr(_plan, "CPU_HUGE_BACKWARD", 0)


def test_each_size_has_its_plan():
    recent = _plan.RECENT_XLA
    for rows, separate, fuse_cotangents, fuse_rows in (
        (2, False, False, False),
        (128, True, False, False),
        (2048, True, recent, False),
        (8192, True, recent, recent),
    ):
        plan = _plan.cpu_plan(jax.ShapeDtypeStruct((rows, 1024), jnp.float32), one_device=True)
        assert plan.separate == separate
        assert (plan.fuse_cotangents, plan.fuse_rows) == (fuse_cotangents, fuse_rows)


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
