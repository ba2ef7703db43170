"""DecorrelatedBatchNorm as a module: state, modes and transformations."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
import jaxnorm.linen as jnn
from tests.whitening import correlated, zca

KEY = jax.random.key(0)
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)


def test_thirty_steps_and_evaluation_against_a_recurrence(rng):
    mix, shift = rng.normal(size=(6, 6)) / 3 + np.eye(6), rng.normal(size=6)
    batches = [(rng.normal(size=(4, 5, 6)) @ mix + shift).astype(np.float32) for _ in range(30)]
    for unbiased in (True, False):
        norm = jnn.DecorrelatedBatchNorm(momentum=0.8, num_groups=2, unbiased=unbiased)
        variables = norm.init(KEY, batches[0], use_running_average=False)
        gamma, beta = (jnp.asarray(rng.normal(size=6), jnp.float32) for _ in range(2))
        params = {"gamma": gamma, "beta": beta}
        mean, projection = np.zeros(6), np.stack([np.eye(3)] * 2)
        np.testing.assert_array_equal(variables["batch_stats"]["mean"], mean)
        np.testing.assert_array_equal(variables["batch_stats"]["projection"], projection)
        factor = np.sqrt(19 / 20) if unbiased else 1.0

        @jax.jit
        def run(stats, batches, norm=norm, params=params):
            def step(stats, examples):
                y, updates = norm.apply(
                    {"params": params, "batch_stats": stats},
                    examples,
                    use_running_average=False,
                    mutable=["batch_stats"],
                )
                return updates["batch_stats"], (y, updates["batch_stats"])

            return jax.lax.scan(step, stats, batches)

        stats, (ys, history) = run(variables["batch_stats"], np.stack(batches))
        for i, batch in enumerate(batches):
            parts = [zca(p.reshape(20, 3)) for p in np.split(batch.astype(np.float64), 2, -1)]
            y = np.concatenate([p[0] for p in parts], -1).reshape(batch.shape)
            close(ys[i], y * np.asarray(gamma) + np.asarray(beta))
            mean = 0.8 * mean + 0.2 * np.concatenate([p[1] for p in parts])
            projection = 0.8 * projection + 0.2 * factor * np.stack([p[2] for p in parts])
            close(history["mean"][i], mean)
            close(history["projection"][i], projection)
        evaluate = functools.partial(norm.apply, {"params": params, "batch_stats": stats})
        x = batches[0]
        y = np.einsum("gij,bsgj->bsgi", projection, (x - mean).reshape(4, 5, 2, 3))
        y = y.reshape(x.shape) * np.asarray(gamma) + np.asarray(beta)
        close(evaluate(x, use_running_average=True), y)
        # The same for an example alone, and nothing is updated.
        close(evaluate(x[:1, :1], use_running_average=True), y[:1, :1])
        _, state = evaluate(x, use_running_average=True, mutable=["batch_stats"])
        jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], stats)


@pytest.mark.parametrize("method", ["zca", "iterative"])
def test_running_statistics_whiten_new_data(method, rng):
    mix = rng.normal(size=(4, 4)) / 2 + np.eye(4)
    norm = jnn.DecorrelatedBatchNorm(momentum=0.95, method=method)
    data = jnp.asarray(rng.normal(size=(100, 1024, 4)) @ mix + 3, jnp.float32)
    stats = norm.init(KEY, data[0], use_running_average=True)["batch_stats"]
    params = {"gamma": jnp.ones(4), "beta": jnp.zeros(4)}

    @jax.jit
    def train(stats):
        def step(stats, x):
            _, updates = norm.apply(
                {"params": params, "batch_stats": stats},
                x,
                use_running_average=False,
                mutable=["batch_stats"],
            )
            return updates["batch_stats"], None

        return jax.lax.scan(step, stats, data)[0]

    variables = {"params": params, "batch_stats": train(stats)}
    x = jnp.asarray(rng.normal(size=(20000, 4)) @ mix + 3, jnp.float32)
    y = norm.apply(variables, x, use_running_average=True)
    # The standard errors of a variance, sqrt(2 / n), are 0.007 over the 40 batches that count in
    # effect and 0.01 over the new data; the mean of inverse roots is 0.005 above their inverse.
    np.testing.assert_allclose(np.cov(np.asarray(y).T), np.eye(4), atol=0.05)
    np.testing.assert_allclose(np.mean(y, 0), 0, atol=0.05)


def test_masks_and_batches_without_examples(rng):
    x = correlated(rng, 6, 10, 4).astype(np.float32)
    mask = rng.random((6, 10, 1)) < 0.7
    norm = jnn.DecorrelatedBatchNorm(use_running_average=False)
    variables = norm.init(KEY, x)

    @jax.jit
    def train(variables, x, mask):
        return norm.apply(variables, x, mask=mask, mutable=["batch_stats"])

    y, updates = train(variables, np.where(mask, x, np.nan), mask)
    packed = x[mask[..., 0]]
    z, same = norm.apply(variables, packed, mutable=["batch_stats"])
    close(np.asarray(y)[mask[..., 0]], z)
    jax.tree.map(close, updates, same)
    variables = {**variables, **updates}
    y, updates = train(variables, np.full_like(x, np.nan), mask & False)
    assert not np.any(y)
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])


def test_traced_mode(rng):
    x = jnp.asarray(correlated(rng, 20, 4), jnp.float32)
    norm = jnn.DecorrelatedBatchNorm(momentum=0.5)
    variables = norm.init(KEY, x, use_running_average=True)
    _, updates = norm.apply(variables, x + 1, use_running_average=False, mutable=["batch_stats"])
    variables |= updates

    @jax.jit
    def apply(evaluate):
        return norm.apply(variables, x, use_running_average=evaluate, mutable=["batch_stats"])

    for evaluate in (False, True):
        expected = norm.apply(variables, x, use_running_average=evaluate, mutable=["batch_stats"])
        jax.tree.map(close, apply(evaluate), expected)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        # An epsilon that keeps the random layers well conditioned: float32 is compared below.
        norm = jnn.DecorrelatedBatchNorm(
            use_running_average=not train, momentum=0.5, epsilon=0.1, name="norm"
        )
        return norm(nn.Dense(4)(x)), None


def test_remat_scan_and_vmap(rng):
    x = jnp.asarray(rng.normal(size=(20, 4)), jnp.float32)
    layers = nn.scan(
        nn.remat(Block, static_argnums=(2,)),
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=2,
    )()
    variables = layers.init(KEY, x, True)

    @jax.jit
    def gradient(params):
        def loss(params):
            (y, _), updates = layers.apply(
                {"params": params, "batch_stats": variables["batch_stats"]},
                x,
                True,
                mutable=["batch_stats"],
            )
            return jnp.sum(jnp.sin(y)), updates

        return jax.grad(loss, has_aux=True)(params)

    gradients, updates = gradient(variables["params"])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    y = x
    for i in range(2):
        one = jax.tree.map(lambda v, i=i: v[i], variables)
        (y, _), state = Block().apply(one, y, True, mutable=["batch_stats"])
        # Updated once, remat or not.
        jax.tree.map(lambda all_, one, i=i: close(all_[i], one), updates, state)
    members = nn.vmap(
        Block,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        in_axes=(0, None),
    )()
    (y, _), state = members.apply(variables, jnp.stack([x, 2 * x]), True, mutable=["batch_stats"])
    one = jax.tree.map(lambda v: v[1], variables)
    (z, _), expected = Block().apply(one, 2 * x, True, mutable=["batch_stats"])
    close(y[1], z)
    jax.tree.map(lambda all_, one: close(all_[1], one), state, expected)


def test_synchronised_in_vmap_with_a_name(rng):
    x = jnp.asarray(correlated(rng, 4, 10, 4), jnp.float32)
    norm = jnn.DecorrelatedBatchNorm(use_running_average=False, axis_name="d")
    variables = norm.init(KEY, x[0])
    apply = functools.partial(norm.apply, variables, mutable=["batch_stats"])
    y, updates = jax.vmap(apply, axis_name="d")(x)
    alone = jnn.DecorrelatedBatchNorm(use_running_average=False)
    z, expected = alone.apply(variables, x.reshape(40, 4), mutable=["batch_stats"])
    close(y.reshape(40, 4), z)
    jax.tree.map(lambda all_, one: close(all_[2], one), updates, expected)


def test_options_dtypes_and_call_time_parameters(rng):
    x = jnp.asarray(correlated(rng, 5, 6, 3, 4), jnp.bfloat16)
    norm = jnn.DecorrelatedBatchNorm(
        feature_axes=1, num_groups=3, dtype=jnp.float32, use_gamma=False, use_running_average=False
    )
    variables = norm.init(KEY, x)
    shapes = jax.tree.map(jnp.shape, variables)
    assert shapes == {
        "params": {"beta": (6,)},
        "batch_stats": {"mean": (6,), "projection": (3, 2, 2)},
    }
    gamma = jnp.asarray(rng.normal(size=6), jnp.bfloat16)
    y, state = norm.apply(variables, x, gamma=gamma, mutable=["batch_stats"])
    expected, _ = jaxnorm.whiten(
        x, gamma, axis=(0, 2, 3), feature_axes=1, num_groups=3, dtype=jnp.float32
    )
    close(y, expected)
    assert y.dtype == jnp.float32
    assert {v.dtype for v in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    # Each example by itself: the axes that are neither pooled nor of units stay.
    norm = jnn.DecorrelatedBatchNorm(reduction_axes=(1, 2), use_running_average=False)
    y, variables = norm.init_with_output(KEY, x.astype(jnp.float32))
    assert jax.tree.map(jnp.shape, variables["batch_stats"]) == {
        "mean": (5, 4),
        "projection": (5, 1, 4, 4),
    }
    close(y, jaxnorm.whiten(x.astype(jnp.float32), axis=(1, 2))[0])


def raises(error, message):
    # JAX may add a note on its own line.
    return pytest.raises(error, match="^" + re.escape(message) + "(\n|$)")


def test_errors():
    x = jnp.ones((5, 4))
    norm = jnn.DecorrelatedBatchNorm()
    with raises(
        ValueError,
        "DecorrelatedBatchNorm (top level) needs use_running_average: False in training, True in "
        "evaluation; set it as a field or pass it in the call.",
    ):
        norm.init(KEY, x)
    variables = norm.init(KEY, x, use_running_average=True)
    with raises(
        ValueError,
        "DecorrelatedBatchNorm (top level) updates its running statistics in training, but the "
        'collection batch_stats is not mutable: call apply(..., mutable=["batch_stats"]) and keep '
        "the updates it returns, or pass use_running_average=True to evaluate.",
    ):
        norm.apply(variables, x, use_running_average=False)
    with raises(
        ValueError,
        "DecorrelatedBatchNorm (top level) got one example in training: an input of shape (1, 4) "
        "pooled over axes (0,). One example has no covariance; use a larger batch, or "
        "use_running_average=True.",
    ):
        norm.apply(variables, x[:1], use_running_average=False, mutable=["batch_stats"])

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnn.DecorrelatedBatchNorm(axis_name="d", name="n")(x, use_running_average=False)

    with raises(
        NameError,
        "DecorrelatedBatchNorm n: axis_name='d' is not bound here. Call this inside jax.vmap or "
        "jax.shard_map with an axis of that name, or leave axis_name out: a jitted function of "
        "sharded arrays pools over all devices without it.",
    ):
        Model().apply(Model().init(KEY, x), x, mutable=["batch_stats"])
