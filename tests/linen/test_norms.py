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
from tests.support import reference
from tests.support.jaxpr_text import drawn, program

pytestmark = pytest.mark.quickly_compiled

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
    """The same tree with random parameters; of shapes alone, all else starts at 1."""
    params = jax.tree.map(lambda p: draw(rng, p.shape, p.dtype), variables["params"])
    rest = jax.tree.map(lambda v: np.ones(v.shape, v.dtype), {**variables, "params": {}})
    return {**rest, "params": params}


def apply(module, variables, x, **given):
    """The result alone, whatever is mutable."""
    return module.apply(variables, x, mutable=["batch_stats"], **given)[0]


def call_both(name, rng):
    """The module and its function, of parameters, the input and what else is given."""
    make, function, _ = MODULES[name]
    variables = randomized(jax.eval_shape(make().init, KEY, draw(rng)), rng)
    params = variables.pop("params")

    def call(params, x, given, options):
        return apply(make(**options), {**variables, "params": params}, x, **given)

    def same(params, x, given, options):
        return function(x, **{**params, **given}, **options)

    return params, call, same


@modules
def test_module_equals_its_function(name, rng):
    params, call, same = call_both(name, rng)
    assert set(params) == {"gamma", "beta"} - ({"beta"} if name == "rms" else set())
    x, mask = draw(rng), rng.random(X_SHAPE) < 0.8
    half = {"dtype": jnp.bfloat16, "epsilon": 0.1}
    # Parameters of the call are in place of the module's.
    gamma, beta = draw(rng, (4, 1, 1, 8)), draw(rng, (4, 3, 2, 1))
    cases = (params, {}, {}), (params, {"mask": mask}, {}), (params, {}, half)
    cases += (({}, {"gamma": gamma, "beta": beta}, {}),)
    if name != "batch":
        for params, given, options in cases:
            programs = [
                program(functools.partial(f, options=options), params, x, given)
                for f in (call, same)
            ]
            assert programs[0] == programs[1]
        return
    # It takes its sums about its running mean.
    found = jax.jit(lambda x: [[f(p, x, g, o) for p, g, o in cases] for f in (call, same)])(x)
    (*wide, half, given), (*expected, half_expected, given_expected) = found
    close((wide, given), (expected, given_expected))
    chex.assert_trees_all_equal(half, half_expected)


@modules
def test_parameters(name, rng):
    make, _, _ = MODULES[name]
    x = draw(rng, dtype=jnp.bfloat16)
    shape = (2, 8) if name == "layer_inner" else (8,)

    @jax.jit
    def initialized(x):
        named = {"param_names": ("scale", "bias"), "param_dtype": jnp.float16}
        two = nn.initializers.constant(2.0)
        return [
            make(**options).init(KEY, x)
            for options in (
                {"use_beta": True},
                {"use_gamma": False, "use_beta": False},
                {"use_beta": True, **named},
                {"gamma_init": two, "use_beta": False},
            )
        ]

    first, bare, named, chosen = initialized(x)
    ones, zeros = np.ones(shape, np.float32), np.zeros(shape, np.float32)
    chex.assert_trees_all_equal(first["params"], {"gamma": ones, "beta": zeros})
    assert "params" not in bare
    dtypes = {k: v.dtype for k, v in named["params"].items()}
    assert dtypes == {"scale": jnp.float16, "bias": jnp.float16}
    chex.assert_trees_all_equal(chosen["params"], {"gamma": 2 * ones})
    assert jax.eval_shape(functools.partial(apply, make(use_beta=True)), first, x).dtype == x.dtype
    # Those of the call make none; of one of them alone the other stays a parameter.
    gamma, beta = draw(rng, (4, 1, 1, 8)), draw(rng, (4, 3, 2, 1))
    init = make(use_beta=True).init
    assert "params" not in jax.eval_shape(lambda: init(KEY, draw(rng), gamma=gamma, beta=beta))
    assert set(jax.eval_shape(lambda: init(KEY, draw(rng), gamma=gamma))["params"]) == {"beta"}


@modules
def test_equals_flax_linen_with_the_same_parameters(name, rng):
    make, _, theirs = MODULES[name]
    x = draw(rng)
    mask = rng.random(X_SHAPE) < 0.8
    ours = make(param_names=("scale", "bias"))
    if name == "batch":
        ours = make(param_names=("scale", "bias"), unbiased=False)
    shapes = jax.eval_shape(theirs().init, KEY, x)
    variables = randomized(shapes, rng)
    # flax's parameters and statistics are loaded unchanged.
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(ours.init, KEY, x), shapes)

    @jax.jit
    def results(variables, x):
        def loss(params, module, given):
            given = {**given, "mutable": ["batch_stats"]}
            y, updates = module.apply({**variables, "params": params}, x, **given)
            return jnp.sum(jnp.sin(y)), (y, updates)

        def of(module):
            plain = jax.grad(loss, has_aux=True)(variables["params"], module, {})
            return *plain, loss(variables["params"], module, {"mask": mask})[1]

        return of(ours), of(theirs())

    found = jax.device_get(results(variables, x))
    (gradients, *mine), (expected_gradients, *expected) = found
    # What flax gives in masked slots is not zero.
    expected[1] = np.where(mask, expected[1][0], 0), expected[1][1]
    for (y, updates), (theirs_y, state) in zip(mine, expected, strict=True):
        # flax.linen subtracts E[x]^2 from E[x^2], which loses a few bits.
        chex.assert_trees_all_close(y, theirs_y, atol=5e-5, rtol=1e-5)
        chex.assert_trees_all_close(updates, state, atol=1e-5)
    chex.assert_trees_all_close(gradients, expected_gradients, atol=2e-4, rtol=1e-4)


def test_parameters_lie_as_in_flax_linen_whatever_the_order_of_axes(rng):
    """On square features a checkpoint in another order would load silently transposed."""
    x = draw(rng, (2, 4, 4))
    params = {"scale": draw(rng, (4, 4)), "bias": draw(rng, (4, 4))}
    names = {"param_names": ("scale", "bias")}

    def layers(axes):
        given = {"reduction_axes": axes, "feature_axes": axes}
        return jnn.LayerNorm(**given, **names), nn.LayerNorm(**given)

    orders = (-1, -2), (-2, -1), (2, 1), (1, -1)
    apply_all = jax.jit(lambda v, x: [[m.apply(v, x) for m in layers(axes)] for axes in orders])
    for mine, theirs in apply_all({"params": params}, x):
        chex.assert_trees_all_close(mine, theirs, atol=5e-5, rtol=1e-5)
    for axes in orders:
        wide = jax.eval_shape(layers(axes)[0].init, KEY, draw(rng, (2, 3, 4)))["params"]
        assert wide["scale"].shape == wide["bias"].shape == (3, 4)


def test_evaluation_equals_flax_linen(rng):
    x = draw(rng)
    theirs = nn.BatchNorm(use_running_average=True)
    variables = randomized(theirs.init(KEY, x), rng)
    stats = {"mean": draw(rng, (8,)), "var": jnp.abs(draw(rng, (8,)))}
    variables = {**variables, "batch_stats": stats}
    ours = jnn.BatchNorm(use_running_average=True, param_names=("scale", "bias"))
    close(ours.apply(variables, x), theirs.apply(variables, x), atol=3e-5)


@pytest.mark.parametrize(("unbiased", "axes"), [(True, (0,)), (False, (0, 1))], ids=str)
def test_running_statistics_follow_the_recurrence(unbiased, axes, rng):
    module = jnn.BatchNorm(reduction_axes=axes, momentum=0.9, unbiased=unbiased)
    batches = rng.normal(rng.normal(size=(1, 1, 3)), 2, (30, 6, 4, 3)).astype(np.float32)
    variables = jax.jit(functools.partial(module.init, use_running_average=False))(KEY, batches[0])

    @jax.jit
    def step(stats, x):
        variables = {"params": params, "batch_stats": stats}
        return module.apply(variables, x, use_running_average=False, mutable=["batch_stats"])

    params, stats = variables["params"], variables["batch_stats"]
    shape = stats["mean"].shape
    start_stats = {"mean": np.zeros(shape, np.float32), "var": np.ones(shape, np.float32)}
    chex.assert_trees_all_equal(stats, start_stats)
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
    x = 100 + rng.normal(size=(16, 3)).astype(np.float32)
    stats = jax.jit(module.init)(KEY, x)["batch_stats"]
    for name, value in (("mean", 0), ("var", 1)):
        np.testing.assert_array_equal(stats[name], np.full(3, value))


def test_an_all_masked_batch_changes_nothing(rng):
    module = jnn.BatchNorm(use_running_average=False)
    x = np.full((4, 3), np.nan, np.float32)
    variables = randomized(jax.eval_shape(module.init, KEY, x), rng)
    train = jax.jit(functools.partial(module.apply, mutable=["batch_stats"]))
    y, updates = train(variables, x, mask=np.zeros((4, 1), bool))
    np.testing.assert_array_equal(y, np.zeros((4, 3)))
    chex.assert_trees_all_equal(dict(updates), {"batch_stats": variables["batch_stats"]})


def test_statistics_keep_their_dtype(rng):
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        module = jnn.BatchNorm(use_running_average=False, dtype=dtype, param_dtype=dtype)
        x = draw(rng, (4, 3), dtype)
        train = functools.partial(module.apply, mutable=["batch_stats"])
        _, updates = jax.eval_shape(train, jax.eval_shape(module.init, KEY, x), x)
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
    variables, others = jax.jit(lambda: (plain.init(KEY, x), remat.init(KEY, x)))()
    chex.assert_trees_all_equal(others, variables)

    def run(module):
        def loss(params):
            y, updates = module.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return jnp.sum(y**3), updates

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    # The statistics, too, have moved once.
    close(*jax.jit(lambda: (run(remat), run(plain)))())


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
    variables = drawn(stack, x, None)
    assert variables["params"]["LayerNorm_0"]["gamma"].shape == (3, 6)
    (y, _), updates = jax.jit(functools.partial(stack.apply, mutable=["batch_stats"]))(
        variables, x, None
    )
    one = jax.jit(functools.partial(Layer().apply, mutable=["batch_stats"]))
    expected, stats = x, []
    for i in range(3):
        layer = jax.tree.map(lambda v, i=i: v[i], variables)
        (expected, _), update = one(layer, expected, None)
        stats.append(update)
    close(y, expected)
    close(dict(updates), jax.tree.map(lambda *s: np.stack(s), *map(dict, stats)))


def test_vmap_over_stacked_modules(rng):
    x = draw(rng, (2, 4, 6))
    for make in (jnn.LayerNorm, functools.partial(jnn.BatchNorm, use_running_average=False)):
        module = make()
        mapped = nn.vmap(
            type(module),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
        )(**{k: v for k, v in vars(module).items() if k == "use_running_average"})
        variables = drawn(mapped, x)
        apply = functools.partial(mapped.apply, mutable=["batch_stats"])
        y, updates = jax.device_get(jax.jit(apply)(variables, x))
        one = jax.jit(functools.partial(module.apply, mutable=["batch_stats"]))
        for i in range(2):
            expected, update = one(jax.tree.map(lambda v, i=i: v[i], variables), np.asarray(x)[i])
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
