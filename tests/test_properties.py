"""Invariances over freely drawn shapes, axes, dtypes and masks."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given

import jaxnorm
from tests.support import reference

pytestmark = pytest.mark.quickly_compiled

# A small pool of shapes, so that compilations are shared between examples.
SHAPES = [(6,), (1, 5), (4, 3), (2, 3, 4), (3, 1, 2, 4), (2, 2, 3, 2, 2)]


@st.composite
def arrays(draw, shapes=SHAPES, offset=0.0):
    """float32 arrays with free means and spreads, seeded so that failures shrink."""
    shape = draw(st.sampled_from(shapes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([1e-2, 1.0, 30.0]))
    return np.float32(rng.normal(offset, scale, shape))


@st.composite
def axes_of(draw, rank):
    """A non-empty subset of the axes, in any order and with any signs."""
    axes = draw(st.permutations(range(rank)))[: draw(st.integers(1, rank))]
    return tuple(a - rank * draw(st.booleans()) for a in axes)


@st.composite
def masks_of(draw, shape):
    """A mask that broadcasts against `shape`, of any shape and density."""
    sizes = [draw(st.sampled_from([1, s])) for s in shape][draw(st.integers(0, len(shape))) :]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.random(sizes) < draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))


def amplification(x, axes, epsilon=1e-6, mask=None):
    """By how much a relative error of the input's spread grows in the output, at most.

    An error of a rounding of x, 6e-8 |x|, is divided by the standard deviation.
    """
    pools = reference.pools_over(x.shape, axes)
    x = reference.wide(x)
    spread = reference.apply_over_pools(
        lambda v: 0 * v + np.sqrt(v.var(-1, keepdims=True) + epsilon), pools, mask, x
    )
    return float(np.max(np.abs(x) / np.where(spread > 0, spread, np.inf), initial=1.0))


def function_over(axes, x, rms=False, mask=None):
    """The norm over `axes`, compiled once for all orders and signs of them: of one program."""
    ascending = tuple(sorted(a % x.ndim for a in axes))
    wanted, found = (str(jax.make_jaxpr(over(a, rms))(x, mask)) for a in (ascending, axes))
    assert found == wanted
    return over(ascending, rms)


@functools.cache
def over(axes, rms):
    function = jaxnorm.rms_norm if rms else jaxnorm.layer_norm
    return jax.jit(lambda x, mask=None: function(x, axis=axes, mask=mask))


def at_once(*functions):
    """The results of functions of the same arguments, as one program."""
    return jax.jit(lambda *given: [function(*given) for function in functions])


@given(st.data())
def test_shifting_changes_nothing(data):
    x = data.draw(arrays())
    axes = data.draw(axes_of(x.ndim))
    shift = np.float32(data.draw(st.sampled_from([1.0, -256.0, 4096.0])))
    f = function_over(axes, x)
    moved = x + shift
    # Exactly the shifted values are compared: what rounding did to x + shift is not judged.
    y, expected = f(moved), f(moved - shift)
    exact = np.asarray(moved, np.float64) - shift
    assume(np.array_equal(np.asarray(moved - shift, np.float64), exact))
    np.testing.assert_allclose(y, expected, atol=8e-6 * max(1, np.abs(y).max() / 3))


@given(st.data())
def test_scaling_changes_nothing(data):
    x = data.draw(arrays())
    axes = data.draw(axes_of(x.ndim))
    rms = data.draw(st.booleans())
    # Powers of two scale exactly; epsilon is scaled with the variance.
    scale = data.draw(st.sampled_from([2.0**-10, -1.0, 2.0**7]))
    function = jaxnorm.rms_norm if rms else jaxnorm.layer_norm
    y, expected = at_once(
        lambda x, scaled: function(scaled, axis=axes, epsilon=1e-6 * scale**2),
        lambda x, scaled: function(x, axis=axes, epsilon=1e-6),
    )(x, x * np.float32(scale))
    expected = np.sign(scale) * np.asarray(expected)
    np.testing.assert_allclose(y, expected, atol=2e-6, rtol=2e-6)


@given(st.data())
def test_the_result_is_standardized(data):
    x = data.draw(arrays())
    axes = data.draw(axes_of(x.ndim))
    y = np.asarray(function_over(axes, x)(x), np.float64)
    positive = tuple(a % x.ndim for a in axes)
    var = reference.wide(x).var(positive)
    np.testing.assert_allclose(y.mean(positive), 0, atol=4e-6)
    np.testing.assert_allclose(y.var(positive), var / (var + 1e-6), atol=2e-5)


@given(st.data())
def test_masked_equals_packed(data):
    x = data.draw(arrays(offset=data.draw(st.sampled_from([0.0, 100.0, -1e4]))))
    axes = data.draw(axes_of(x.ndim))
    mask = data.draw(masks_of(x.shape))
    rms = data.draw(st.booleans())
    dirty = np.where(np.broadcast_to(mask, x.shape), x, np.float32(np.nan))
    y = function_over(axes, x, rms, mask)(dirty, mask)
    pools = reference.pools_over(x.shape, axes)
    formula = reference.over_rms if rms else reference.standardized
    expected = reference.apply_over_pools(lambda v: formula(v, 1e-6), pools, mask, x)
    np.testing.assert_allclose(y, expected, atol=4e-6 * max(1, np.abs(expected).max() / 3))


@given(st.data())
def test_a_permutation_of_the_pool_permutes_the_result(data):
    x = data.draw(arrays())
    axis = data.draw(st.integers(0, x.ndim - 1))
    order = data.draw(st.permutations(range(x.shape[axis])))
    f = function_over((axis,), x)
    y = f(np.take(x, order, axis))
    np.testing.assert_allclose(y, np.take(np.asarray(f(x)), order, axis), atol=4e-6)


CHANNELS = [(2, 6), (2, 3, 4), (2, 3, 2, 8), (1, 2, 2, 3, 6)]


@given(st.data())
def test_one_group_is_layer_norm(data):
    x = data.draw(arrays(shapes=CHANNELS))
    mask = data.draw(st.none() | masks_of(x.shape))
    channel = data.draw(st.integers(1, x.ndim - 1))
    y, expected = at_once(
        lambda x, mask: jaxnorm.group_norm(x, num_groups=1, channel_axis=channel, mask=mask),
        lambda x, mask: jaxnorm.layer_norm(x, axis=tuple(range(1, x.ndim)), mask=mask),
    )(x, mask)
    np.testing.assert_allclose(y, expected, atol=4e-6)


@given(st.data())
def test_one_channel_per_group_is_instance_norm(data):
    x = data.draw(arrays(shapes=CHANNELS[1:]))
    mask = data.draw(st.none() | masks_of(x.shape))
    channel = data.draw(st.integers(1, x.ndim - 1))
    y, expected = at_once(
        lambda x, mask: jaxnorm.group_norm(x, group_size=1, channel_axis=channel, mask=mask),
        lambda x, mask: jaxnorm.instance_norm(x, channel_axis=channel, mask=mask),
    )(x, mask)
    np.testing.assert_allclose(y, expected, atol=4e-6)


@given(st.data())
def test_batch_norm_of_one_example_axis_is_layer_norm_over_it(data):
    x = data.draw(arrays())
    axes = data.draw(axes_of(x.ndim))
    mask = data.draw(st.none() | masks_of(x.shape))

    @jax.jit
    def batch_and_its_moments(x, mask):
        y, moments = jaxnorm.batch_norm(x, axis=axes, epsilon=1e-6, mask=mask)
        return y, jaxnorm.standardize(x, moments, axis=axes, epsilon=1e-6, mask=mask)

    y, standardized = batch_and_its_moments(x, mask)
    expected = function_over(axes, x, mask=mask)(x, mask)
    np.testing.assert_array_equal(y, expected)
    # The float32 mean that moments carry is itself rounded.
    scale = amplification(x, axes, mask=None if mask is None else np.asarray(mask))
    np.testing.assert_allclose(standardized, expected, atol=4e-6 * max(scale, 1), rtol=2e-6)


@given(st.data())
def test_merging_any_split_in_any_order_equals_the_whole(data):
    offset = data.draw(st.sampled_from([0.0, 1e3]))
    x = data.draw(arrays(shapes=[(12, 2), (17, 3)], offset=offset))
    mask = data.draw(st.none() | masks_of(x.shape))
    size = x.shape[0]
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=4)))
    bounds = list(zip([0, *cuts], [*cuts, size], strict=True))
    order = data.draw(st.permutations(bounds))
    full = None if mask is None else np.broadcast_to(mask, x.shape)

    def merge_parts(x, full):
        given = [(x[a:b], None if full is None else full[a:b]) for a, b in order]
        return jaxnorm.merge_moments(*(jaxnorm.moments(v, axis=0, mask=m) for v, m in given))

    whole, merged = at_once(lambda x, m: jaxnorm.moments(x, axis=0, mask=m), merge_parts)(x, full)
    wide = reference.wide(x)
    largest = max(1.0, np.abs(wide).max())
    np.testing.assert_allclose(merged.mean, whole.mean, atol=4e-7 * largest)
    # The parts' means are rounded to float32, their distances enter the variance squared.
    spread = max(1.0, float(np.asarray(whole.var).max()) ** 0.5)
    atol = 4e-6 * spread**2 + 4e-7 * largest * spread
    np.testing.assert_allclose(merged.var, whole.var, atol=atol)
    np.testing.assert_array_equal(merged.count, whole.count)


@given(st.data())
def test_half_precision_is_the_rounded_float32_result(data):
    x = data.draw(arrays())
    axes = data.draw(axes_of(x.ndim))
    dtype = data.draw(st.sampled_from([jnp.float16, jnp.bfloat16]))
    half = x.astype(dtype)
    f = function_over(axes, x, data.draw(st.booleans()))
    y, exact = f(half), np.asarray(f(half.astype(jnp.float32)), np.float64)
    assert y.dtype == dtype
    info = jnp.finfo(dtype)
    exponent = np.floor(np.log2(np.maximum(np.abs(exact), float(info.tiny))))
    allowed = 0.5 * float(info.eps) * 2.0**exponent + 4e-6
    assert (np.abs(np.asarray(y, np.float64) - exact) <= allowed).all()


@given(st.data())
def test_gradients_obey_the_closed_form(data):
    x = data.draw(arrays(shapes=SHAPES[2:]))
    axes = data.draw(axes_of(x.ndim))
    mask = data.draw(st.none() | masks_of(x.shape))
    rms = data.draw(st.booleans())
    rng = np.random.default_rng(1)
    dy = np.float32(rng.normal(size=x.shape))
    f = function_over(axes, x, rms, mask)
    dx = jax.jit(lambda x, mask, dy: jax.vjp(lambda x: f(x, mask), x)[1](dy)[0])(x, mask, dy)
    vjp = reference.over_rms_vjp if rms else reference.standardized_vjp
    cotangent = dy if mask is None else np.where(mask, dy, 0)
    expected = reference.apply_over_pools(
        lambda v, g: vjp(v, g, 1e-6), reference.pools_over(x.shape, axes), mask, x, cotangent
    )
    # Of a pool with little variance the gradient is dy / sigma before its parts cancel.
    largest = reference.apply_over_pools(
        lambda v: 0 * v + 1 / np.sqrt((np.abs(v) ** 2).mean() * rms + v.var() * (not rms) + 1e-6),
        reference.pools_over(x.shape, axes),
        mask if mask is not None else np.ones(1, bool),
        x,
    ).max()
    np.testing.assert_allclose(dx, expected, atol=8e-6 * max(1.0, 3 * largest))
