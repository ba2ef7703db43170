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
from tests.techniques.whitening import correlated, zca

pytestmark = pytest.mark.quickly_compiled

KEY = jax.random.key(0)
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)


def test_thirty_steps_and_evaluation_against_a_recurrence(rng):
    mix, shift = rng.normal(size=(6, 6)) / 3 + np.eye(6), rng.normal(size=6)
    batches = [(rng.normal(size=(4, 5, 6)) @ mix + shift).astype(np.float32) for _ in range(30)]
    for unbiased in (True, False):
        norm = jnn.DecorrelatedBatchNorm(momentum=0.8, num_groups=2, unbiased=unbiased)
        init = functools.partial(norm.init, use_running_average=False)
        variables = jax.jit(init)(KEY, batches[0])
        gamma, beta = rng.normal(size=(2, 6)).astype(np.float32)
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

            end, history = jax.lax.scan(step, stats, batches)
            evaluate = functools.partial(
                norm.apply, {"params": params, "batch_stats": end}, use_running_average=True
            )
            evaluated, state = evaluate(batches[0], mutable=["batch_stats"])
            return end, history, evaluated, evaluate(batches[0, :1, :1]), state["batch_stats"]

        stats, (ys, history), evaluated, alone, same = run(
            variables["batch_stats"], np.stack(batches)
        )
        for i, batch in enumerate(batches):
            parts = [zca(p.reshape(20, 3)) for p in np.split(batch.astype(np.float64), 2, -1)]
            y = np.concatenate([p[0] for p in parts], -1).reshape(batch.shape)
            close(ys[i], y * np.asarray(gamma) + np.asarray(beta))
            mean = 0.8 * mean + 0.2 * np.concatenate([p[1] for p in parts])
            projection = 0.8 * projection + 0.2 * factor * np.stack([p[2] for p in parts])
            close(history["mean"][i], mean)
            close(history["projection"][i], projection)
        x = batches[0]
        y = np.einsum("gij,bsgj->bsgi", projection, (x - mean).reshape(4, 5, 2, 3))
        y = y.reshape(x.shape) * np.asarray(gamma) + np.asarray(beta)
        close(evaluated, y)
        # The same for an example alone, and nothing is updated.
        close(alone, y[:1, :1])
        jax.tree.map(np.testing.assert_array_equal, same, stats)


@pytest.mark.parametrize("method", ["zca", "iterative"])
def test_running_statistics_whiten_new_data(method, rng):
    mix = rng.normal(size=(4, 4)) / 2 + np.eye(4)
    norm = jnn.DecorrelatedBatchNorm(momentum=0.95, method=method)
    data = (rng.normal(size=(100, 1024, 4)) @ mix + 3).astype(np.float32)
    new = (rng.normal(size=(20000, 4)) @ mix + 3).astype(np.float32)
    init = functools.partial(norm.init, use_running_average=True)
    stats = jax.jit(init)(KEY, data[0])["batch_stats"]
    params = {"gamma": np.ones(4, np.float32), "beta": np.zeros(4, np.float32)}

    @jax.jit
    def train(stats, data, new):
        def step(stats, x):
            _, updates = norm.apply(
                {"params": params, "batch_stats": stats},
                x,
                use_running_average=False,
                mutable=["batch_stats"],
            )
            return updates["batch_stats"], None

        variables = {"params": params, "batch_stats": jax.lax.scan(step, stats, data)[0]}
        return norm.apply(variables, new, use_running_average=True)

    y = train(stats, data, new)
    # The standard errors of a variance, sqrt(2 / n), are 0.007 over the 40 batches that count in
    # effect and 0.01 over the new data; the mean of inverse roots is 0.005 above their inverse.
    np.testing.assert_allclose(np.cov(np.asarray(y).T), np.eye(4), atol=0.05)
    np.testing.assert_allclose(np.mean(y, 0), 0, atol=0.05)


def test_masks_and_batches_without_examples(rng):
    x = correlated(rng, 6, 10, 4).astype(np.float32)
    mask = rng.random((6, 10, 1)) < 0.7
    norm = jnn.DecorrelatedBatchNorm(use_running_average=False)
    variables = jax.jit(norm.init)(KEY, x)

    @jax.jit
    def train(variables, x, mask):
        return norm.apply(variables, x, mask=mask, mutable=["batch_stats"])

    y, updates = train(variables, np.where(mask, x, np.nan), mask)
    packed = x[mask[..., 0]]
    z, same = train(variables, packed, None)
    close(np.asarray(y)[mask[..., 0]], z)
    jax.tree.map(close, updates, same)
    variables = {**variables, **updates}
    y, updates = train(variables, np.full_like(x, np.nan), mask & False)
    assert not np.any(y)
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])


def test_traced_mode(rng):
    x = correlated(rng, 20, 4).astype(np.float32)
    norm = jnn.DecorrelatedBatchNorm(momentum=0.5)
    init = functools.partial(norm.init, use_running_average=True)
    variables = jax.jit(init)(KEY, x)

    def apply(variables, x, evaluate):
        return norm.apply(variables, x, use_running_average=evaluate, mutable=["batch_stats"])

    known, traced = jax.jit(apply, static_argnums=2), jax.jit(apply)
    _, updates = known(variables, x + 1, False)
    variables |= updates
    for evaluate in (False, True):
        expected = known(variables, x, evaluate)
        jax.tree.map(close, traced(variables, x, evaluate), expected)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        # An epsilon that keeps the random layers well conditioned: float32 is compared below.
        norm = jnn.DecorrelatedBatchNorm(
            use_running_average=not train, momentum=0.5, epsilon=0.1, name="norm"
        )
        return norm(nn.Dense(4)(x)), None


def test_remat_scan_and_vmap(rng):
    x = rng.normal(size=(20, 4)).astype(np.float32)
    layers = nn.scan(
        nn.remat(Block, static_argnums=(2,)),
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=2,
    )()
    variables = jax.jit(layers.init, static_argnums=2)(KEY, x, True)
    variables = jax.tree.map(np.asarray, variables)

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

    @jax.jit
    def block(variables, x):
        return Block().apply(variables, x, True, mutable=["batch_stats"])

    y = x
    for i in range(2):
        one = jax.tree.map(lambda v, i=i: v[i], variables)
        (y, _), state = block(one, y)
        # Updated once, remat or not.
        jax.tree.map(lambda all_, one, i=i: close(all_[i], one), updates, state)
    members = nn.vmap(
        Block,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        in_axes=(0, None),
    )()
    apply = functools.partial(members.apply, mutable=["batch_stats"])
    (y, _), state = jax.jit(apply, static_argnums=2)(variables, np.stack([x, 2 * x]), True)
    one = jax.tree.map(lambda v: v[1], variables)
    (z, _), expected = block(one, 2 * x)
    close(y[1], z)
    jax.tree.map(lambda all_, one: close(all_[1], one), state, expected)


def test_synchronised_in_vmap_with_a_name(rng):
    x = correlated(rng, 4, 10, 4).astype(np.float32)
    norm = jnn.DecorrelatedBatchNorm(use_running_average=False, axis_name="d")
    variables = jax.jit(norm.init)(KEY, x[0])
    apply = functools.partial(norm.apply, variables, mutable=["batch_stats"])
    y, updates = jax.jit(jax.vmap(apply, axis_name="d"))(x)
    alone = jnn.DecorrelatedBatchNorm(use_running_average=False)
    alone = jax.jit(functools.partial(alone.apply, variables, mutable=["batch_stats"]))
    z, expected = alone(x.reshape(40, 4))
    close(y.reshape(40, 4), z)
    jax.tree.map(lambda all_, one: close(all_[2], one), updates, expected)


def test_options_dtypes_and_call_time_parameters(rng):
    x = correlated(rng, 5, 6, 3, 4).astype(jnp.bfloat16)
    norm = jnn.DecorrelatedBatchNorm(
        feature_axes=1, num_groups=3, dtype=jnp.float32, use_gamma=False, use_running_average=False
    )
    variables = jax.jit(norm.init)(KEY, x)
    shapes = jax.tree.map(jnp.shape, variables)
    assert shapes == {
        "params": {"beta": (6,)},
        "batch_stats": {"mean": (6,), "projection": (3, 2, 2)},
    }
    gamma = rng.normal(size=6).astype(jnp.bfloat16)
    where = {"axis": (0, 2, 3), "feature_axes": 1, "num_groups": 3}

    @jax.jit
    def both(variables, x, gamma):
        y, state = norm.apply(variables, x, gamma=gamma, mutable=["batch_stats"])
        return y, state, jaxnorm.whiten(x, gamma, **where, dtype=jnp.float32)[0]

    y, state, expected = both(variables, x, gamma)
    close(y, expected)
    assert y.dtype == jnp.float32
    assert {v.dtype for v in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    # Each example by itself: the axes that are neither pooled nor of units stay.
    norm = jnn.DecorrelatedBatchNorm(reduction_axes=(1, 2), use_running_average=False)

    @jax.jit
    def both_of_each(x):
        return *norm.init_with_output(KEY, x), jaxnorm.whiten(x, axis=(1, 2))[0]

    y, variables, expected = both_of_each(x.astype(np.float32))
    assert jax.tree.map(jnp.shape, variables["batch_stats"]) == {
        "mean": (5, 4),
        "projection": (5, 1, 4, 4),
    }
    close(y, expected)


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
