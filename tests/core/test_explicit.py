"""Contract 7 on meshes with two explicit axes, which types name: wherever what lies on them."""

import functools
import math
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm
import jaxnorm.linen as jnn
from jaxnorm._core.mesh import placed, spec_of
from tests.contract import registry
from tests.contract.norm import first
from tests.contract.test_exact import assert_exact

pytestmark = pytest.mark.quickly_compiled

MOVES = "all-gather|all-to-all|collective-permute"


def two_axes():
    # Explicit axes are JAX's default.
    return jax.make_mesh((4, 2), ("data", "model"))


def places(shape):
    """Ways to lie: an axis of the mesh for each of two axes, two for one, and the first crossed."""
    first, *_, last = (a for a, size in enumerate(shape) if size % 8 == 0)
    ways = {first: "data", last: "model"}, {last: ("model", "data")}, {first: "model", last: "data"}
    return [P(*(way.get(a) for a in range(len(shape)))) for way in ways]


def along_data(parameter):
    """How a parameter lies along the axis of the mesh that divides the examples, if it can."""
    spec = [None] * parameter.ndim
    for axis in [a for a, size in enumerate(parameter.shape) if size % 4 == 0][:1]:
        spec[axis] = "data"
    return P(*spec)


@registry.norms("shards")
def test_any_place_of_input_parameters_and_mask(norm, rng):
    """Types say where all results lie; of what composes the core half of them are computed."""
    shape = norm.shapes["plain"]
    x, gamma, beta, mask = norm.draw(rng, shape, mask=True)
    dy = rng.normal(size=shape).astype(x.dtype)
    *specs, crossed = places(shape)
    lying = jax.tree.map(along_data, (gamma, beta))
    masks = [None] if mask is None else [None, mask]
    core = norm.name in registry.CORE
    # A place and a mask each: with the second place the mask, or both masks with both places.
    every = [(spec, m) for spec in range(2) for m in range(len(masks))]
    computed = every if core else every[:: len(every) - 1]

    def results_of(chosen, xs, dys, parameters, masks):
        def result(x, dy, mask):
            if core and mask is not None:
                return norm(x, *parameters, mask), None
            y, vjp = jax.vjp(lambda x, parameters: norm(x, *parameters, mask), x, parameters)
            return y, vjp(dy)

        return [result(xs[spec], dys[spec], masks[m]) for spec, m in chosen]

    with jax.set_mesh(two_axes()):
        xs, dys = ([jax.device_put(value, spec) for spec in specs] for value in (x, dy))
        across = [m if m is None else jax.device_put(m, crossed) for m in masks]
        given = xs, dys, jax.device_put((gamma, beta), lying), across
        results = jax.jit(functools.partial(results_of, computed))(*given)
        others = [place for place in every if place not in computed]
        types = jax.eval_shape(functools.partial(results_of, others), *given)
    for (spec, _), (y, gradients) in zip(computed + others, results + types, strict=True):
        assert y.sharding.spec == specs[spec]
        if gradients is not None:
            assert lies(gradients) == (specs[spec], lying)
    for (_, m), (y, gradients) in zip(computed, results, strict=True):
        expected = norm.expected(x, gamma, beta, masks[m])
        np.testing.assert_allclose(y, expected, atol=8e-6)
        if "exact" not in norm.exempt:
            assert_exact(y, expected)
        if gradients is None:
            continue
        dx, dparameters = gradients
        exact = norm.expected_vjp(x, gamma, beta, masks[m], dy)
        np.testing.assert_allclose(dx, exact[0], atol=8e-6 * max(1.0, np.abs(exact[0]).max()))
        for value, expected in zip(dparameters, exact[1:], strict=True):
            if value is not None:
                np.testing.assert_allclose(value, expected, atol=1e-4)


BATCH_NORMS = {
    "default": {},
    "average, virtual": {"momentum": None, "num_virtual_batches": 4},
    "debias, few virtual": {"debias": True, "num_virtual_batches": 2},
    "renorm": {"train_statistics": "renorm"},
    "blend": {"train_statistics": 0.5, "eval_statistics": 0.25},
    "domain": {"num_domains": 2, "debias": True},
    "domains": {"num_domains": 2, "affine_per_domain": True},
}
DOMAINS = {"domain": np.int32(1), "domains": np.arange(16, dtype=np.int32) % 2}


@pytest.mark.parametrize("variant", BATCH_NORMS)
def test_running_statistics_lie_as_the_channels_do(variant, rng):
    norm = jnn.BatchNorm(**BATCH_NORMS[variant])
    xs = rng.normal(0.5, 2, (3, 16, 3, 8)).astype(np.float32)
    mask = rng.random((16, 3, 8)) < 0.7
    domain, several = DOMAINS.get(variant), variant == "domains"

    @jax.jit
    def init(x, domain):
        return norm.init(jax.random.key(0), x, use_running_average=True, domain=domain)

    @jax.jit
    def train_and_evaluate(variables, xs, mask, domain):
        given = {"mask": mask, "domain": domain}
        params = jax.tree.map(lambda p: p + 0.5, variables["params"])

        def loss(params, stats, x):
            variables = {"params": params, "batch_stats": stats}
            call = functools.partial(norm.apply, variables, x, **given)
            y, updates = call(use_running_average=False, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), (y, updates["batch_stats"])

        def step(carry, x):
            params, stats = carry
            gradient, (y, stats) = jax.grad(loss, has_aux=True)(params, stats, x)
            params = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient)
            return (params, stats), y

        (params, stats), ys = jax.lax.scan(step, (params, variables["batch_stats"]), xs)
        variables = {"params": params, "batch_stats": stats}
        y = norm.apply(variables, xs[0], use_running_average=True, **given)
        return ys, y, variables

    with jax.set_mesh(two_axes()):
        spread = jax.device_put(xs, P(None, "data", None, "model"))
        first = jax.device_put(xs[0], P("data", None, "model"))
        variables = init(first, jax.device_put(domain, P("model")) if several else domain)
    expected = train_and_evaluate(jax.tree.map(np.asarray, variables), xs, mask, domain)
    with jax.set_mesh(two_axes()):
        if several:
            domain = jax.device_put(domain, P("model"))
        variables["params"] = jax.device_put(
            variables["params"], jax.tree.map(along_data, variables["params"])
        )
        across = jax.device_put(mask, P("model", None, "data"))
        ys, y, new = train_and_evaluate(variables, spread, across, domain)
    chex.assert_trees_all_close((ys, y, new), expected, atol=1e-5, rtol=1e-5)
    assert y.sharding.spec == P("data", None, "model")
    for value in jax.tree.leaves((variables["batch_stats"], new["batch_stats"])):
        assert value.sharding.spec == P(*(None,) * (value.ndim - 1), "model")
    for value in jax.tree.leaves(new["params"]):
        assert value.sharding.spec == along_data(value)


class Reader(nn.Module):
    """A recurrent layer whose first carry lies as the input does: flax gives it the shape alone."""

    cell: nn.RNNCellBase

    @nn.compact
    def __call__(self, x):
        carry = self.cell.initialize_carry(jax.random.key(0), x[:, 0].shape)
        carry = jax.tree.map(lambda c: placed(c, spec_of(x[:, 0])), carry)
        return nn.RNN(self.cell)(x, initial_carry=carry)


CHANNELS, WHOLE = P("data", None, "model"), P("data", None, None)
MODULES = {
    "layer_norm": (jnn.LayerNorm(), CHANNELS, {}),
    "rms_norm": (jnn.RMSNorm(feature_axes=(1, 2)), CHANNELS, {}),
    "group_norm": (jnn.GroupNorm(num_groups=1), CHANNELS, {}),
    "instance_norm": (jnn.InstanceNorm(), CHANNELS, {}),
    "traced": (jnn.BatchNorm(), CHANNELS, {"use_running_average": jnp.asarray(False)}),
    "input_norm": (jnn.InputNorm(), CHANNELS, {"use_running_average": False}),
    "decorrelated": (
        jnn.DecorrelatedBatchNorm(reduction_axes=0, feature_axes=1, method="iterative"),
        CHANNELS,
        {"use_running_average": False},
    ),
    "weight_norm": (jnn.WeightNorm(nn.Dense(8), data_dependent_init=True), WHOLE, {}),
    "spectral_norm": (jnn.SpectralNorm(nn.Dense(8)), WHOLE, {"update_stats": True}),
    "standardization": (
        jnn.WeightStandardization(nn.Dense(8, use_bias=False), use_gain=True),
        WHOLE,
        {},
    ),
    "lstm": (Reader(jnn.LayerNormLSTMCell(8)), WHOLE, {}),
    "gru": (Reader(jnn.LayerNormGRUCell(8)), WHOLE, {}),
}


def place_of_parameter(path, value):
    """Matrices lie by their output units, with them what flax adds; all else along "data"."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if value.ndim == 2 or name.endswith("layer/bias"):
        return P(*(None,) * (value.ndim - 1), "model")
    return along_data(value)


@pytest.mark.parametrize("name", MODULES)
def test_modules_return_gradients_where_their_parameters_lie(name, rng):
    module, spec, options = MODULES[name]
    x = rng.normal(0.5, 2, (8, 4, 16)).astype(np.float32)

    @jax.jit
    def init(x):
        return module.init(jax.random.key(0), x, **options)

    def step(params, state, x):
        def loss(params, x):
            variables = {"params": params, **state}
            y, new = module.apply(variables, x, **options, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), (y, new)

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    with jax.set_mesh(two_axes()):
        spread = jax.device_put(x, spec)
        if name in ("lstm", "gru"):  # orthogonal matrices are long to compile
            types = jax.eval_shape(init, spread)
            state = jax.tree.map(lambda t: rng.uniform(0.1, 0.5, t.shape).astype(t.dtype), types)
        else:
            state = init(spread)
        values = jax.tree.map(np.asarray, state)
        began = values.pop("params", {})
        drawn = jax.tree.map(lambda p: p + np.float32(0.1), began)
        state.pop("params", None)
        params = jax.tree_util.tree_map_with_path(
            lambda path, p: jax.device_put(p, place_of_parameter(path, p)), drawn
        )
        if name == "spectral_norm":
            u = state["batch_stats"]["kernel_u"]
            state["batch_stats"]["kernel_u"] = jax.device_put(u, P("model"))
        # Of the two cells one is computed; types say where the other's results lie.
        compute = functools.partial(jax.eval_shape, step) if name == "gru" else jax.jit(step)
        results = compute(params, state, spread)
    if name == "weight_norm":  # whose first values depend on the data
        chex.assert_trees_all_close(init(x)["params"], began, atol=2e-5)
    if name != "gru":
        expected = jax.jit(step)(drawn, values, x)
        for value, exact in zip(*map(jax.tree.leaves, (results, expected)), strict=True):
            # Sums over devices are rounded as their largest elements are.
            np.testing.assert_allclose(value, exact, atol=2e-5 * max(1.0, np.abs(exact).max()))
    (dparams, dx), (y, new) = results
    assert dx.sharding.spec == spec
    assert y.sharding.spec[0] == "data"
    assert lies(dparams) == lies(params)
    assert lies(new) == lies(state)


def lies(tree):
    return jax.tree.map(lambda value: value.sharding.spec, tree)


NORMS = {
    "batch_norm": functools.partial(first(jaxnorm.batch_norm), axis=(0, 1)),
    "layer_norm": jaxnorm.layer_norm,
    "group_norm": functools.partial(jaxnorm.group_norm, num_groups=2),
}


@pytest.mark.parametrize("name", NORMS)
def test_parameters_and_masks_come_to_the_input_which_stays(name):
    x, gamma, mask = jnp.ones((64, 32, 16)), jnp.ones(16), jnp.ones((64, 32, 16), bool)

    @jax.jit
    def gradients(x, gamma, mask):
        def loss(x, gamma):
            return jnp.sum(jnp.sin(NORMS[name](x, gamma=gamma, beta=gamma, mask=mask)))

        return jax.grad(loss, (0, 1))(x, gamma)

    with jax.set_mesh(two_axes()):
        given = jax.device_put((x, gamma, mask), (CHANNELS, P("data"), P("model", "data")))
        text = gradients.lower(*given).compile().as_text()
    moved = re.findall(rf"= f32\[([\d,]*)\]\S* (?:{MOVES})", text)
    assert moved, "gamma is moved"
    # Left to itself the compiler moves the input, or all but as many numbers, in some of these.
    assert max(math.prod(map(int, shape.split(","))) for shape in moved) <= gamma.size


def test_conditions_come_to_the_input(rng):
    x = jnp.asarray(rng.normal(0.5, 2, (8, 4, 16)), jnp.float32)
    gamma = jnp.asarray(rng.normal(1, 0.3, (8, 1, 16)), jnp.float32)  # one for each example

    @jax.jit
    def f(x, gamma):
        def all_of_them(gamma):
            return [norm(x, gamma=gamma, beta=gamma) for norm in NORMS.values()]

        ys, vjp = jax.vjp(all_of_them, gamma)
        return ys, vjp(ys)[0]

    expected = f(x, gamma)
    with jax.set_mesh(two_axes()):
        crossed = P("model", None, "data")
        ys, dgamma = f(*jax.device_put((x, gamma), (CHANNELS, crossed)))
    chex.assert_trees_all_close((ys, dgamma), expected, atol=2e-5, rtol=2e-5)
    assert lies(ys) == [CHANNELS] * len(NORMS)
    assert dgamma.sharding.spec == crossed


def combined(x, gamma, moments, other):
    """What is computed of moments, wherever each of them lies."""
    merged = jaxnorm.merge_moments(moments, other)
    mixed = jaxnorm.mix_moments(moments, other, weight=0.25)
    updated = jaxnorm.update_moments(moments, other, momentum=None)
    common = {"axis": (0, 1), "epsilon": 1e-3}
    y = jaxnorm.standardize(x, merged, gamma, gamma, **common)
    x = jaxnorm.unstandardize(y, mixed, gamma, gamma, **common)
    stacked = jaxnorm.merge_moments(jaxnorm.moments(x, 1, mask=x > 0), axis=0)
    penalty = jaxnorm.statistics_penalty(x, axis=(0, 1), mask=x > 0)
    return (y, x), (merged, mixed, updated, stacked), penalty


def test_moments_that_lie_apart_are_combined(rng):
    x = jnp.asarray(rng.normal(0.5, 2, (8, 4, 16)), jnp.float32)
    gamma, mean = jnp.linspace(0.5, 1.5, 16), jnp.linspace(-1, 1, 16)
    moments = jaxnorm.Moments(mean, gamma, jnp.full(16, 3.0))
    other = jaxnorm.Moments(mean**2, gamma**2, jnp.float32(5.0))
    expected = jax.jit(combined)(x, gamma, moments, other)
    with jax.set_mesh(two_axes()):
        given = (jax.device_put(x, CHANNELS), jax.device_put(gamma, P("data")))
        stats = (jax.device_put(moments, P("model")), jax.device_put(other, P()))
        stats = (stats[0], stats[1]._replace(var=jax.device_put(other.var, P("data"))))
        results = jax.jit(combined)(*given, *stats)
        eager = combined(*given, *stats)
    chex.assert_trees_all_close(results, expected, atol=1e-5, rtol=1e-5)
    chex.assert_trees_all_close(eager, expected, atol=1e-5, rtol=1e-5)
    for arrays, moments, penalty in (results, eager):
        assert lies(arrays) == (CHANNELS, CHANNELS)
        assert {m.mean.sharding.spec for m in moments} == {P("model")}
        assert penalty.sharding.spec == P()


@pytest.mark.parametrize("momentum", [0.9, None])
def test_step_in_a_loop(momentum, rng):
    xs = jnp.asarray(rng.normal(0.5, 2, (3, 8, 4, 16)), jnp.float32)
    gamma = jnp.linspace(0.5, 1.5, 16)

    @jax.jit
    def train(running, xs, gamma):
        def step(running, x):
            options = {"training": True, "axis": (0, 1), "momentum": momentum}
            y, running = jaxnorm.batch_norm_step(x, running, gamma, gamma, **options)
            return running, y

        return jax.lax.scan(step, running, xs)

    expected = train(jaxnorm.init_running(16), xs, gamma)
    with jax.set_mesh(two_axes()):
        start = jax.reshard(jaxnorm.init_running(16), P("model"))
        given = jax.device_put((xs, gamma), (P(None, *CHANNELS), P("data")))
        running, ys = train(start, *given)
    chex.assert_trees_all_close((running, ys), expected, atol=1e-5, rtol=1e-5)
    assert ys.sharding.spec == P(None, *CHANNELS)
    assert set(lies(running)) == {P("model")}


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_step_outside_of_a_mesh_context_and_inside(jit, rng):
    # JAX's types name the mesh of an array whether the program has entered it or not.
    mesh = two_axes()
    x = rng.normal(0.5, 2, (8, 4, 16)).astype(np.float32)
    gamma = np.linspace(0.5, 1.5, 16, dtype=np.float32)

    def step(x, running, gamma):
        def f(x, gamma):
            options = {"training": True, "axis": (0, 1), "debias": True, "num_virtual_batches": 2}
            return jaxnorm.batch_norm_step(x, running, gamma, gamma, **options)

        y, vjp, running = jax.vjp(f, x, gamma, has_aux=True)
        return y, vjp(y), running

    function = jax.jit(step) if jit else step
    expected = jax.jit(step)(x, jaxnorm.init_running(16), gamma)
    lying = jax.device_put(x, NamedSharding(mesh, CHANNELS))
    across = jax.device_put(gamma, NamedSharding(mesh, P("data")))
    outside = function(lying, jaxnorm.init_running(16), across)
    with jax.set_mesh(mesh):
        inside = function(lying, jaxnorm.init_running(16), across)
    for results in (outside, inside):
        chex.assert_trees_all_close(results, expected, atol=2e-5, rtol=2e-5)
        y, (dx, dgamma), running = results
        assert lies((y, dx, dgamma)) == (CHANNELS, CHANNELS, P("data"))
        assert set(lies(running)) == {P("model")}


def test_one_axis_of_an_explicit_mesh_in_shard_map(rng):
    x = jnp.asarray(rng.normal(0.5, 2, (8, 4, 16)), jnp.float32)
    gamma = jnp.linspace(0.5, 1.5, 16)

    def f(x, gamma, axis_name=None):
        y, _ = jaxnorm.batch_norm(x, gamma, axis=(0, 1), axis_name=axis_name)
        return y

    with jax.set_mesh(two_axes()):
        mapped = jax.shard_map(
            functools.partial(f, axis_name="data"),
            axis_names={"data"},
            in_specs=(P("data"), P()),
            out_specs=P("data"),
        )
        y = jax.jit(mapped)(jax.device_put(x, CHANNELS), jax.device_put(gamma, P("model")))
    assert y.sharding.spec == CHANNELS
    np.testing.assert_allclose(y, f(x, gamma), atol=8e-6)
