"""Contract 8: gradients equal the closed form, are finite, and obey the two identities."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.contract import registry
from tests.contract.test_dtypes import assert_one_rounding, half_spacing
from tests.contract.test_exact import assert_exact
from tests.support import programs


def assert_gradients_close(norm, x, gamma, beta, mask, rng, compiled=None, **options):
    """Compares the value, and the gradients of a random projection, with the closed form."""
    dy = rng.normal(size=x.shape).astype(x.dtype)
    y, got = (compiled or programs.derivatives(norm, **options))(x, gamma, beta, mask, dy)
    if "exact" not in norm.exempt:
        assert_exact(y, norm.expected(x, gamma, beta, mask, **options))
    expected = norm.expected_vjp(x, gamma, beta, mask, dy, **options)
    # dx is the difference of terms as large as g = dy * gamma / sigma, each within the 4e-6 that
    # x_hat is, so its error is measured by the largest g, not by what the difference leaves.
    scale = max(1.0, np.abs(expected[0]).max())
    np.testing.assert_allclose(got[0], expected[0], atol=8e-6 * scale, rtol=0)
    if gamma is None and beta is None:
        return
    # A sum of n terms, each within 4e-6 of its size: the errors add up as a random walk.
    largest = np.abs(dy).max() * max(1.0, np.abs(norm.expected(x, mask=mask)).max())
    for value, exact in zip(got[1:], expected[1:], strict=True):
        if value is not None:
            terms = x.size / value.size
            np.testing.assert_allclose(value, exact, atol=4e-6 * largest * terms**0.5, rtol=4e-6)


@registry.paths("gradients", ("large",), core=("five", "plain"))
def test_gradients_equal_the_closed_form(norm, shape, rng):
    # Those that take masks are tested with them at the other sizes.
    # The size that all have is compiled as users do it; what shows there, a small one repeats.
    small = shape in (norm.shapes["five"], norm.shapes["plain"])
    compiled = programs.derivatives(norm, quickly=small)
    for mean in (0.0, 1e3, -1e6):
        x, gamma, beta, _ = norm.draw(rng, shape)
        assert_gradients_close(norm, x + mean, gamma, beta, None, rng, compiled)


@registry.norms("gradients")
def test_without_parameters_and_epsilon(norm, rng):
    """Values and gradients, which are finite at zero variance and at zero input, too."""
    options = {"epsilon": 0.0} if "epsilon" in norm.takes else {}
    shape = norm.shapes["five"]
    x, *_, mask = norm.draw(rng, shape, mask=True)
    if mask is not None and not in_core(norm):
        # All that the core takes, contract/test_masks.py has; this one is the others' only one.
        mask = mask_of_fewer_axes(norm, shape, rng)
    compiled = programs.derivatives(norm, quickly=True, **options)
    for given in {id(mask): mask, id(None): None}.values() if in_core(norm) else (mask,):
        assert_gradients_close(norm, x, None, None, given, rng, compiled, **options)
        if "zero_variance" not in norm.exempt:
            assert_finite(compiled, shape, None, None, given, rng)


def in_core(norm):
    return norm.name in registry.CORE


def mask_of_fewer_axes(norm, shape, rng):
    """A mask that leaves three of a pool or none: one or two have no variance, or hardly any."""
    while True:
        mask = rng.random(shape[1:]) < 0.8
        kept = np.broadcast_to(mask, shape).reshape(-1)[norm.pools(shape)].sum(1)
        if not mask.all() and mask.any() and ((kept == 0) | (kept >= 3)).all():
            return mask


@registry.norms("gradients")
def test_half_precision_gradients(norm, rng):
    # Masked where masks are taken; contract/test_masks.py asks the program for more.
    shape = norm.shapes["large"]
    check_half_precision(norm, shape, jnp.bfloat16, rng, masked=True, quickly=True)
    if in_core(norm) and "mask" in norm.takes:
        check_half_precision(norm, shape, jnp.bfloat16, rng, quickly=True)


def check_half_precision(norm, shape, dtype, rng, masked=False, quickly=False):
    """Checks that gradients are accumulated in float32, and rounded once."""
    x, gamma, beta, mask = norm.draw(rng, shape, dtype, mask=masked)
    gamma, beta = (None if p is None else p.astype(dtype) for p in (gamma, beta))
    dy = rng.normal(size=shape).astype(dtype)
    y, got = programs.derivatives(norm, quickly=quickly)(x, gamma, beta, mask, dy)
    if "dtypes" not in norm.exempt:
        assert_one_rounding(y, norm.expected(x, gamma, beta, mask), dtype)
    expected = norm.expected_vjp(x, gamma, beta, mask, dy)
    for value, exact in zip(got, expected, strict=True):
        if value is not None:
            # A float32 sum rounded once: summed in bfloat16, the parameters' gradients at the
            # large shapes would be wrong in the first digit.
            terms = x.size / value.size
            allowed = half_spacing(exact, dtype) + 2e-5 * terms**0.5
            assert value.dtype == dtype
            assert (np.abs(np.asarray(value, np.float64) - exact) <= allowed).all()


@registry.norms("zero_variance")
def test_finite_at_zero_variance_and_zero_input(norm, rng):
    for name, compiled in (
        ("plain", programs.one_of_three(norm)),
        ("large", programs.derivatives(norm)),
    ):
        shape = norm.shapes[name]
        _, gamma, beta, mask = norm.draw(rng, shape, mask=name == "plain")
        assert_finite(compiled, shape, gamma, beta, mask, rng)


def assert_finite(compiled, shape, gamma, beta, mask, rng):
    dy = rng.normal(size=shape).astype(np.float32)
    for constant in (0.0, -0.0, 1.0, 1e6, 1e-20, 1e-42):
        x = np.full(shape, constant, np.float32)
        for value in jax.tree.leaves(compiled(x, gamma, beta, mask, dy)):
            assert np.isfinite(value).all(), constant


def large_gradient(norm, x, gamma, beta, rng):
    """dx in float64, by pools."""
    dy = rng.normal(size=x.shape).astype(np.float32)
    _, (dx, *_) = programs.derivatives(norm)(x, gamma, beta, None, dy)
    return np.asarray(dx, np.float64).reshape(-1)[norm.pools(x.shape)]


@registry.norms("shift")
def test_gradient_sums_to_zero(norm, rng):
    # Adding a constant to a pool changes nothing: the gradient is orthogonal to it.
    x, gamma, beta, _ = norm.draw(rng, norm.shapes["large"])
    for mean in (0.0, 1e4):
        dx = large_gradient(norm, x + mean, gamma, beta, rng)
        # Each element carries about 1e-6 of the largest; their errors add up as a random walk.
        allowed = 8e-6 * np.abs(dx).max() * dx.shape[1] ** 0.5
        assert np.abs(dx.sum(1)).max() <= allowed


@registry.norms("scale")
def test_gradient_is_orthogonal_to_the_normalized_input(norm, rng):
    # Scaling a pool (about its mean) changes nothing where epsilon is negligible beside the
    # variance, which is 4e6 here.
    x, gamma, beta, _ = norm.draw(rng, norm.shapes["large"])
    x = x * 1000
    dx = large_gradient(norm, x, gamma, beta, rng)
    hat = norm.expected(x)
    if norm.gamma_offset:
        hat = hat / norm.gamma_offset
    hat = hat.reshape(-1)[norm.pools(x.shape)]
    allowed = 8e-6 * np.abs(dx).max() * np.abs(hat).max() * dx.shape[1] ** 0.5
    assert np.abs((dx * hat).sum(1)).max() <= allowed
