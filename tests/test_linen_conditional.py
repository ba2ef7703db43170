"""Scale and shift from a condition and from a map."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
import jaxnorm.linen as jnn

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


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("lead", [(2,), (2, 5), (1, 5, 3)])
def test_adaptive_norm(name, lead, rng):
    norm, function, options = NORMS[name]
    x, condition = draw(rng, 2, 5, 3, 8), draw(rng, *lead, 4)
    module = jnn.AdaptiveNorm(norm, gate=True, activation=nn.silu)
    variables = module.init(KEY, x, condition, **options)
    # The norm has no gamma and beta of its own, and starts without any.
    assert set(variables["params"]) == {"condition"}
    y, gate = module.apply(variables, x, condition, **options)
    np.testing.assert_allclose(y, function(x), atol=4e-6)
    assert not gate.any()
    kernel, bias = draw(rng, 4, 24), draw(rng, 24)
    trained = {**variables, "params": {"condition": {"kernel": kernel, "bias": bias}}}
    y, gate = module.apply(trained, x, condition, **options)
    made = nn.silu(condition) @ kernel + bias.reshape((1,) * len(lead) + (24,))
    made = made.reshape(*lead, *(1,) * (3 - len(lead)), 24)
    scale, shift, last = np.split(np.asarray(made), 3, -1)
    np.testing.assert_allclose(y, function(x) * (1 + scale) + shift, atol=1e-4, rtol=1e-5)
    np.testing.assert_allclose(gate, last, atol=1e-5)


def test_adaptive_norm_without_shift_and_gate(rng):
    x, condition = draw(rng, 2, 5, 8), draw(rng, 2, 4)
    module = jnn.AdaptiveNorm(jnn.RMSNorm(), use_shift=False)
    variables = module.init(KEY, x, condition)
    assert variables["params"]["condition"]["kernel"].shape == (4, 8)
    mask = jnp.asarray(rng.random((2, 5, 1)) < 0.7)
    y = module.apply(variables, x, condition, mask=mask)
    np.testing.assert_allclose(y, jaxnorm.rms_norm(x, mask=mask), atol=4e-6)
    half = module.apply(variables, x.astype(jnp.bfloat16), condition)
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("lead", [(3,), (2, 4), (2, 5, 8)])
def test_condition_that_does_not_fit(lead, rng):
    module = jnn.AdaptiveNorm(jnn.LayerNorm())
    with pytest.raises(ValueError, match=r"does not fit an input of shape \(2, 5, 8\)"):
        module.init(KEY, draw(rng, 2, 5, 8), draw(rng, *lead, 4))


def test_spade(rng):
    x, labels = draw(rng, 2, 4, 6, 3), jnp.asarray(rng.integers(0, 5, (2, 8, 12)))
    segmentation = jax.nn.one_hot(labels, 5)
    module = jnn.SPADE(jnn.InstanceNorm(), hidden=7)
    variables = module.init(KEY, x, segmentation)
    params = variables["params"]
    assert {k: v["kernel"].shape for k, v in params.items()} == {
        "hidden_map": (3, 3, 5, 7),
        "scale": (3, 3, 7, 3),
        "shift": (3, 3, 7, 3),
    }
    y = module.apply(variables, x, segmentation)
    small = segmentation[:, 1::2, 1::2]

    def convolve(name, features, value):
        return nn.Conv(features, (3, 3)).apply({"params": params[name]}, value)

    hidden = nn.relu(convolve("hidden_map", 7, small))
    scale, shift = (convolve(name, 3, hidden) for name in ("scale", "shift"))
    np.testing.assert_allclose(y, jaxnorm.instance_norm(x) * (1 + scale) + shift, atol=1e-5)
    with pytest.raises(ValueError, match="segmentation of shape"):
        module.init(KEY, x, segmentation[:1])
