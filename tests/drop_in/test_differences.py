"""What the docstring of `jaxnorm.drop_in` lists; dtypes are in `test_linen` and `test_nnx`."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm.drop_in.linen as ours
import jaxnorm.drop_in.nnx as ours_nnx
from tests.drop_in.cases import assert_close, draw
from tests.support.jaxpr_text import initialized

pytestmark = pytest.mark.quickly_compiled

KEY = jax.random.key(0)


def test_what_differs_with_masks(rng):
    """Masked slots give 0, and where all are masked the result is finite; counts are weighed."""
    x, mask = np.asarray(draw(rng, (4, 3, 8))), rng.random((4, 3, 1)) < 0.6
    mask[0] = False
    norm, flax_norm = (library.BatchNorm(use_running_average=False) for library in (ours, nn))
    variables = initialized(norm, x)
    train = jax.jit(functools.partial(norm.apply, mutable=["batch_stats"]))
    y, new = train(variables, x, mask=mask.astype(np.int32))
    flax_train = jax.jit(functools.partial(flax_norm.apply, mutable=["batch_stats"]))
    other, expected = jax.device_get(flax_train(variables, x, mask=mask))
    assert_close(new, expected, scale=2)
    assert_close(y, np.where(mask, other, 0), scale=2)
    # flax normalizes those, too.
    assert np.where(mask, 0, other).any()

    @jax.jit
    def layers(x):
        norms = ours.LayerNorm(), nn.LayerNorm()
        return [norm.init_with_output(KEY, x, mask=mask)[0] for norm in norms]

    mine, theirs = layers(x)
    assert np.isfinite(mine).all() and np.isnan(theirs).any()
    y, unmoved = train(variables, x, mask=mask & False)
    assert_close(unmoved["batch_stats"], variables["batch_stats"])
    assert not np.any(y)
    # The batch norm pools whole elements, flax averages the means of the devices.
    x = np.where(mask, x, np.nan)

    def sharded(library):
        norm = library.BatchNorm(use_running_average=False, axis_name="d")

        def call(x, mask):
            return norm.apply(variables, x, mask=mask, mutable=["batch_stats"])

        return jax.jit(jax.vmap(call, axis_name="d"))(x, mask)

    y, stats = sharded(ours)
    assert_close(y, train(variables, x, mask=mask)[0], scale=2)
    assert np.isfinite(stats["batch_stats"]["mean"]).all()
    assert np.isnan(sharded(nn)[1]["batch_stats"]["mean"]).all()


def test_what_flax_lets_pass(rng):
    x = draw(rng, (4, 8))
    for error, norm, given, message in (
        (ValueError, ours.LayerNorm(epsilon=-1.0), x, "epsilon must be finite and at least 0"),
        (ValueError, ours.BatchNorm(False, momentum=1.5), x, r"momentum must lie in \[0, 1\]"),
        (
            TypeError,
            ours.LayerNorm(dtype=jnp.float32),
            x.astype(jnp.complex64),
            "give a complex dtype",
        ),
    ):
        variables = initialized(nn.BatchNorm(False), x)
        with pytest.raises(error, match=message), jax.numpy_dtype_promotion("standard"):
            norm.apply(variables, given, mutable=["batch_stats"])
    with pytest.raises(TypeError, match="epsilon must be known when the function is traced"):
        jax.jit(lambda e: ours.LayerNorm(epsilon=e).init(KEY, x))(1e-3)
    # Nothing to divide by: the bias, and no gradient, where flax has NaN.
    x = np.ones((2, 4), np.float32)
    for library in (ours, nn):
        norm = library.LayerNorm(epsilon=0.0, bias_init=nn.initializers.constant(2.0))
        total = jax.value_and_grad(lambda x, n=norm: n.init_with_output(KEY, x)[0].sum())
        y, dx = map(np.asarray, jax.jit(total)(x))
        assert (y == 16 and not dx.any()) if library is ours else np.isnan(dx).all()


def test_a_narrow_state_is_warned_of(rng):
    x = draw(rng, (4, 8), "bfloat16")
    norm = ours.BatchNorm(
        use_running_average=False, force_float32_reductions=False, param_dtype=jnp.bfloat16
    )
    variables = norm.init(KEY, x)
    with pytest.warns(UserWarning, match="With force_float32_reductions=True they are in float32"):
        norm.apply(variables, x, mutable=["batch_stats"])


@pytest.mark.parametrize(
    ("made", "twin", "shape"),
    [
        (ours.GroupNorm(8), lambda lib, rngs: lib.GroupNorm(8, 8, rngs=rngs), (6, 8)),
        (ours.InstanceNorm(), lambda lib, rngs: lib.InstanceNorm(8, rngs=rngs), (6, 1, 8)),
    ],
)
def test_one_value_in_each_pool_gives_the_bias_and_a_warning(rng, made, twin, shape):
    x = draw(rng, shape)
    variables = made.init(KEY, x)
    variables["params"]["bias"] = draw(rng, 8)
    for call in (
        lambda: made.apply(variables, x),
        lambda: _everywhere(type(made).__bases__[0], variables, x),
    ):
        with pytest.warns(UserWarning, match=r"got one value in each .* whatever the input"):
            y = call()
        assert_close(y, jnp.broadcast_to(variables["params"]["bias"], shape))
    with pytest.warns(UserWarning, match=r"got one value in each .* whatever the input"):
        y = twin(ours_nnx, nnx.Rngs(0))(x)
    assert_close(y, twin(nnx, nnx.Rngs(0))(x))


def _everywhere(flax_class, variables, x):
    options = {"num_groups": 8} if flax_class is nn.GroupNorm else {}
    with ours.everywhere():
        return flax_class(**options).apply(variables, x)
