"""Contract 3: statistics in float32 or wider, one cast at the end, every inexact dtype."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.contract import registry
from tests.contract.test_exact import TOLERANCE, patterns, place
from tests.support import programs


def half_spacing(values, dtype):
    """Half the distance between neighbours of `dtype` at `values`: the error of one rounding."""
    info = jnp.finfo(dtype)
    exponent = np.floor(np.log2(np.maximum(np.abs(values), float(info.tiny))))
    return 0.5 * float(info.eps) * 2.0**exponent


def assert_one_rounding(y, exact, dtype):
    """`y` is `exact` (float32 or float64) rounded once, up to a float32's own error."""
    assert y.dtype == dtype
    y, exact = np.asarray(y, np.float64), np.asarray(exact, np.float64)
    # 4e-6 is what contract 1 allows between two float32 evaluations.
    allowed = half_spacing(exact, dtype) + 4e-6 * np.maximum(1, np.abs(exact) / 3)
    assert (np.abs(y - exact) <= allowed).all(), np.abs(y - exact).max()


@registry.norms("dtypes", core=True)
def test_half_is_rounded_once(norm, rng):
    # Masked, as the program is that contract/test_masks.py has for this dtype. For all norms,
    # contract/test_gradients.py does this in bfloat16.
    shape, dtype = norm.shapes["plain"], jnp.float16
    x, gamma, beta, mask = norm.draw(rng, shape, dtype, mask=True)
    compiled = programs.derivatives(norm, quickly=True)
    for mean in (0.0, 100.0):
        moved = x + np.float16(mean)
        y, _ = compiled(moved, gamma, beta, mask, x)
        assert_one_rounding(y, norm.expected(moved, gamma, beta, mask), dtype)


@registry.norms("dtypes")
def test_float16_near_its_largest_value(norm, rng):
    shape = norm.shapes["five"]
    pools = norm.pools(shape)
    # Where it can be asked for, in float32: the result is not cast to float16 on the way.
    dtype = jnp.float32 if "dtype" in norm.takes else jnp.float16
    options = {"dtype": dtype} if "dtype" in norm.takes else {}
    compiled = programs.forward(norm, quickly=True, **options)
    for values in (
        np.full(pools.shape, 6e4),
        np.where(rng.random(pools.shape) < 0.5, -6e4, 6e4),
        6e4 + 32 * rng.integers(-40, 40, pools.shape),
    ):
        x = place(values, pools, shape).astype(np.float16)
        assert_one_rounding(compiled(x), norm.expected(x), dtype)


@registry.norms("dtypes")
def test_dtypes_of_results_and_gradients(norm, rng):
    x, gamma, beta, mask = norm.draw(rng, norm.shapes["plain"], jnp.bfloat16, mask=True)
    gamma = None if gamma is None else gamma.astype(jnp.float16)
    given = (x, gamma, beta)
    y, gradients = jax.eval_shape(programs.derivatives(norm), *given, mask, x)
    assert (y.shape, y.dtype) == (x.shape, jnp.bfloat16)
    for value, gradient in zip(given, gradients, strict=True):
        if value is not None:
            assert gradient.dtype == value.dtype and gradient.shape == value.shape
    if "dtype" in norm.takes:
        for dtype in ("float16", jnp.float32):
            wanted = functools.partial(norm, dtype=dtype)
            y, gradients = jax.eval_shape(gradients_of(wanted), *given, mask)
            assert y.dtype == jnp.dtype(dtype) and gradients[0].dtype == jnp.bfloat16


def gradients_of(function):
    def both(x, gamma, beta, mask):
        y, vjp = jax.vjp(lambda *given: function(*given, mask), x, gamma, beta)
        return y, vjp(y)

    return both


@registry.norms("dtypes", core=True)
def test_the_result_is_cast_once_to_the_dtype_given(norm, rng):
    if "dtype" not in norm.takes:
        return
    x, gamma, beta, mask = norm.draw(rng, norm.shapes["five"], mask=True)
    y = programs.forward(norm, quickly=True, dtype="float16")(x, gamma, beta, mask)
    assert_one_rounding(y, norm.expected(x, gamma, beta, mask), jnp.float16)


@registry.norms("dtypes")
def test_float64(norm, rng):
    # The reference is evaluated in long double, wider than what it judges on most platforms, and
    # exact enough where it is not: it subtracts the mean of the remainder too.
    with jax.enable_x64(True):
        compiled = programs.forward(norm, quickly=True)
        pools = norm.pools(norm.shapes["plain"])
        for name, values in patterns(rng, *pools.shape):
            for mean in (0.0, 1e2, -1e6):
                x = np.empty(pools.size)
                x[pools] = values + mean
                x = x.reshape(norm.shapes["plain"])
                y = compiled(x)
                assert y.dtype == jnp.float64
                expected = norm.expected(x.astype(np.longdouble))
                # The float32 bound times the ratio of the two roundings, 2^-29.
                allowed = 4e-6 * 2.0**-29 * max(1, np.abs(expected).max() / 3)
                assert np.abs(np.asarray(y) - expected).max() <= allowed, (name, mean)


@registry.norms("complex")
def test_complex(norm, rng):
    shape = norm.shapes["five"]
    x, gamma, beta, mask = norm.draw(rng, shape, jnp.complex64, mask=True)

    @functools.partial(programs.compiled, quickly=True)
    def compiled(x, dy, step):
        f = lambda x: norm(x, gamma, beta, mask)  # noqa: E731
        y, vjp = jax.vjp(f, x)
        tangent = jax.jvp(f, (x,), (step,))[1] if norm.name in registry.CORE else None
        return y, vjp(dy)[0], tangent

    def draw():
        return np.complex64(rng.normal(size=shape) + 1j * rng.normal(size=shape))

    for given in (x, x.real.astype(x.dtype), x + np.complex64(1e4 - 2e4j)):
        dy, step = draw(), draw()
        y, dx, tangent = jax.tree.map(np.asarray, compiled(given, dy, step))
        assert y.dtype == dx.dtype == jnp.complex64
        expected = norm.expected(given, gamma, beta, mask)
        assert np.abs(y - expected).max() <= TOLERANCE * max(1, np.abs(expected).max() / 3)
        if "stops gradients" in norm.exempt.get("second_order", ""):
            continue  # its derivatives are not those of the values
        # The derivative along the step, by differences of the reference.
        wide, step = np.asarray(given, np.complex128), np.asarray(step, np.complex128)
        ahead, behind = (norm.expected(wide + h * step, gamma, beta, mask) for h in (1e-4, -1e-4))
        slope = (ahead - behind) / 2e-4
        if tangent is not None:
            np.testing.assert_allclose(tangent, slope, atol=2e-5 * np.abs(slope).max(), rtol=0)
        # JAX's gradient of a real function of a complex input is du - i dv.
        terms = np.asarray(dx, np.complex128) * step
        moved = (np.asarray(dy) * slope).sum().real
        np.testing.assert_allclose(moved, terms.sum().real, atol=1e-6 * np.abs(terms).sum())


@registry.norms("complex", core=True)
def test_complex128(norm, rng):
    with jax.enable_x64(True):
        x = np.asarray(norm.draw(rng, norm.shapes["plain"], jnp.complex64)[0], np.complex128)
        y = programs.forward(norm, quickly=True)(x)
        assert y.dtype == jnp.complex128
        np.testing.assert_allclose(y, norm.expected(x), atol=1e-13)
