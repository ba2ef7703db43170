"""The Flax linen modules: parameters, statistics, lifted transformations, parity with flax."""

import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import jaxnorm
import jaxnorm.linen as jnn
from tests import reference

X_SHAPE = (4, 3, 2, 8)
KEY = jax.random.key(0)

close = functools.partial(chex.assert_trees_all_close, atol=8e-6, rtol=2e-6)

# Each module, the function behind it with the same arguments, and its flax.linen counterpart.
MODULES = {
    "batch": (
        functools.partial(jnn.BatchNorm, use_running_average=False),
        lambda *a, **k: jaxnorm.batch_norm(*a, axis=(0, 1, 2), **k)[0],
        functools.partial(nn.BatchNorm, use_running_average=False),
    ),
    "layer": (jnn.LayerNorm, jaxnorm.layer_norm, nn.LayerNorm),
    "layer_inner": (
        functools.partial(jnn.LayerNorm, reduction_axes=(1, 2, 3), feature_axes=(2, 3)),
        functools.partial(jaxnorm.layer_norm, axis=(1, 2, 3), feature_axes=(2, 3)),
        functools.partial(nn.LayerNorm, reduction_axes=(1, 2, 3), feature_axes=(2, 3)),
    ),
    "rms": (jnn.RMSNorm, jaxnorm.rms_norm, nn.RMSNorm),
    "group": (
        functools.partial(jnn.GroupNorm, num_groups=2),
        functools.partial(jaxnorm.group_norm, num_groups=2),
        functools.partial(nn.GroupNorm, num_groups=2),
    ),
    "group_size": (
        functools.partial(jnn.GroupNorm, group_size=2),
        functools.partial(jaxnorm.group_norm, group_size=2),
        functools.partial(nn.GroupNorm, num_groups=None, group_size=2),
    ),
    "instance": (jnn.InstanceNorm, jaxnorm.instance_norm, nn.InstanceNorm),
}

modules = pytest.mark.parametrize("name", MODULES)


def draw(rng, shape=X_SHAPE, dtype=jnp.float32):
    return jnp.asarray(rng.normal(0.5, 2, shape), dtype)


def randomized(variables, rng):
    """The same tree with random parameters."""
    params = jax.tree.map(lambda p: draw(rng, p.shape, p.dtype), variables["params"])
    return {**variables, "params": params}


def apply(module, variables, x, **given):
    """The result alone, whatever is mutable."""
    return module.apply(variables, x, mutable=["batch_stats"], **given)[0]


@modules
def test_module_equals_its_function(name, rng):
    make, function, _ = MODULES[name]
    x, mask = draw(rng), jnp.asarray(rng.random(X_SHAPE) < 0.8)
    variables = randomized(make().init(KEY, x), rng)
    gamma, beta = (variables["params"].get(p) for p in ("gamma", "beta"))
    assert gamma is not None and (beta is None) == (name == "rms")
    close(apply(make(), variables, x), function(x, gamma, beta))
    close(apply(make(), variables, x, mask=mask), function(x, gamma, beta, mask=mask))
    half = apply(make(dtype=jnp.bfloat16, epsilon=0.1), variables, x)
    chex.assert_trees_all_equal(half, function(x, gamma, beta, epsilon=0.1, dtype=jnp.bfloat16))


@modules
def test_parameters(name, rng):
    make, _, _ = MODULES[name]
    x = draw(rng, dtype=jnp.bfloat16)
    shape = (2, 8) if name == "layer_inner" else (8,)
    params = make(use_beta=True).init(KEY, x)["params"]
    chex.assert_trees_all_equal(params, {"gamma": jnp.ones(shape), "beta": jnp.zeros(shape)})
    assert apply(make(), make().init(KEY, x), x).dtype == jnp.bfloat16

    assert "params" not in make(use_gamma=False, use_beta=False).init(KEY, x)
    named = make(use_beta=True, param_names=("scale", "bias"), param_dtype=jnp.float16)
    params = named.init(KEY, x)["params"]
    assert {k: v.dtype for k, v in params.items()} == {"scale": jnp.float16, "bias": jnp.float16}
    chosen = make(gamma_init=nn.initializers.constant(2.0), use_beta=False).init(KEY, x)
    chex.assert_trees_all_equal(chosen["params"], {"gamma": jnp.full(shape, 2.0)})


@modules
def test_gamma_and_beta_in_the_call_replace_the_parameters(name, rng):
    make, function, _ = MODULES[name]
    x, gamma, beta = draw(rng), draw(rng, (4, 1, 1, 8)), draw(rng, (4, 3, 2, 1))
    variables = make().init(KEY, x, gamma=gamma, beta=beta)
    assert "params" not in variables
    close(apply(make(), variables, x, gamma=gamma, beta=beta), function(x, gamma, beta))
    # One of them alone: the other stays a parameter.
    variables = make(use_beta=True).init(KEY, x, gamma=gamma)
    assert set(variables["params"]) == {"beta"}


@modules
def test_equals_flax_linen_with_the_same_parameters(name, rng):
    make, _, theirs = MODULES[name]
    x = draw(rng)
    mask = jnp.asarray(rng.random(X_SHAPE) < 0.8)
    ours = make(param_names=("scale", "bias"))
    if name == "batch":
        ours = make(param_names=("scale", "bias"), unbiased=False)
    variables = randomized(theirs().init(KEY, x), rng)
    # flax's parameters and statistics are loaded unchanged.
    chex.assert_trees_all_equal_shapes_and_dtypes(ours.init(KEY, x), dict(variables))
    for given in ({}, {"mask": mask}):
        expected, state = theirs().apply(variables, x, mutable=["batch_stats"], **given)
        y, updates = ours.apply(variables, x, mutable=["batch_stats"], **given)
        if given:
            # What flax gives in masked slots is not zero.
            expected = jnp.where(mask, expected, 0)
        # flax.linen subtracts E[x]^2 from E[x^2], which loses a few bits.
        chex.assert_trees_all_close(y, expected, atol=5e-5, rtol=1e-5)
        chex.assert_trees_all_close(dict(updates), dict(state), atol=1e-5)

    def loss(module, params):
        return jnp.sum(jnp.sin(apply(module, {**variables, "params": params}, x)))

    gradients = [
        jax.grad(functools.partial(loss, m))(variables["params"]) for m in (ours, theirs())
    ]
    chex.assert_trees_all_close(*gradients, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("axes", [(-1, -2), (-2, -1), (2, 1), (1, -1)], ids=str)
def test_parameters_lie_as_in_flax_linen_whatever_the_order_of_axes(axes, rng):
    """On square features a checkpoint in another order would load silently transposed."""
    x = draw(rng, (2, 4, 4))
    theirs = nn.LayerNorm(reduction_axes=axes, feature_axes=axes)
    ours = jnn.LayerNorm(reduction_axes=axes, feature_axes=axes, param_names=("scale", "bias"))
    variables = randomized(theirs.init(KEY, x), rng)
    chex.assert_trees_all_close(
        ours.apply(variables, x), theirs.apply(variables, x), atol=5e-5, rtol=1e-5
    )
    wide = jax.eval_shape(ours.init, KEY, draw(rng, (2, 3, 4)))["params"]
    assert wide["scale"].shape == wide["bias"].shape == (3, 4)


def test_evaluation_equals_flax_linen(rng):
    x = draw(rng)
    theirs = nn.BatchNorm(use_running_average=True)
    variables = randomized(theirs.init(KEY, x), rng)
    stats = {"mean": draw(rng, (8,)), "var": jnp.abs(draw(rng, (8,)))}
    variables = {**variables, "batch_stats": stats}
    ours = jnn.BatchNorm(use_running_average=True, param_names=("scale", "bias"))
    close(ours.apply(variables, x), theirs.apply(variables, x), atol=3e-5)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("axes", [(0,), (0, 1)], ids=str)
def test_running_statistics_follow_the_recurrence(unbiased, axes, rng):
    module = jnn.BatchNorm(reduction_axes=axes, momentum=0.9, unbiased=unbiased)
    batches = rng.normal(rng.normal(size=(1, 1, 3)), 2, (30, 6, 4, 3)).astype(np.float32)
    variables = module.init(KEY, batches[0], use_running_average=False)

    @jax.jit
    def step(stats, x):
        variables = {"params": params, "batch_stats": stats}
        return module.apply(variables, x, use_running_average=False, mutable=["batch_stats"])

    params, stats = variables["params"], variables["batch_stats"]
    shape = stats["mean"].shape
    chex.assert_trees_all_equal(stats, {"mean": jnp.zeros(shape), "var": jnp.ones(shape)})
    start = np.zeros(shape), np.ones(shape)
    expected = reference.running_average(start, batches, axes, 0.9, unbiased)
    for batch, (mean, var) in zip(batches, expected, strict=True):
        _, updates = step(stats, batch)
        stats = updates["batch_stats"]
        np.testing.assert_allclose(stats["mean"], mean, atol=2e-6)
        np.testing.assert_allclose(stats["var"], var, atol=4e-6, rtol=2e-6)
    # Evaluation normalizes by them, and changes nothing.
    x = batches[0]
    y, updates = module.apply(
        {"params": params, "batch_stats": stats},
        x,
        use_running_average=True,
        mutable=["batch_stats"],
    )
    wide = (x - np.expand_dims(mean, axes)) / np.sqrt(np.expand_dims(var, axes) + 1e-5)
    np.testing.assert_allclose(y, wide, atol=8e-6)
    chex.assert_trees_all_equal(updates.get("batch_stats", stats), stats)


def test_initialization_is_not_a_training_step(rng):
    module = jnn.BatchNorm(use_running_average=False)
    stats = module.init(KEY, draw(rng, (16, 3)) + 100)["batch_stats"]
    chex.assert_trees_all_equal(stats, {"mean": jnp.zeros(3), "var": jnp.ones(3)})


def test_an_all_masked_batch_changes_nothing(rng):
    module = jnn.BatchNorm(use_running_average=False)
    x = jnp.full((4, 3), jnp.nan)
    variables = module.init(KEY, draw(rng, (4, 3)))
    y, updates = module.apply(variables, x, mask=jnp.zeros((4, 1), bool), mutable=["batch_stats"])
    chex.assert_trees_all_equal(y, jnp.zeros((4, 3)))
    chex.assert_trees_all_equal(dict(updates), {"batch_stats": variables["batch_stats"]})


def test_statistics_keep_their_dtype(rng):
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        module = jnn.BatchNorm(use_running_average=False, dtype=dtype, param_dtype=dtype)
        variables = module.init(KEY, draw(rng, (4, 3), dtype))
        _, updates = module.apply(variables, draw(rng, (4, 3), dtype), mutable=["batch_stats"])
        assert {v.dtype for v in jax.tree.leaves(updates)} == {jnp.dtype("float32")}


class Net(nn.Module):
    """Every normalization in one compact model."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        x = nn.relu(jnn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = jnn.GroupNorm(num_groups=2)(nn.Conv(8, (3, 3))(x))
        x = jnn.InstanceNorm()(x) + jnn.RMSNorm()(x)
        return nn.Dense(3)(jnn.LayerNorm()(x.mean((1, 2))))


class SetupNet(nn.Module):
    """The same with submodules made in setup."""

    def setup(self):
        self.dense, self.head = nn.Dense(8), nn.Dense(3)
        self.norms = [jnn.BatchNorm(), jnn.LayerNorm(), jnn.RMSNorm(gamma_offset=1.0)]

    def __call__(self, x, train):
        batch, layer, rms = self.norms
        x = batch(self.dense(x), use_running_average=not train)
        return self.head(rms(layer(x)))


def test_remat_changes_nothing(rng):
    x = draw(rng, (4, 6))

    class Block(nn.Module):
        norm: type

        @nn.compact
        def __call__(self, x):
            x = self.norm(use_running_average=False, momentum=0.5, name="batch")(x)
            return jnp.tanh(jnn.LayerNorm()(x))

    plain, remat = Block(jnn.BatchNorm), nn.remat(Block)(jnn.BatchNorm)
    variables = plain.init(KEY, x)
    chex.assert_trees_all_equal(remat.init(KEY, x), variables)

    def run(module):
        def loss(params):
            y, updates = module.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return jnp.sum(y**3), updates

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    # The statistics, too, have moved once.
    close(run(remat), run(plain))


def test_scan_over_layers(rng):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            x = jnn.BatchNorm(use_running_average=False)(nn.Dense(6)(x))
            return jnn.LayerNorm()(x) + jnn.RMSNorm()(x), None

    stack = nn.scan(
        Layer,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        length=3,
    )()
    x = draw(rng, (4, 6))
    variables = stack.init(KEY, x, None)
    assert variables["params"]["LayerNorm_0"]["gamma"].shape == (3, 6)
    (y, _), updates = stack.apply(variables, x, None, mutable=["batch_stats"])
    expected, stats = x, []
    for i in range(3):
        layer = jax.tree.map(lambda v, i=i: v[i], variables)
        (expected, _), update = Layer().apply(layer, expected, None, mutable=["batch_stats"])
        stats.append(update)
    close(y, expected)
    close(dict(updates), jax.tree.map(lambda *s: jnp.stack(s), *map(dict, stats)))


def test_vmap_over_stacked_modules(rng):
    x = draw(rng, (2, 4, 6))
    for make in (jnn.LayerNorm, functools.partial(jnn.BatchNorm, use_running_average=False)):
        module = make()
        mapped = nn.vmap(
            type(module),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
        )(**{k: v for k, v in vars(module).items() if k == "use_running_average"})
        variables = randomized(mapped.init(KEY, x), rng)
        y, updates = mapped.apply(variables, x, mutable=["batch_stats"])
        for i in range(2):
            one = jax.tree.map(lambda v, i=i: v[i], variables)
            expected, update = module.apply(one, x[i], mutable=["batch_stats"])
            close(y[i], expected)
            close(jax.tree.map(lambda v, i=i: v[i], dict(updates)), dict(update))


def test_tabulate_shows_parameters_and_statistics(rng):
    table = nn.tabulate(Net(), KEY, console_kwargs={"width": 200})(draw(rng, (2, 6, 6, 1)), False)
    table = re.sub(r"\x1b\[[0-9;]*m", "", table)
    for word in ("BatchNorm_0", "gamma: float32[8]", "batch_stats", "var: float32[8]", "RMSNorm_0"):
        assert word in table


def test_partitioned_initializers(rng):
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    module = jnn.LayerNorm(
        gamma_init=nn.with_partitioning(nn.initializers.ones, ("model",)),
        beta_init=nn.with_partitioning(nn.initializers.zeros, ("model",)),
    )
    x = draw(rng, (4, 16))
    boxed = jax.eval_shape(module.init, KEY, x)
    assert nn.get_partition_spec(boxed)["params"]["gamma"] == jax.sharding.PartitionSpec("model")
    shardings = nn.get_sharding(boxed, mesh)
    variables = jax.jit(module.init, out_shardings=shardings)(KEY, x)
    gamma = nn.unbox(variables)["params"]["gamma"]
    assert gamma.sharding.spec == jax.sharding.PartitionSpec("model")
    close(module.apply(variables, x), jaxnorm.layer_norm(x))


@modules
def test_other_transformations(name, rng):
    make, _, _ = MODULES[name]
    x = draw(rng)
    variables = make().init(KEY, x)
    shapes = jax.eval_shape(make().init, KEY, x)
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, variables)
    y = apply(make(), variables, x)
    close(jax.jit(functools.partial(apply, make()))(variables, x), y)
    stacked = jnp.stack([x, 2 * x])
    each = jax.vmap(functools.partial(apply, make()), in_axes=(None, 0))(variables, stacked)
    close(each[0], y)
