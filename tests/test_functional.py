"""What single functions do beyond the contract: their options, defaults and cast policies."""

import inspect

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxnorm
from tests import reference

close = lambda a, b: np.testing.assert_allclose(a, b, atol=8e-6, rtol=2e-6)  # noqa: E731


def draw(rng, *shape, dtype=jnp.float32):
    return jnp.asarray(rng.normal(0.5, 2, shape), dtype)


def defaults(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def test_defaults_are_those_of_flax_linen():
    assert defaults(jaxnorm.batch_norm)["epsilon"] == 1e-5
    for function in (
        jaxnorm.layer_norm,
        jaxnorm.rms_norm,
        jaxnorm.group_norm,
        jaxnorm.instance_norm,
    ):
        assert defaults(function)["epsilon"] == 1e-6
    assert defaults(jaxnorm.update_moments)["unbiased"] is True


def test_batch_norm_after_dense_convolution_and_position_wise(rng):
    x = draw(rng, 8, 3, 4, 5)
    for axis, means in (((0, 1, 2), (5,)), (0, (3, 4, 5)), ((0, 3), (3, 4))):
        y, moments = jaxnorm.batch_norm(x, axis=axis)
        assert moments.mean.shape == moments.var.shape == means
        chex.assert_trees_all_close(moments, jaxnorm.moments(x, axis=axis), atol=1e-6)
        # In evaluation, with these as running moments, the result is that of training.
        close(jaxnorm.standardize(x, moments, axis=axis, epsilon=1e-5), y)


def test_layer_norm_of_a_single_example(rng):
    batch = draw(rng, 4, 6)
    y = jaxnorm.layer_norm(batch)
    for x, row in zip(batch, y, strict=True):
        close(jaxnorm.layer_norm(x), row)
    close(jaxnorm.layer_norm(batch[:1]), y[:1])


@pytest.mark.parametrize("function", [jaxnorm.layer_norm, jaxnorm.rms_norm])
def test_gamma_offset(function, rng):
    x, gamma, beta = draw(rng, 4, 6), draw(rng, 6), draw(rng, 6)
    plain = function(x, gamma + 1, beta)
    close(function(x, gamma, beta, gamma_offset=1.0), plain)
    close(function(x, gamma_offset=1.0), function(x))
    close(function(x, None, beta, gamma_offset=2.0), 2 * np.asarray(function(x)) + np.asarray(beta))
    # The offset is added in float32: in bfloat16, 1 + 0.001 is 1.
    small = jnp.full(6, 0.001, jnp.bfloat16)
    close(function(x, small, gamma_offset=1.0), function(x, 1 + small.astype(jnp.float32)))


def exact_sums(rng, shape):
    """bfloat16 values whose squares add up in float32 without rounding, in any order."""
    return (rng.integers(-40, 41, shape) / 8).astype(ml_dtypes.bfloat16)


def inverse_root_mean_square(x, epsilon):
    mean = (x * x).mean(-1, keepdims=True, dtype=np.float32)
    # The float32 nearest to the exact value; XLA's may be its neighbour, which changes a bfloat16
    # result only at a boundary of its rounding, one in 2^16: the seed has none.
    return (1 / np.sqrt(mean.astype(np.float64) + epsilon)).astype(np.float32)


def llama_reference(x, weight, epsilon):
    """weight * (x * rsqrt(mean(x^2) + epsilon)).to(x.dtype), as in Llama's own code."""
    single = x.astype(np.float32)
    normalized = (single * inverse_root_mean_square(single, epsilon)).astype(x.dtype)
    return weight * normalized


def gemma_reference(x, weight, epsilon):
    """(x * rsqrt(mean(x^2) + epsilon) * (1 + weight)).to(x.dtype), all in float32, as Gemma's."""
    single = x.astype(np.float32)
    normalized = single * inverse_root_mean_square(single, epsilon)
    return (normalized * (np.float32(1) + weight.astype(np.float32))).astype(x.dtype)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_llama_and_gemma_bit_for_bit(jit, rng):
    x = exact_sums(rng, (32, 128))
    weight = rng.normal(0.2, 0.5, 128).astype(ml_dtypes.bfloat16)

    def both(x, weight):
        llama = jaxnorm.rms_norm(x, weight, cast_before_gamma=True)
        return llama, jaxnorm.rms_norm(x, weight, gamma_offset=1.0)

    llama, gemma = (jax.jit(both) if jit else both)(jnp.asarray(x), jnp.asarray(weight))
    expected = llama_reference(x, weight, 1e-6), gemma_reference(x, weight, 1e-6)
    np.testing.assert_array_equal(np.asarray(llama).view(np.uint16), expected[0].view(np.uint16))
    np.testing.assert_array_equal(np.asarray(gemma).view(np.uint16), expected[1].view(np.uint16))
    # The two rules, and rounding once at the end, differ in many places: the test can tell.
    plain = np.asarray(jaxnorm.rms_norm(jnp.asarray(x), jnp.asarray(weight)))
    assert (plain != expected[0]).mean() > 0.05


def test_llama_with_float32_weights(rng):
    # bfloat16 activations, float32 parameters and result: the early rounding is still there.
    x, weight = exact_sums(rng, (8, 64)), rng.normal(1, 0.5, 64).astype(np.float32)
    y = jaxnorm.rms_norm(jnp.asarray(x), weight, cast_before_gamma=True, dtype=jnp.float32)
    np.testing.assert_array_equal(y, llama_reference(x, np.float32(1), 1e-6) * weight)


def test_cast_before_gamma_keeps_its_gradients(rng):
    x, gamma = draw(rng, 4, 16, dtype=jnp.bfloat16), draw(rng, 16, dtype=jnp.bfloat16)
    dy = draw(rng, 4, 16, dtype=jnp.bfloat16)

    def gradients(cast):
        f = lambda x, g: jaxnorm.rms_norm(x, g, cast_before_gamma=cast)  # noqa: E731
        return jax.vjp(f, x, gamma)[1](dy)

    # The rounding's own derivative is 1; gamma's gradient sees the rounded values.
    for early, late in zip(gradients(True), gradients(False), strict=True):
        np.testing.assert_allclose(
            np.asarray(early, np.float32), np.asarray(late, np.float32), atol=0.1, rtol=0.02
        )


def test_group_sizes_and_numbers_of_groups(rng):
    x = draw(rng, 2, 5, 12)
    for groups in (1, 2, 3, 4, 6, 12):
        y = jaxnorm.group_norm(x, num_groups=groups)
        close(jaxnorm.group_norm(x, group_size=12 // groups), y)
        parts = np.asarray(x, np.float64).reshape(2, 5, groups, 12 // groups)
        parts = parts - parts.mean((1, 3), keepdims=True)
        close(y, (parts / np.sqrt(parts.var((1, 3), keepdims=True) + 1e-6)).reshape(x.shape))


def test_group_norm_has_32_groups_by_default(rng):
    x = draw(rng, 2, 3, 64)
    close(jaxnorm.group_norm(x), jaxnorm.group_norm(x, group_size=2))


def test_group_norm_over_chosen_axes(rng):
    x = draw(rng, 2, 3, 4, 6)
    # No axis: each position by itself. Axis 0: the batch is pooled, too.
    close(
        jaxnorm.group_norm(x, num_groups=2, axis=()),
        jaxnorm.layer_norm(x.reshape(2, 3, 4, 2, 3)).reshape(x.shape),
    )
    for axis in ((0, 1, 2), (-2, 0, 1), (0, 1, 2, 3)):
        y = jaxnorm.group_norm(x, num_groups=2, axis=axis)
        grouped = jaxnorm.layer_norm(x.reshape(2, 3, 4, 2, 3), axis=(0, 1, 2, 4))
        close(y, grouped.reshape(x.shape))
    # Channels first, and in the middle.
    y = jaxnorm.group_norm(x, num_groups=2)
    for place in (1, 2, -2):
        moved = jnp.moveaxis(x, -1, place)
        got = jaxnorm.group_norm(moved, num_groups=2, channel_axis=place)
        close(jnp.moveaxis(got, place, -1), y)


@pytest.mark.parametrize(
    ("shape", "channel_axis", "axis"),
    [
        ((6, 12), -1, None),
        ((12, 6), 0, (1,)),
        ((12, 6), 0, ()),
        ((4, 1, 12, 1), 2, None),
        ((2, 12, 5), 1, 1),  # only the channel axis: channels are pooled anyway
        ((12,), 0, ()),
    ],
)
@pytest.mark.parametrize("num_groups", [1, 3, 12])
def test_groups_of_nothing_but_channels(shape, channel_axis, axis, num_groups, rng):
    x = draw(rng, *shape)
    channel = channel_axis % len(shape)
    axes = range(1, len(shape)) if axis is None else np.atleast_1d(np.asarray(axis, int))
    pools = reference.pools_of_groups(shape, num_groups, channel, [a for a in axes if a != channel])
    per_channel = np.asarray([12 if a == channel else 1 for a in range(len(shape))])
    masks = (
        None,
        rng.random(shape) < 0.7,
        rng.random(per_channel) < 0.7,
        rng.random([1 if a == channel else s for a, s in enumerate(shape)]) < 0.7,
    )
    kind = {"formula": reference.standardized, "pools": pools, "feature_axes": (channel,)}
    options = {"num_groups": num_groups, "channel_axis": channel_axis, "axis": axis}
    # Each mask with one shape of the parameters, and each of these with a mask, in one program.
    parameters = [
        [draw(rng, *parameter_shape) for _ in range(2)]
        for parameter_shape in ((12,), per_channel, shape, (12,))
    ]
    cases = [(*two, mask) for two, mask in zip(parameters, masks, strict=True)]
    results = jax.jit(
        lambda x, cases: [
            jaxnorm.group_norm(x, gamma, beta, mask=mask, **options) for gamma, beta, mask in cases
        ]
    )(x, cases)
    for y, case in zip(results, cases, strict=True):
        close(y, reference.normalize(x, *case, epsilon=1e-6, **kind))


def test_channel_parameters_stay_with_their_channels(rng):
    x, gamma, beta = draw(rng, 2, 3, 4, 6), draw(rng, 6), draw(rng, 6)
    for function, options in (
        (jaxnorm.group_norm, {"num_groups": 2}),
        (jaxnorm.instance_norm, {}),
    ):
        expected = np.asarray(function(x, **options)) * np.asarray(gamma) + np.asarray(beta)
        close(function(x, gamma, beta, **options), expected)
        first = jnp.moveaxis(x, -1, 1)
        got = function(first, gamma, beta, channel_axis=1, **options)
        close(jnp.moveaxis(got, 1, -1), expected)


def test_instance_norm_over_chosen_axes(rng):
    x = draw(rng, 2, 3, 4, 6)
    close(jaxnorm.instance_norm(x, axis=1), jaxnorm.layer_norm(x, axis=1))
    close(jaxnorm.instance_norm(x, axis=(2, 1)), jaxnorm.instance_norm(x))
    pooled, _ = jaxnorm.batch_norm(x, axis=(0, 1, 2), epsilon=1e-6)
    close(jaxnorm.instance_norm(x, axis=(0, 1, 2)), pooled)
    video = draw(rng, 2, 3, 2, 4, 5)
    close(jaxnorm.instance_norm(video), jaxnorm.layer_norm(video, axis=(1, 2, 3)))


def test_standardize_by_any_moments(rng):
    x = draw(rng, 4, 3, 5)
    mean, var = draw(rng, 4, 5), jnp.abs(draw(rng, 4, 5))
    wide = np.asarray(x, np.float64)
    expected = (wide - np.asarray(mean)[:, None]) / np.sqrt(np.asarray(var)[:, None] + 1e-3)
    moments = (mean, var, 7.0)
    close(jaxnorm.standardize(x, moments, axis=1, epsilon=1e-3), expected)
    close(jaxnorm.standardize(x, jaxnorm.Moments(*moments), axis=-2, epsilon=1e-3), expected)
    full = jaxnorm.Moments(mean[:, None], var[:, None], jnp.ones(()))
    close(jaxnorm.standardize(x, full, axis=1, epsilon=1e-3), expected)
    y = jaxnorm.standardize(x, full, axis=1, epsilon=1e-3, gamma_offset=-1.0)
    close(y, -expected)

    def loss(mean, var):
        return jnp.sum(jnp.sin(jaxnorm.standardize(x, (mean, var, 0), axis=1, epsilon=1e-3)))

    dmean, dvar = jax.grad(loss, (0, 1))(mean, var)
    root = np.sqrt(np.asarray(var, np.float64) + 1e-3)
    np.testing.assert_allclose(dmean, -np.cos(expected).sum(1) / root, rtol=1e-4, atol=1e-4)
    exact = (-0.5 * np.cos(expected) * expected).sum(1) / root**2
    np.testing.assert_allclose(dvar, exact, rtol=1e-4, atol=1e-4)


def test_standardize_is_the_identity_for_mean_zero_and_variance_one(rng):
    x = draw(rng, 4, 3)
    y = jaxnorm.standardize(x, (jnp.zeros(3), jnp.ones(3), 0), axis=0, epsilon=0.0)
    np.testing.assert_array_equal(y, x)


def test_lists_and_numpy_arrays_are_arrays(rng):
    x = rng.normal(size=(2, 3)).astype(np.float32)
    for given in (x, x.tolist()):
        close(jaxnorm.layer_norm(given), jaxnorm.layer_norm(jnp.asarray(x)))
    y = jaxnorm.layer_norm(x, [1.0, 2.0, 3.0], np.zeros(3, np.float32), mask=[True, True, False])
    assert y.shape == (2, 3)


def test_gradients_agree_with_the_paper(rng):
    # Ioffe & Szegedy 2015, the chain rule in section 3, step by step.
    x, gamma, dy = (np.asarray(draw(rng, *s), np.float64) for s in ((16, 3), (3,), (16, 3)))
    m, epsilon = 16, 1e-5
    mean, var = x.mean(0), x.var(0)
    hat = (x - mean) / np.sqrt(var + epsilon)
    dhat = dy * gamma
    dvar = (dhat * (x - mean) * -0.5 * (var + epsilon) ** -1.5).sum(0)
    dmean = (dhat * -1 / np.sqrt(var + epsilon)).sum(0) + dvar * (-2 * (x - mean)).mean(0)
    dx = dhat / np.sqrt(var + epsilon) + dvar * 2 * (x - mean) / m + dmean / m
    expected = dx, (dy * hat).sum(0), dy.sum(0)
    f = lambda x, g, b: jaxnorm.batch_norm(x, g, b, axis=0)[0]  # noqa: E731
    single = [jnp.asarray(a, jnp.float32) for a in (x, gamma, np.zeros(3))]
    got = jax.vjp(f, *single)[1](jnp.asarray(dy, jnp.float32))
    for value, exact in zip(got, expected, strict=True):
        np.testing.assert_allclose(value, exact, atol=2e-5, rtol=1e-5)
    # The closed form that the contract is tested with says the same.
    closed = reference.normalize_vjp(
        x,
        gamma,
        np.zeros(3),
        None,
        dy,
        formula=reference.standardized,
        vjp=reference.standardized_vjp,
        pools=reference.pools_over(x.shape, (0,)),
        feature_axes=(1,),
        epsilon=epsilon,
    )
    for value, exact in zip(closed, expected, strict=True):
        np.testing.assert_allclose(value, exact, atol=1e-12)
