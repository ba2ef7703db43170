"""Contract 7 on meshes with two explicit axes, which types name: wherever what lies on them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxnorm.linen as jnn
from tests import registry


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
    shape = norm.shapes["plain"]
    x, gamma, beta, mask = norm.draw(rng, shape, mask=True)
    dy = jnp.asarray(rng.normal(size=shape), x.dtype)
    *specs, crossed = places(shape)
    parameters = (gamma, beta)
    lying = jax.tree.map(along_data, parameters)

    @jax.jit
    def f(xs, dys, parameters, mask):
        def both(x, dy):
            y, vjp = jax.vjp(lambda x, parameters: norm(x, *parameters), x, parameters)
            return y, norm(x, *parameters, mask), vjp(dy)

        return [both(*given) for given in zip(xs, dys, strict=True)]

    with jax.set_mesh(two_axes()):
        xs, dys = ([jax.device_put(value, spec) for spec in specs] for value in (x, dy))
        across = None if mask is None else jax.device_put(mask, crossed)
        results = f(xs, dys, jax.device_put(parameters, lying), across)
    exact = norm.expected_vjp(x, gamma, beta, None, dy)
    for spec, (y, masked, (dx, dparameters)) in zip(specs, results, strict=True):
        assert [value.sharding.spec for value in (y, masked, dx)] == [spec] * 3
        assert jax.tree.map(lambda d: d.sharding.spec, dparameters) == lying
        np.testing.assert_allclose(y, norm.expected(x, gamma, beta), atol=8e-6)
        np.testing.assert_allclose(masked, norm.expected(x, gamma, beta, mask), atol=8e-6)
        np.testing.assert_allclose(dx, exact[0], atol=8e-6 * max(1.0, np.abs(exact[0]).max()))
        for value, expected in zip(dparameters, exact[1:], strict=True):
            if value is not None:
                np.testing.assert_allclose(value, expected, atol=1e-4)


BATCH_NORMS = {
    "default": {},
    "debias": {"debias": True},
    "average": {"momentum": None},
    "virtual": {"num_virtual_batches": 4},
    "few_virtual": {"num_virtual_batches": 2},
    "renorm": {"train_statistics": "renorm"},
    "blend": {"train_statistics": 0.5, "eval_statistics": 0.25},
    "domain": {"num_domains": 2, "debias": True},
    "domains": {"num_domains": 2, "affine_per_domain": True},
}
DOMAINS = {"domain": 1, "domains": np.arange(16) % 2}


@pytest.mark.parametrize("variant", BATCH_NORMS)
def test_running_statistics_lie_as_the_channels_do(variant, rng):
    norm = jnn.BatchNorm(**BATCH_NORMS[variant])
    xs = jnp.asarray(rng.normal(0.5, 2, (3, 16, 3, 8)), jnp.float32)
    mask = jnp.asarray(rng.random((16, 3, 8)) < 0.7)
    extra = {"domain": DOMAINS[variant]} if variant in DOMAINS else {}

    @jax.jit
    def init(x):
        return norm.init(jax.random.key(0), x, use_running_average=True, **extra)

    @jax.jit
    def train_and_evaluate(variables, xs, mask):
        params = jax.tree.map(lambda p: p + 0.5, variables["params"])

        def loss(params, stats, x):
            variables = {"params": params, "batch_stats": stats}
            call = functools.partial(norm.apply, variables, x, mask=mask, **extra)
            y, updates = call(use_running_average=False, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), (y, updates["batch_stats"])

        def step(carry, x):
            params, stats = carry
            gradient, (y, stats) = jax.grad(loss, has_aux=True)(params, stats, x)
            params = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient)
            return (params, stats), y

        (params, stats), ys = jax.lax.scan(step, (params, variables["batch_stats"]), xs)
        variables = {"params": params, "batch_stats": stats}
        y = norm.apply(variables, xs[0], use_running_average=True, mask=mask, **extra)
        return ys, y, variables

    expected = train_and_evaluate(init(xs[0]), xs, mask)
    with jax.set_mesh(two_axes()):
        spread = jax.device_put(xs, P(None, "data", None, "model"))
        variables = init(spread[0])
        variables["params"] = jax.device_put(
            variables["params"], jax.tree.map(along_data, variables["params"])
        )
        across = jax.device_put(mask, P("model", None, "data"))
        ys, y, new = train_and_evaluate(variables, spread, across)
    chex.assert_trees_all_close((ys, y, new), expected, atol=1e-5, rtol=1e-5)
    assert y.sharding.spec == P("data", None, "model")
    for value in jax.tree.leaves((variables["batch_stats"], new["batch_stats"])):
        assert value.sharding.spec == P(*(None,) * (value.ndim - 1), "model")
    for value in jax.tree.leaves(new["params"]):
        assert value.sharding.spec == along_data(value)
