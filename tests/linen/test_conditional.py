"""Scale and shift from a condition and from a map."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
import jaxnorm.linen as jnn
from jaxnorm._layers.conditional import SPADE
from tests.support.jaxpr_text import initialized

pytestmark = pytest.mark.quickly_compiled

KEY = jax.random.key(0)


def draw(rng, *shape):
    return jnp.asarray(rng.normal(0.5, 2, shape), jnp.float32)


NORMS = {
    "layer": (jnn.LayerNorm(), lambda x: jaxnorm.layer_norm(x), {}),
    "rms": (jnn.RMSNorm(), lambda x: jaxnorm.rms_norm(x), {}),
    "group": (jnn.GroupNorm(num_groups=2), lambda x: jaxnorm.group_norm(x, num_groups=2), {}),
    "batch": (
        jnn.BatchNorm(),
        lambda x: x / np.float32((1 + 1e-5) ** 0.5),
        {"use_running_average": True},
    ),
}


@pytest.mark.parametrize(
    ("name", "lead"),
    [("layer", (2,)), ("rms", (2, 5)), ("group", (1, 5, 3)), ("batch", (2,)), ("batch", (1, 5, 3))],
)
def test_adaptive_norm(name, lead, rng):
    norm, function, options = NORMS[name]
    x, condition = draw(rng, 2, 5, 3, 8), draw(rng, *lead, 4)
    module = jnn.AdaptiveNorm(norm, gate=True, activation=nn.silu)
    variables = initialized(module, x, condition, **options)
    # The norm has no gamma and beta of its own, and starts without any.
    assert set(variables["params"]) == {"condition"}
    apply = jax.jit(functools.partial(module.apply, **options))
    y, gate = apply(variables, x, condition)
    normalized = np.asarray(function(x))
    np.testing.assert_allclose(y, normalized, atol=4e-6)
    assert not np.any(gate)
    kernel, bias = (np.asarray(draw(rng, *shape)) for shape in ((4, 24), (24,)))
    trained = {**variables, "params": {"condition": {"kernel": kernel, "bias": bias}}}
    y, gate = apply(trained, x, condition)
    condition = np.asarray(condition)
    made = condition / (1 + np.exp(-condition)) @ kernel + bias
    made = made.reshape(*lead, *(1,) * (3 - len(lead)), 24)
    scale, shift, last = np.split(made, 3, -1)
    np.testing.assert_allclose(y, normalized * (1 + scale) + shift, atol=1e-4, rtol=1e-5)
    np.testing.assert_allclose(gate, last, atol=1e-5)


def test_adaptive_norm_without_shift_and_gate(rng):
    x, condition = draw(rng, 2, 5, 8), draw(rng, 2, 4)
    module = jnn.AdaptiveNorm(jnn.RMSNorm(), use_shift=False)
    variables = initialized(module, x, condition)
    assert variables["params"]["condition"]["kernel"].shape == (4, 8)
    mask = rng.random((2, 5, 1)) < 0.7
    y = jax.jit(module.apply)(variables, x, condition, mask=mask)
    np.testing.assert_allclose(y, jaxnorm.rms_norm(x, mask=mask), atol=4e-6)
    half = jax.ShapeDtypeStruct(x.shape, jnp.bfloat16)
    half = jax.eval_shape(module.apply, variables, half, condition)
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("lead", [(3,), (2, 4), (2, 5, 8)])
def test_condition_that_does_not_fit(lead, rng):
    module = jnn.AdaptiveNorm(jnn.LayerNorm())
    with pytest.raises(ValueError, match=r"does not fit an input of shape \(2, 5, 8\)"):
        module.init(KEY, draw(rng, 2, 5, 8), draw(rng, *lead, 4))


def test_spade(rng):
    x, labels = draw(rng, 2, 4, 6, 3), rng.integers(0, 5, (2, 8, 12))
    segmentation = np.eye(5, dtype=np.float32)[labels]
    module = jnn.SPADE(jnn.InstanceNorm(), hidden=7)
    variables = initialized(module, x, segmentation)
    params = variables["params"]
    assert {k: v["kernel"].shape for k, v in params.items()} == {
        "hidden_map": (3, 3, 5, 7),
        "scale": (3, 3, 7, 3),
        "shift": (3, 3, 7, 3),
    }
    small = segmentation[:, ::2, ::2]

    def convolve(name, features, value):
        return nn.Conv(features, (3, 3)).apply({"params": params[name]}, value)

    @jax.jit
    def both(x, segmentation, small):
        hidden = nn.relu(convolve("hidden_map", 7, small))
        scale, shift = (convolve(name, 3, hidden) for name in ("scale", "shift"))
        expected = jaxnorm.instance_norm(x) * (1 + scale) + shift
        return module.apply(variables, x, segmentation), expected

    np.testing.assert_allclose(*both(x, segmentation, small), atol=1e-5)
    with pytest.raises(ValueError, match="segmentation of shape"):
        module.init(KEY, x, segmentation[:1])


def torch_nearest(old, size):
    """Which of `old` positions torch's `nearest` takes for each of `size`, as its C++ says."""
    step = np.float32(old) / np.float32(size)
    return [min(int(np.float32(i) * step), old - 1) for i in range(size)]


@pytest.mark.parametrize("sizes", [(8, 4), (4, 8), (9, 4), (5, 7), (7, 5), (28, 46), (62, 14)])
def test_maps_are_resized_as_the_authors_do(sizes):
    old, size = sizes
    assert torch_nearest(9, 4) == [0, 2, 4, 6] and torch_nearest(5, 7) == [0, 0, 1, 2, 2, 3, 4]
    by_whole_numbers = [i * old // size for i in range(size)]
    assert (torch_nearest(*sizes) == by_whole_numbers) == (sizes not in [(28, 46), (62, 14)])
    segmentation = np.arange(1.0 * old * old, dtype=np.float32).reshape(1, old, old, 1)
    expected = segmentation[:, torch_nearest(*sizes)][:, :, torch_nearest(*sizes)]
    found = []

    class Seen(SPADE):
        def _convolve(self, name, value, channels):
            found.append(value)
            return jnp.zeros((*value.shape[:-1], channels))

    norm = Seen(lambda x, **_: x, hidden=1, kernel_size=1)
    norm(jnp.ones((1, size, size, 1)), segmentation)
    np.testing.assert_array_equal(found[0], expected)
