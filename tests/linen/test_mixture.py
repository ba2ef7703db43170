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
from tests.support.jaxpr_text import initialized, program

pytestmark = pytest.mark.quickly_compiled

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
    mask = rng.random((4, 3, 2, 1)) < 0.8
    start = initialized(module, x, use_running_average=True)
    zero, one = np.zeros(8, np.float32), np.ones(8, np.float32)
    train = functools.partial(module.apply, use_running_average=False, mutable=["batch_stats"])

    @jax.jit
    def run(start, x):
        y, new = train(start, x, mask=mask)
        expected, batch = function(x, None, mask=mask)
        running = jaxnorm.Moments(zero, one, jnp.zeros(()))
        moved = jaxnorm.update_moments(running, batch, momentum=0.5)
        exact = jaxnorm.moments(x, (0, 1, 2), mask=mask)
        variables = {**start, **new}
        evaluated = module.apply(variables, x, use_running_average=True)
        pairs = (
            (y, expected),
            (new["batch_stats"], {"mean": moved.mean, "var": moved.var}),
            (batch, exact._replace(count=batch.count)),
            (evaluated, function(x, moved)[0]),
        )
        return variables, evaluated, pairs

    variables, evaluated, pairs = run(start, x)
    for mine, expected in pairs:
        close(mine, expected)
    # A flag that is traced computes both.
    both = jax.jit(functools.partial(module.apply, mutable=["batch_stats"]))
    flagged, kept = both(variables, x, use_running_average=jnp.asarray(True))
    close(flagged, evaluated)
    close(kept["batch_stats"], variables["batch_stats"])
    with pytest.raises(ValueError, match="the collection batch_stats is not mutable"):
        module.apply(start, x, use_running_average=False)
    with pytest.raises(ValueError, match="needs use_running_average: False in training"):
        module.apply(start, x)


@pytest.mark.parametrize("name", MIXTURES)
def test_batches_of_several_devices_pool(name, rng):
    make, function = MIXTURES[name]
    x, module = 1e3 + np.asarray(draw(rng, 2, 4, 3, 2, 8)), make(axis_name="devices")
    mask = rng.random((2, 4, 3, 2, 1)) < 0.6
    mask[0, 1:] = False
    variables = initialized(module, x[0], use_running_average=True)
    apply = functools.partial(module.apply, use_running_average=False, mutable=["batch_stats"])

    @jax.jit
    def run(x, mask):
        spread = jax.vmap(lambda x, m: apply(variables, x, mask=m), axis_name="devices")
        return spread(x, mask), function(x.reshape(8, 3, 2, 8), None, mask=mask.reshape(8, 3, 2, 1))

    (y, new), (whole, batch) = jax.device_get(run(x, mask))
    close(y.reshape(whole.shape), whole, atol=2e-5)
    for mean in new["batch_stats"]["mean"]:
        close(mean, np.float32(0.01) * batch.mean)


def test_microbatches_accumulate_to_the_full_batch(rng):
    x, module = draw(rng, 6, 3, 2, 8), jnn.SwitchableNorm(use_running_average=False)
    variables = initialized(module, x)

    @jax.jit
    def both(x):
        def moved(stats, x):
            given = {**variables, "batch_stats": stats}
            return module.apply(given, x, mutable=["batch_stats"])[1]["batch_stats"]

        stats = tools.accumulate(variables["batch_stats"])
        for part in (x[:1], x[1:]):
            stats = moved(stats, part)
        return tools.settle(stats, momentum=0.99), moved(variables["batch_stats"], x)

    close(*both(x))


def test_one_scale_for_all_is_rezero(rng):
    x = draw(rng, 2, 3)
    module = jnn.LayerScale(feature_axes=(), gamma_init=nn.initializers.zeros)
    variables = module.init(KEY, x)
    assert variables["params"]["gamma"].shape == ()
    assert not module.apply(variables, x).any()
    close(module.apply(variables, x, gamma=2.0), 2 * x)


def test_a_switch_to_one_norm_is_that_norm(rng):
    x = 1e4 + np.asarray(draw(rng, 4, 3, 2, 8))

    @jax.jit
    def run(x):
        norms = [
            jaxnorm.instance_norm(x, epsilon=1e-5),
            jaxnorm.layer_norm(x, axis=(1, 2, 3), epsilon=1e-5),
            jaxnorm.batch_norm(x, axis=(0, 1, 2))[0],
        ]
        switches = jnp.where(np.eye(3, dtype=bool), 0.0, -1e9)
        mixed = jax.vmap(lambda switch: jaxnorm.switchable_norm(x, switch, switch)[0])(switches)
        ends = [jaxnorm.batch_instance_norm(x, rho)[0] for rho in (-3.0, 3.0)]
        return [*mixed, *ends], [*norms, norms[0], norms[2]]

    close(*run(x))


def test_batch_channel_norm(rng):
    x = draw(rng, 4, 3, 2, 8)
    module = jnn.BatchChannelNorm(num_groups=2, momentum=0.5)
    variables = initialized(module, x, use_running_average=True)

    @jax.jit
    def run(x):
        train = {"use_running_average": False, "mutable": ["batch_stats"]}
        y, _ = module.apply(variables, x, **train)
        inner = jaxnorm.batch_norm(x, axis=(0, 1, 2))[0]
        # By estimates: what normalizes is what was there before.
        z, new = module.clone(estimate=True).apply(variables, x, **train)
        scaled = x / np.float32((1 + 1e-5) ** 0.5)
        pairs = [
            (y, jaxnorm.group_norm(inner, num_groups=2, epsilon=1e-5)),
            (z, jaxnorm.group_norm(scaled, num_groups=2, epsilon=1e-5)),
        ]
        return pairs, new["batch_stats"]["batch"]["mean"]

    pairs, mean = run(x)
    for mine, expected in pairs:
        close(mine, expected)
    close(mean, 0.5 * np.asarray(x).mean((0, 1, 2)))


def test_graph_norm(rng):
    x, graphs = draw(rng, 6, 4), jnp.asarray([0, 1, 0, 1, 1, 0])
    module = jnn.GraphNorm(num_segments=2)
    params = {name: draw(rng, 4) for name in ("alpha", "gamma", "beta")}
    mine = program(lambda p, x: module.apply({"params": p}, x, graphs), params, x)
    assert mine == program(
        lambda p, x: jaxnorm.graph_norm(x, graphs, num_segments=2, **p), params, x
    )
    first = initialized(module, x, graphs)["params"]
    close(first, {"alpha": np.ones(4), "gamma": np.ones(4), "beta": np.zeros(4)})
    less = module.clone(use_alpha=False, use_beta=False)
    assert set(jax.eval_shape(less.init, KEY, x, graphs)["params"]) == {"gamma"}


def test_gated_rms_norm(rng):
    x, gate = draw(rng, 3, 8), draw(rng, 3, 8)
    module = jnn.GatedRMSNorm(group_size=4, norm_before_gate=True, activation=jnp.tanh)
    gamma = draw(rng, 8)
    options = {"group_size": 4, "norm_before_gate": True, "activation": jnp.tanh}
    mine = program(lambda *a: module.apply({"params": {"gamma": a[2]}}, *a[:2]), x, gate, gamma)
    same = functools.partial(jaxnorm.gated_rms_norm, **options)
    assert mine == program(same, x, gate, gamma)
    close(initialized(module, x, gate)["params"], {"gamma": np.ones(8)})


def test_decoding_equals_the_whole_sequence(rng):
    x = draw(rng, 2, 6, 4)
    whole = jnn.CumulativeNorm(reduction_axes=(1, 2))
    variables = initialized(whole, x)
    expected = jax.jit(whole.apply)(variables, x)
    module = whole.clone(decode=True)
    start = initialized(module, x[:, :1])
    assert not np.any(start["cache"]["count"])

    @jax.jit
    def step(cache, piece):
        y, new = module.apply({**variables, "cache": cache}, piece, mutable=["cache"])
        return new["cache"], y

    x = np.asarray(x)
    cache, first = step(start["cache"], x[:, :3])
    pieces = [first]
    for at in range(3, 6):
        cache, piece = step(cache, x[:, at : at + 1])
        pieces.append(piece)
    close(np.concatenate(pieces, 1), expected)
    with pytest.raises(ValueError, match=r'mutable=\["cache"\]'):
        module.apply(start, x[:, :1])


def test_reversible_instance_norm(rng):
    x = 1e3 + np.asarray(draw(rng, 2, 6, 3))
    mask = rng.random((2, 6, 1)) < 0.8

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, mask=None):
            norm = jnn.RevIN()
            y = norm.normalize(x, mask=mask)
            return y, norm.denormalize(jnp.concatenate([y, y], 1))

    (name,) = jax.eval_shape(Model().init, KEY, x)["params"]
    params = {"gamma": 1 + 0.1 * np.asarray(draw(rng, 3)), "beta": draw(rng, 3)}
    variables = {"params": {name: params}}

    @jax.jit
    def run(variables, x, mask=None):
        options = {"axis": 1, "feature_axes": -1, "epsilon": 1e-5, "mask": mask}
        expected = jaxnorm.layer_norm(x, params["gamma"], params["beta"], **options)
        return *Model().apply(variables, x, mask), expected

    for m in (None, mask):
        y, back, expected = jax.device_get(run(variables, x, m))
        close(y, expected)
        kept = np.ones(x.shape, bool) if m is None else np.broadcast_to(m, x.shape)
        np.testing.assert_allclose(back[:, 6:][kept], x[kept], rtol=1e-6)

    @jax.jit
    def more(x):
        # Statistics are constants.
        gradient = jax.grad(lambda x: Model().apply(variables, x)[0].sum())(x)
        module, moments = jnn.RevIN(), jaxnorm.moments(x, axis=1)
        y = module.apply({"params": params}, x)
        given = {"moments": moments, "method": "denormalize"}
        return gradient, module.apply({"params": params}, y, **given)

    gradient, back = more(x)
    scale = params["gamma"] / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    close(gradient, np.broadcast_to(scale, x.shape).astype(np.float32), rtol=1e-4)
    np.testing.assert_allclose(back, x, rtol=1e-6)
    module = jnn.RevIN()
    with pytest.raises(ValueError, match="call normalize before it"):
        module.apply({"params": params}, x, method="denormalize")
    bound = module.bind({"params": params})
    jax.jit(bound.normalize)(x)
    with pytest.raises(ValueError, match="call normalize before it"):
        bound.denormalize(x)


def test_input_norm_is_that_of_all_inputs(rng):
    module = jnn.InputNorm(epsilon=0.0, clip=2.0)
    # The first all masked.
    sizes = (1, 5, 1, 5)
    parts = [1e3 + np.asarray(draw(rng, n, 2, 3)) for n in sizes]
    masks = [rng.random((n, 2, 1)) < 0.7 for n in sizes]
    masks[0] = np.zeros_like(masks[0])
    variables = initialized(module, parts[0], use_running_average=True)
    evaluate = jax.jit(functools.partial(module.apply, use_running_average=True))
    # Before anything is seen it is the identity, but for the clipping.
    close(evaluate(variables, parts[1] / 1000), parts[1] / 1000)
    train = functools.partial(module.apply, use_running_average=False, mutable=["batch_stats"])
    step = jax.jit(train)
    for x, mask in zip(parts, masks, strict=True):
        y, variables = step(variables, x, mask=mask)

    @jax.jit
    def whole_of(parts, masks):
        whole = jaxnorm.moments(jnp.concatenate(parts), (0, 1), mask=jnp.concatenate(masks))
        options = {"axis": (0, 1), "epsilon": 0.0, "mask": masks[-1]}
        return whole, jnp.clip(jaxnorm.standardize(parts[-1], whole, **options), -2, 2)

    whole, expected = whole_of(parts, masks)
    stats = variables["batch_stats"]
    close(stats["population_mean"], whole.mean)
    close(stats["population_var"], whole.var, rtol=2e-5)
    count = np.float32(sum(mask.sum() for mask in masks))
    np.testing.assert_array_equal(stats["population_count"], np.full(3, count))
    close(y, expected, atol=1e-3)
    frozen = np.asarray(evaluate(variables, parts[1]))
    assert np.abs(frozen).max() <= 2
    # The way back, where nothing was clipped.
    back = jax.jit(functools.partial(module.apply, method="inverse"))(variables, frozen)
    inside = np.abs(frozen) < 2
    assert inside.any()
    np.testing.assert_allclose(np.asarray(back)[inside], parts[1][inside], rtol=1e-5)
    # No gradient goes through the statistics.
    slope = np.asarray(jax.jit(jax.grad(lambda x: train(variables, x)[0].sum()))(parts[1]))
    assert np.isfinite(slope).all() and (slope >= 0).all()


def test_input_norm_on_several_devices(rng):
    module, x = jnn.InputNorm(axis_name="devices"), draw(rng, 4, 6, 3)
    mask = rng.random((4, 6, 1)) < 0.7
    mask[2] = False
    variables = initialized(module, x[0], use_running_average=True)
    apply = functools.partial(module.apply, use_running_average=False, mutable=["batch_stats"])

    @jax.jit
    def run(x, mask):
        spread = jax.vmap(lambda x, m: apply(variables, x, mask=m)[1], axis_name="devices")
        return spread(x, mask), jaxnorm.moments(x, (0, 1), mask=mask)

    new, whole = jax.device_get(run(x, mask))
    for index in range(4):
        close(new["batch_stats"]["population_mean"][index], whole.mean)
        close(new["batch_stats"]["population_var"][index], whole.var)
