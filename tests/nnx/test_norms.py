"""The normalization modules for Flax NNX: the same values as their twins for linen."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm.nnx as jnx
from tests.nnx.twins import draw, values

pytestmark = pytest.mark.quickly_compiled

equal = chex.assert_trees_all_equal
close = functools.partial(chex.assert_trees_all_close, atol=1e-5)
call = nnx.jit(lambda m, x: m(x))
TRAINED = ("BatchNorm", "DecorrelatedBatchNorm")


@pytest.mark.parametrize("name", TRAINED)
def test_the_mode_is_that_of_the_call_else_of_the_model(name, rng):
    norm = getattr(jnx, name)(4)
    x = draw(rng, (8, 4))
    assert norm.use_running_average is False  # made for training, as modules of flax.nnx are
    first = values(norm)
    trained = norm(x)
    moved = values(norm)
    assert not np.array_equal(moved["mean"], first["mean"])
    evaluated = norm(x, use_running_average=True)
    equal(values(norm), moved)
    norm.eval()
    equal(norm(x), evaluated)
    equal(values(norm), moved)
    # The running mean shifts the sums, which are rounded otherwise.
    close(norm(x, use_running_average=False), trained)
    assert not np.array_equal(values(norm)["mean"], moved["mean"])
    norm.train()
    close(norm(x), trained)


def test_traced_modes_compute_both(rng):
    x = draw(rng, (8, 4))
    for name in TRAINED:
        call = nnx.jit(lambda m, x, evaluate: m(x, use_running_average=evaluate))
        for evaluate in (False, True):
            norm, other = getattr(jnx, name)(4), getattr(jnx, name)(4)
            y = call(norm, x, jnp.asarray(evaluate))
            close(y, other(x, use_running_average=evaluate))
            close(values(norm), values(other))


def test_the_running_statistics_can_be_left_out_and_left_alone(rng):
    x = draw(rng, (8, 4))
    by_batch = {"eval_statistics": "batch", "update_running": False}
    assert set(values(jnx.BatchNorm(4, **by_batch))) == {"gamma", "beta"}
    norm = jnx.BatchNorm(4)
    first = values(norm)
    expected = jnx.BatchNorm(4)(x)
    equal(norm(x, update_running=False), expected)
    norm.frozen = "statistics"
    equal(norm(x), norm(x, use_running_average=True))
    equal(values(norm), first)
    norm = jnx.BatchNorm(4, **by_batch)
    norm.frozen = "all"
    message = (
        "BatchNorm(num_features=4) was made without a running mean, which its options of now need. "
        "Give them when it is made."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        norm(x)


def test_domains_have_rows_of_their_own(rng):
    x = draw(rng, (8, 4))
    norm = jnx.BatchNorm(4, num_domains=2, affine_per_domain=True)
    assert {k: v.shape for k, v in values(norm).items()} == {
        name: (2, 4) for name in ("gamma", "beta", "mean", "var")
    }
    norm(x, domain=1)
    alone = jnx.BatchNorm(4)
    alone(x)
    equal(norm.mean[...], np.stack([np.zeros(4, np.float32), alone.mean[...]]))
    domain = np.asarray([0, 1] * 4, np.int32)
    norm.eval()
    alone.eval()
    equal(np.asarray(norm(x, domain=domain))[1::2], np.asarray(alone(x))[1::2])


def test_axes_that_are_neither_pooled_nor_of_features_need_an_input_shape(rng):
    x = draw(rng, (8, 3, 4))
    axes = {"reduction_axes": 0, "feature_axes": -1}
    for name, kept in (("BatchNorm", "var"), ("DecorrelatedBatchNorm", "projection")):
        module = getattr(jnx, name)
        norm = module(4, input_shape=(1, 3, 4), **axes)
        for position in range(3):
            alone = module(4)
            y, part = call(norm, x), np.asarray(x)[:, position]
            chex.assert_trees_all_close(np.asarray(y)[:, position], call(alone, part), atol=2e-5)
        assert getattr(norm, kept).shape[0] == 3
        message = (
            f"{name}(num_features=4) has a running mean of shape (4,), which does not fit an input "
            "of shape (8, 3, 4): expected (3, 4). Give the sizes of the features as num_features; "
            "and input_shape, if some axes are neither pooled nor of features."
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            module(4, **axes)(x)


@pytest.mark.parametrize(
    ("dtype", "param_dtype", "x_dtype", "state", "result"),
    [
        (None, "float32", "bfloat16", "float32", "bfloat16"),
        (None, "bfloat16", "bfloat16", "float32", "bfloat16"),
        ("float16", "float32", "float32", "float32", "float16"),
        ("complex64", "float32", "complex64", "complex64", "complex64"),
    ],
)
def test_the_dtype_of_the_state_never_changes(dtype, param_dtype, x_dtype, state, result, rng):
    norm = jnx.BatchNorm(4, dtype=dtype, param_dtype=param_dtype)
    y = norm(draw(rng, (8, 4), x_dtype))
    dtypes = {name: str(value.dtype) for name, value in values(norm).items()}
    expected = {"gamma": param_dtype, "beta": param_dtype, "mean": state, "var": "float32"}
    assert (dtypes, str(y.dtype)) == (expected, result)


def test_a_state_cast_to_bfloat16_stays_so_and_says_where_it_stops(rng):
    norm = jnx.BatchNorm(4)
    nnx.update(norm, jax.tree.map(lambda a: a.astype(jnp.bfloat16), nnx.state(norm)))
    with pytest.warns(UserWarning, match="nnx.state\\(model, nnx.Param\\)"):
        norm(draw(rng, (8, 4), jnp.bfloat16))
    assert {str(v.dtype) for v in values(norm).values()} == {"bfloat16"}
    # What the warning advises.
    norm = jnx.BatchNorm(4)
    cast = jax.tree.map(lambda a: a.astype(jnp.bfloat16), nnx.state(norm, nnx.Param))
    nnx.update(norm, cast)
    norm(draw(rng, (8, 4), jnp.bfloat16))
    assert (norm.gamma.dtype, norm.mean.dtype) == (jnp.bfloat16, jnp.float32)


def test_names_and_metadata_of_parameters():
    norm = jnx.LayerNorm(
        4, param_names=("scale", "bias"), gamma_metadata={"role": "scale"}, beta_metadata={"n": 1}
    )
    assert set(values(norm)) == {"scale", "bias"}
    assert norm.scale.get_metadata("role") == "scale"
    assert norm.bias.get_metadata("n") == 1
    norm = jnx.LayerNorm(4, use_gamma=False, use_beta=False)
    assert (norm.gamma, norm.beta) == (None, None)


def test_initializers_that_draw_need_rngs(rng):
    init = nnx.initializers.normal()
    message = (
        "LayerNorm(num_features=4) draws its first gamma at random and needs rngs, such as "
        "rngs=nnx.Rngs(0)."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        jnx.LayerNorm(4, gamma_init=init)
    norms = [jnx.LayerNorm(4, gamma_init=init, rngs=nnx.Rngs(seed)) for seed in (0, 0, 1)]
    a, b, c = (norm.gamma[...] for norm in norms)
    equal(a, b)
    assert not np.array_equal(a, c)
    # The same keys as flax's own layers draw.
    own = nnx.LayerNorm(4, scale_init=init, rngs=nnx.Rngs(0))
    equal(a, own.scale[...])


def test_errors_name_the_layer(rng):
    x = draw(rng, (8, 3))
    message = (
        "LayerNorm(num_features=4) has a gamma of shape (4,), which does not fit an input of shape "
        "(8, 3) with features on axes (1,): expected (3,). Give their sizes as num_features."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        jnx.LayerNorm(4)(x)
    with pytest.raises(ValueError, match=r"^BatchNorm\(num_features=\(2, 3\)\) has a gamma of"):
        jnx.BatchNorm((2, 3))(x)
    with pytest.raises(ValueError, match=r"^BatchNorm\(num_features=3\) needs use_running_average"):
        jnx.BatchNorm(3, use_running_average=None)(x)
    message = r"BatchNorm\(num_features=3\) got one element per channel in training: .* use a "
    message += r"larger batch, use_running_average=True, as model.eval\(\) sets it, or a norm"
    with pytest.raises(ValueError, match=message):
        jnx.BatchNorm(3)(x[:1])
    with pytest.raises(NameError, match=r"^BatchNorm\(num_features=3\): .*axis_name"):
        jnx.BatchNorm(3, axis_name="devices")(x)
    message = (
        "BatchNorm(num_features=3) has a running mean of dtype float32, which cannot hold that of "
        "complex inputs; make it with dtype=complex64."
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        jnx.BatchNorm(3)(draw(rng, (8, 3), jnp.complex64))
    with pytest.raises(TypeError, match="num_features must be an int"):
        jnx.LayerNorm(4.5)


def test_against_flax(rng):
    """With gamma and beta of flax's own modules, away from their first values."""
    x = draw(rng, (6, 5, 8))
    pairs = [
        (nnx.LayerNorm(8, rngs=nnx.Rngs(0)), jnx.LayerNorm(8, param_names=("scale", "bias"))),
        (nnx.RMSNorm(8, rngs=nnx.Rngs(0)), jnx.RMSNorm(8, param_names=("scale", "bias"))),
        (
            nnx.GroupNorm(8, num_groups=2, rngs=nnx.Rngs(0)),
            jnx.GroupNorm(8, num_groups=2, param_names=("scale", "bias")),
        ),
        (
            nnx.BatchNorm(8, rngs=nnx.Rngs(0)),
            jnx.BatchNorm(8, unbiased=False, param_names=("scale", "bias")),
        ),
    ]
    for own, norm in pairs:
        state = jax.tree.map(lambda a: np.abs(draw(rng, a.shape)), nnx.state(own))
        nnx.update(own, state)
        nnx.update(norm, state)
        for mode in ("train", "eval"):
            getattr(own, mode)()
            getattr(norm, mode)()
            np.testing.assert_allclose(call(norm, x), call(own, x), atol=2e-5)
            close(values(norm), values(own))
