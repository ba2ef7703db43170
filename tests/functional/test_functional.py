"""What single functions do beyond the contract: their options, defaults and cast policies."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxnorm
from tests.support import reference

pytestmark = pytest.mark.quickly_compiled

close = lambda a, b: np.testing.assert_allclose(a, b, atol=8e-6, rtol=2e-6)  # noqa: E731


def draw(rng, *shape, dtype=jnp.float32):
    return rng.normal(0.5, 2, shape).astype(dtype)


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
    shapes = {(0, 1, 2): (5,), 0: (3, 4, 5), (0, 3): (3, 4)}

    @jax.jit
    def results(x):
        trained = [jaxnorm.batch_norm(x, axis=axis) for axis in shapes]
        given = zip(shapes, trained, strict=True)
        return [
            (y, m, jaxnorm.moments(x, axis=a), jaxnorm.standardize(x, m, axis=a, epsilon=1e-5))
            for a, (y, m) in given
        ]

    for shape, result in zip(shapes.values(), results(draw(rng, 8, 3, 4, 5)), strict=True):
        y, moments, alone, evaluated = result
        assert moments.mean.shape == moments.var.shape == shape
        chex.assert_trees_all_close(moments, alone, atol=1e-6)
        # In evaluation, with these as running moments, the result is that of training.
        close(evaluated, y)


def test_layer_norm_of_a_single_example(rng):
    batch = draw(rng, 4, 6)
    norm = jax.jit(jaxnorm.layer_norm)
    y = np.asarray(norm(batch))
    for x, row in zip(batch, y, strict=True):
        close(norm(x), row)
    close(norm(batch[:1]), y[:1])


@pytest.mark.parametrize("function", [jaxnorm.layer_norm, jaxnorm.rms_norm])
def test_gamma_offset(function, rng):
    x, gamma, beta = draw(rng, 4, 6), draw(rng, 6), draw(rng, 6)
    small = np.full(6, 0.001, jnp.bfloat16)

    @jax.jit
    def results(x, gamma, beta, small):
        return (
            function(x),
            function(x, gamma_offset=1.0),
            function(x, gamma, beta, gamma_offset=1.0),
            function(x, None, beta, gamma_offset=2.0),
            function(x, small, gamma_offset=1.0),
        )

    plain, without, offset, twice, in_float32 = map(np.asarray, results(x, gamma, beta, small))
    close(without, plain)
    close(offset, plain * (gamma + 1) + beta)
    close(twice, 2 * plain + beta)
    # The offset is added in float32: in bfloat16, 1 + 0.001 is 1.
    close(in_float32, plain * (1 + small.astype(np.float32)))


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
        return jax.jit(lambda x, gamma, dy: jax.vjp(f, x, gamma)[1](dy))(x, gamma, dy)

    # The rounding's own derivative is 1; gamma's gradient sees the rounded values.
    for early, late in zip(gradients(True), gradients(False), strict=True):
        np.testing.assert_allclose(
            np.asarray(early, np.float32), np.asarray(late, np.float32), atol=0.1, rtol=0.02
        )


def test_group_sizes_and_numbers_of_groups(rng):
    x = draw(rng, 2, 5, 12)
    numbers = (1, 2, 3, 4, 6, 12)

    @jax.jit
    def results(x):
        return [
            (
                jaxnorm.group_norm(x, num_groups=groups),
                jaxnorm.group_norm(x, group_size=12 // groups),
            )
            for groups in numbers
        ]

    for groups, (y, by_size) in zip(numbers, results(x), strict=True):
        close(by_size, y)
        parts = np.asarray(x, np.float64).reshape(2, 5, groups, 12 // groups)
        parts = parts - parts.mean((1, 3), keepdims=True)
        close(y, (parts / np.sqrt(parts.var((1, 3), keepdims=True) + 1e-6)).reshape(x.shape))


def test_group_norm_has_32_groups_by_default(rng):
    x = draw(rng, 2, 3, 64)
    close(jaxnorm.group_norm(x), jaxnorm.group_norm(x, group_size=2))


def test_group_norm_over_chosen_axes(rng):
    x = draw(rng, 2, 3, 4, 6)
    norm = functools.partial(jaxnorm.group_norm, num_groups=2)
    everywhere, places = ((0, 1, 2), (-2, 0, 1), (0, 1, 2, 3)), (1, 2, -2)

    @jax.jit
    def results(x):
        each = norm(x, axis=()), [norm(x, axis=axis) for axis in everywhere]
        moved = [
            jnp.moveaxis(norm(jnp.moveaxis(x, -1, place), channel_axis=place), place, -1)
            for place in places
        ]
        return *each, norm(x), moved

    alone, pooled, y, moved = results(x)
    kind = {"formula": reference.standardized, "feature_axes": (), "epsilon": 1e-6}
    # No axis: each position by itself. Axis 0: the batch is pooled, too.
    for axes, got in (((), [alone]), ((0, 1, 2), pooled), ((1, 2), [y])):
        pools = reference.pools_of_groups(x.shape, 2, 3, axes)
        for each in got:
            close(each, reference.normalize(x, pools=pools, **kind))
    # Channels first, and in the middle.
    for got in moved:
        close(got, y)


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
    # Each mask with one shape of the parameters, and each of these with a mask, in one program:
    # all of them for three groups, and by turns for all channels together and each by itself.
    parameters = [
        [draw(rng, *parameter_shape) for _ in range(2)]
        for parameter_shape in ((12,), per_channel, shape, (12,))
    ]
    cases = [(*two, mask) for two, mask in zip(parameters, masks, strict=True)]
    cases = cases[{1: slice(0, 4, 2), 3: slice(None), 12: slice(1, 4, 2)}[num_groups]]
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
        norm = functools.partial(function, **options)
        first = np.moveaxis(x, -1, 1)

        @jax.jit
        def results(x, first, gamma, beta, norm=norm):
            return norm(x), norm(x, gamma, beta), norm(first, gamma, beta, channel_axis=1)

        plain, last, first = map(np.asarray, results(x, first, gamma, beta))
        expected = plain * gamma + beta
        close(last, expected)
        close(np.moveaxis(first, 1, -1), expected)


def test_instance_norm_over_chosen_axes(rng):
    norm = jaxnorm.instance_norm
    x, video = draw(rng, 2, 3, 4, 6), draw(rng, 2, 3, 2, 4, 5)

    @jax.jit
    def results(x, video):
        return norm(x, axis=1), norm(x, axis=(2, 1)), norm(x), norm(x, axis=(0, 1, 2)), norm(video)

    given = (x, (1,)), (x, (1, 2)), (x, (1, 2)), (x, (0, 1, 2)), (video, (1, 2, 3))
    for y, (value, axes) in zip(results(x, video), given, strict=True):
        pools = reference.pools_over(value.shape, axes)
        kind = {"formula": reference.standardized, "feature_axes": (), "epsilon": 1e-6}
        close(y, reference.normalize(value, pools=pools, **kind))


def test_standardize_by_any_moments(rng):
    x = draw(rng, 4, 3, 5)
    mean, var = draw(rng, 4, 5), np.abs(draw(rng, 4, 5))
    wide = np.asarray(x, np.float64)
    expected = (wide - np.asarray(mean)[:, None]) / np.sqrt(np.asarray(var)[:, None] + 1e-3)
    moments = (mean, var, 7.0)
    close(jaxnorm.standardize(x, moments, axis=1, epsilon=1e-3), expected)
    close(jaxnorm.standardize(x, jaxnorm.Moments(*moments), axis=-2, epsilon=1e-3), expected)
    full = jaxnorm.Moments(mean[:, None], var[:, None], np.float32(1))
    close(jaxnorm.standardize(x, full, axis=1, epsilon=1e-3), expected)
    y = jaxnorm.standardize(x, full, axis=1, epsilon=1e-3, gamma_offset=-1.0)
    close(y, -expected)

    def loss(mean, var):
        return jnp.sum(jnp.sin(jaxnorm.standardize(x, (mean, var, 0), axis=1, epsilon=1e-3)))

    dmean, dvar = jax.jit(jax.grad(loss, (0, 1)))(mean, var)
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
    single = [a.astype(np.float32) for a in (x, gamma, np.zeros(3))]
    got = jax.jit(lambda dy, *given: jax.vjp(f, *given)[1](dy))(np.float32(dy), *single)
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
