"""Spectral norm around Flax linen layers, in training and in evaluation."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxnorm.linen as jnn
from tests.support.jaxpr_text import initialized
from tests.support.weight_wrappers import close, images

pytestmark = pytest.mark.quickly_compiled


def svd(kernel):
    return np.linalg.svd(np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]))[1][0]


def test_spectral_norm_is_warm_at_initialization(rng):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, update_stats):
            for layer in (nn.Conv(64, (3, 3)), nn.ConvTranspose(16, (2, 2)), nn.Dense(300)):
                x = jnn.SpectralNorm(layer)(x, update_stats=update_stats)
            return nn.tanh(jnn.SpectralNorm(nn.Dense(300))(x, update_stats=update_stats))

    x = images(rng, 1, 4, 4, 8)
    init = jax.jit(functools.partial(Model().init, update_stats=True))
    for seed in range(3):
        variables = init(jax.random.key(seed), x)
        params, stats = variables["params"], variables["batch_stats"]
        for i, name in enumerate(("Conv_0", "ConvTranspose_0", "Dense_0", "Dense_1")):
            own = stats[f"SpectralNorm_{i}"]
            np.testing.assert_allclose(own["kernel_sigma"], svd(params[name]["kernel"]), rtol=0.01)
            np.testing.assert_allclose(np.linalg.norm(own["kernel_u"]), 1, rtol=1e-6)
            assert own["kernel_u"].dtype == own["kernel_sigma"].dtype == jnp.float32


def test_spectral_norm_in_training_and_evaluation(rng):
    x = images(rng, 8, 6)
    layer = jnn.SpectralNorm(nn.Dense(5))
    variables = jax.device_get(initialized(layer, x, update_stats=True))
    x, kernel = np.asarray(x), variables["params"]["layer"]["kernel"]

    @jax.jit
    def train(variables):
        return layer.apply(variables, x, update_stats=True, mutable=["batch_stats"])

    @jax.jit
    def evaluate(variables):
        return layer.apply(variables, x, update_stats=False, mutable=["batch_stats"])

    y, state = evaluate(variables)
    close(y, x @ kernel / variables["batch_stats"]["kernel_sigma"])
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])
    close(jax.jit(functools.partial(layer.apply, update_stats=False))(variables, x), y)
    # From an unrelated u, training converges to the singular value, a step in each call.
    u = images(rng, 5)
    state = {"batch_stats": {"kernel_u": u, "kernel_sigma": np.float32(1)}}
    for _ in range(30):
        y, state = train({**variables, **state})
    sigma = np.asarray(state["batch_stats"]["kernel_sigma"])
    np.testing.assert_allclose(sigma, svd(kernel), rtol=1e-3)
    close(y, x @ kernel / sigma)
    np.testing.assert_allclose(svd(kernel / sigma), 1, rtol=1e-3)


def test_spectral_norm_follows_the_weights_in_training(rng):
    x = images(rng, 32, 6)
    target = np.asarray(x) @ np.asarray(images(rng, 6, 6))
    model = jnn.SpectralNorm(nn.Dense(6), update_stats=True)
    variables = initialized(model, x)
    # Slow enough for one step of power iteration to keep up.
    optimizer = optax.sgd(0.01)

    def loss(params, stats):
        y, state = model.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
        return jnp.mean((y - target) ** 2), state["batch_stats"]

    @jax.jit
    def train(params, stats):
        def step(carry, _):
            params, stats, opt = carry
            (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(params, stats)
            update, opt = optimizer.update(gradient, opt)
            return (optax.apply_updates(params, update), stats, opt), value

        carry, losses = jax.lax.scan(step, (params, stats, optimizer.init(params)), length=100)
        return *carry[:2], losses

    params, stats, losses = train(variables["params"], variables["batch_stats"])
    assert losses[-1] < losses[0]
    kernel = np.asarray(params["layer"]["kernel"])
    moved = np.linalg.norm(kernel - np.asarray(variables["params"]["layer"]["kernel"]))
    assert moved > 0.1 * np.linalg.norm(kernel)
    # sigma is that of the weights before the last step, which moved them by less than 1 %.
    np.testing.assert_allclose(stats["kernel_sigma"], svd(kernel), rtol=0.01)
    # Evaluation goes by the weights as they are, not by a sigma that is a step behind.
    evaluate = jax.jit(functools.partial(model.apply, update_stats=False))
    y = evaluate({"params": params, "batch_stats": stats}, np.eye(6, dtype=np.float32))
    np.testing.assert_allclose(
        svd(np.asarray(y) - np.asarray(params["layer"]["bias"])), 1, rtol=1e-3
    )
