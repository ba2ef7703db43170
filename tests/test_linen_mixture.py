"""Modules with state: running statistics, streams, populations, and what is undone."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
import jaxnorm.linen as jnn
from jaxnorm import tools

KEY = jax.random.key(0)
close = functools.partial(chex.assert_trees_all_close, atol=4e-6, rtol=4e-6)

MIXTURES = {
    "evo_norm_b0": (
        jnn.EvoNormB0,
        lambda x, m, **o: jaxnorm.evo_norm_b0(
            x, axis=(0, 1, 2), var=None if m is None else m.var, **o
        ),
    ),
    "switchable_norm": (
        jnn.SwitchableNorm,
        lambda x, m, **o: jaxnorm.switchable_norm(
            x, jnp.ones(3), jnp.ones(3), batch_moments=m, **o
        ),
    ),
    "batch_instance_norm": (
        jnn.BatchInstanceNorm,
        lambda x, m, **o: jaxnorm.batch_instance_norm(x, 1.0, batch_moments=m, **o),
    ),
}


def draw(rng, *shape):
    return jnp.asarray(rng.normal(0.5, 2, shape), jnp.float32)


@pytest.mark.parametrize("name", MIXTURES)
def test_training_moves_the_running_statistics_and_evaluation_uses_them(name, rng):
    make, function = MIXTURES[name]
    module, x = make(momentum=0.5), draw(rng, 4, 3, 2, 8)
    mask = jnp.asarray(rng.random((4, 3, 2, 1)) < 0.8)
    start = module.init(KEY, x, use_running_average=True)
    train = functools.partial(module.apply, use_running_average=False, mutable=["batch_stats"])
    y, new = train(start, x, mask=mask)
    expected, batch = function(x, None, mask=mask)
    close(y, expected)
    running = jaxnorm.Moments(jnp.zeros(8), jnp.ones(8), jnp.zeros(()))
    moved = jaxnorm.update_moments(running, batch, momentum=0.5)
    close(new["batch_stats"], {"mean": moved.mean, "var": moved.var})
    exact = jaxnorm.moments(x, (0, 1, 2), mask=mask)
    close(batch, exact._replace(count=batch.count))
    variables = {**start, **new}
    evaluated = module.apply(variables, x, use_running_average=True)
    close(evaluated, function(x, moved)[0])
    # A flag that is traced computes both.
    both = jax.jit(functools.partial(module.apply, mutable=["batch_stats"]))
    flagged, kept = both(variables, x, use_running_average=jnp.asarray(True))
    close(flagged, evaluated)
    close(kept["batch_stats"], new["batch_stats"])
    with pytest.raises(ValueError, match="the collection batch_stats is not mutable"):
        module.apply(start, x, use_running_average=False)
    with pytest.raises(ValueError, match="needs use_running_average: False in training"):
        module.apply(start, x)


@pytest.mark.parametrize("name", MIXTURES)
def test_batches_of_several_devices_pool(name, rng):
    make, function = MIXTURES[name]
    x, module = 1e3 + draw(rng, 2, 4, 3, 2, 8), make(axis_name="devices")
    mask = jnp.asarray(rng.random((2, 4, 3, 2, 1)) < 0.6).at[0, 1:].set(False)
    variables = module.init(KEY, x[0], use_running_average=True)
    apply = functools.partial(module.apply, use_running_average=False, mutable=["batch_stats"])
    y, new = jax.vmap(lambda x, m: apply(variables, x, mask=m), axis_name="devices")(x, mask)
    whole, batch = function(x.reshape(8, 3, 2, 8), None, mask=mask.reshape(8, 3, 2, 1))
    close(y.reshape(whole.shape), whole, atol=2e-5)
    for index in range(2):
        mean = new["batch_stats"]["mean"][index]
        close(mean, 0.01 * batch.mean)


def test_microbatches_accumulate_to_the_full_batch(rng):
    x, module = draw(rng, 6, 3, 2, 8), jnn.SwitchableNorm(use_running_average=False)
    variables = module.init(KEY, x)
    stats = tools.accumulate(variables["batch_stats"])
    for part in (x[:1], x[1:]):
        _, new = module.apply({**variables, "batch_stats": stats}, part, mutable=["batch_stats"])
        stats = new["batch_stats"]
    _, whole = module.apply(variables, x, mutable=["batch_stats"])
    close(tools.settle(stats, momentum=0.99), whole["batch_stats"])


def test_one_scale_for_all_is_rezero(rng):
    x = draw(rng, 2, 3)
    module = jnn.LayerScale(feature_axes=(), gamma_init=nn.initializers.zeros)
    variables = module.init(KEY, x)
    assert variables["params"]["gamma"].shape == ()
    assert not module.apply(variables, x).any()
    close(module.apply(variables, x, gamma=2.0), 2 * x)


def test_a_switch_to_one_norm_is_that_norm(rng):
    x, off = 1e4 + draw(rng, 4, 3, 2, 8), jnp.asarray([-1e9, -1e9, -1e9])
    norms = (
        jaxnorm.instance_norm(x, epsilon=1e-5),
        jaxnorm.layer_norm(x, axis=(1, 2, 3), epsilon=1e-5),
        jaxnorm.batch_norm(x, axis=(0, 1, 2))[0],
    )
    for i, expected in enumerate(norms):
        switch = off.at[i].set(0.0)
        close(jaxnorm.switchable_norm(x, switch, switch)[0], expected)
    close(jaxnorm.batch_instance_norm(x, -3.0)[0], norms[0])
    close(jaxnorm.batch_instance_norm(x, 3.0)[0], norms[2])


def test_batch_channel_norm(rng):
    x = draw(rng, 4, 3, 2, 8)
    module = jnn.BatchChannelNorm(num_groups=2, momentum=0.5)
    variables = module.init(KEY, x, use_running_average=True)
    train = {"use_running_average": False, "mutable": ["batch_stats"]}
    y, _ = module.apply(variables, x, **train)
    inner = jaxnorm.batch_norm(x, axis=(0, 1, 2))[0]
    close(y, jaxnorm.group_norm(inner, num_groups=2, epsilon=1e-5))
    # By estimates: what normalizes is what was there before.
    y, new = module.clone(estimate=True).apply(variables, x, **train)
    close(y, jaxnorm.group_norm(x / np.float32((1 + 1e-5) ** 0.5), num_groups=2, epsilon=1e-5))
    mean = new["batch_stats"]["batch"]["mean"]
    close(mean, 0.5 * x.mean((0, 1, 2)))


def test_graph_norm(rng):
    x, graphs = draw(rng, 6, 4), jnp.asarray([0, 1, 0, 1, 1, 0])
    module = jnn.GraphNorm(num_segments=2)
    params = {name: draw(rng, 4) for name in ("alpha", "gamma", "beta")}
    y = module.apply({"params": params}, x, graphs)
    close(y, jaxnorm.graph_norm(x, graphs, num_segments=2, **params))
    first = module.init(KEY, x, graphs)["params"]
    close(first, {"alpha": jnp.ones(4), "gamma": jnp.ones(4), "beta": jnp.zeros(4)})
    less = module.clone(use_alpha=False, use_beta=False)
    assert set(less.init(KEY, x, graphs)["params"]) == {"gamma"}


def test_gated_rms_norm(rng):
    x, gate = draw(rng, 3, 8), draw(rng, 3, 8)
    module = jnn.GatedRMSNorm(group_size=4, norm_before_gate=True, activation=jnp.tanh)
    y = module.apply({"params": {"gamma": gate[0]}}, x, gate)
    options = {"group_size": 4, "norm_before_gate": True, "activation": jnp.tanh}
    close(y, jaxnorm.gated_rms_norm(x, gate, gate[0], **options))
    close(module.init(KEY, x, gate)["params"], {"gamma": jnp.ones(8)})


def test_decoding_equals_the_whole_sequence(rng):
    x = draw(rng, 2, 6, 4)
    whole = jnn.CumulativeNorm(reduction_axes=(1, 2))
    variables = whole.init(KEY, x)
    expected = whole.apply(variables, x)
    module = whole.clone(decode=True)
    start = module.init(KEY, x[:, :1])
    assert not start["cache"]["count"].any()

    @jax.jit
    def step(cache, piece):
        y, new = module.apply({**variables, "cache": cache}, piece, mutable=["cache"])
        return new["cache"], y

    cache, first = step(start["cache"], x[:, :3])
    _, rest = jax.lax.scan(step, cache, jnp.moveaxis(x[:, 3:], 1, 0)[:, :, None])
    close(jnp.concatenate([first, jnp.moveaxis(rest[:, :, 0], 0, 1)], 1), expected)
    with pytest.raises(ValueError, match=r'mutable=\["cache"\]'):
        module.apply(start, x[:, :1])


def test_reversible_instance_norm(rng):
    x = 1e3 + draw(rng, 2, 6, 3)
    mask = jnp.asarray(rng.random((2, 6, 1)) < 0.8)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, mask=None):
            norm = jnn.RevIN()
            y = norm.normalize(x, mask=mask)
            return y, norm.denormalize(jnp.concatenate([y, y], 1))

    variables = Model().init(KEY, x)
    (name,) = variables["params"]
    params = {"gamma": 1 + 0.1 * draw(rng, 3), "beta": draw(rng, 3)}
    variables = {"params": {name: params}}
    run = jax.jit(Model().apply)
    for m in (None, mask):
        y, back = run(variables, x, m)
        options = {"axis": 1, "feature_axes": -1, "epsilon": 1e-5, "mask": m}
        close(y, jaxnorm.layer_norm(x, params["gamma"], params["beta"], **options))
        kept = np.ones(x.shape, bool) if m is None else np.broadcast_to(m, x.shape)
        np.testing.assert_allclose(np.asarray(back[:, 6:])[kept], np.asarray(x)[kept], rtol=1e-6)
    # Statistics are constants.
    gradient = jax.grad(lambda x: Model().apply(variables, x)[0].sum())(x)
    scale = params["gamma"].reshape(1, 1, 3) / jnp.sqrt(x.var(1, keepdims=True) + 1e-5)
    close(gradient, jnp.broadcast_to(scale, x.shape), rtol=1e-4)
    module, moments = jnn.RevIN(), jaxnorm.moments(x, axis=1)
    y = module.apply({"params": params}, x)
    back = module.apply({"params": params}, y, moments=moments, method="denormalize")
    np.testing.assert_allclose(back, x, rtol=1e-6)
    with pytest.raises(ValueError, match="call normalize before it"):
        module.apply({"params": params}, y, method="denormalize")


def test_input_norm_is_that_of_all_inputs(rng):
    module = jnn.InputNorm(epsilon=0.0, clip=2.0)
    parts = [1e3 + draw(rng, n, 2, 3) for n in (1, 5, 2, 8)]
    masks = [jnp.asarray(rng.random((n, 2, 1)) < 0.7) for n in (1, 5, 2, 8)]
    masks[0] = jnp.zeros_like(masks[0])
    variables = module.init(KEY, parts[0], use_running_average=True)
    # Before anything is seen it is the identity, but for the clipping.
    close(module.apply(variables, parts[1] / 1e3, use_running_average=True), parts[1] / 1e3)
    train = functools.partial(module.apply, use_running_average=False, mutable=["batch_stats"])
    for x, mask in zip(parts, masks, strict=True):
        y, variables = train(variables, x, mask=mask)
    whole = jaxnorm.moments(jnp.concatenate(parts), (0, 1), mask=jnp.concatenate(masks))
    stats = variables["batch_stats"]
    close(stats["population_mean"], whole.mean)
    close(stats["population_var"], whole.var, rtol=2e-5)
    np.testing.assert_array_equal(stats["population_count"], whole.count * jnp.ones(3))
    expected = jaxnorm.standardize(parts[-1], whole, axis=(0, 1), epsilon=0.0, mask=masks[-1])
    close(y, jnp.clip(expected, -2, 2), atol=1e-3)
    frozen = module.apply(variables, parts[1], use_running_average=True)
    assert jnp.abs(frozen).max() <= 2
    # The way back, where nothing was clipped.
    back = module.apply(variables, frozen, method="inverse")
    inside = np.asarray(jnp.abs(frozen) < 2)
    np.testing.assert_allclose(np.asarray(back)[inside], np.asarray(parts[1])[inside], rtol=1e-5)
    # No gradient goes through the statistics.
    slope = jax.grad(lambda x: train(variables, x)[0].sum())(parts[2])
    assert np.isfinite(slope).all() and (np.asarray(slope) >= 0).all()


def test_input_norm_on_several_devices(rng):
    module, x = jnn.InputNorm(axis_name="devices"), draw(rng, 4, 6, 3)
    mask = jnp.asarray(rng.random((4, 6, 1)) < 0.7).at[2].set(False)
    variables = module.init(KEY, x[0], use_running_average=True)
    apply = functools.partial(module.apply, use_running_average=False, mutable=["batch_stats"])
    _, new = jax.vmap(lambda x, m: apply(variables, x, mask=m), axis_name="devices")(x, mask)
    whole = jaxnorm.moments(x, (0, 1), mask=mask)
    for index in range(4):
        close(new["batch_stats"]["population_mean"][index], whole.mean)
        close(new["batch_stats"]["population_var"][index], whole.var)
