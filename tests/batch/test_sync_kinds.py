"""Modules of every kind of statistics, pooled over two mesh axes, equal those of one device."""

import functools

import chex
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxnorm.linen as jnn
from tests.support.sum_tolerance import assert_parameter_gradients_close

pytestmark = pytest.mark.quickly_compiled

P = PartitionSpec
# As in test_batch_sync: a few roundings of values below 10.
CLOSE = {"rtol": 2e-6, "atol": 4e-6}

OPTIONS = {
    "plain": {},
    "renorm": {"train_statistics": "renorm", "r_max": 1.1, "d_max": 0.1},
    "mixture": {"train_statistics": 0.3},
    "domains": {"num_domains": 3, "affine_per_domain": True},
    "virtual": {"num_virtual_batches": 4},
    "all masked": {"momentum": None, "debias": True},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_equals_one_device(kind, rng):
    """Outputs, gradients of the parameters, and running statistics that are inferred replicated."""
    options = {**OPTIONS[kind], "use_running_average": False}
    x, dy = rng.normal(1, size=(2, 16, 3, 4)).astype(np.float32)
    mask = rng.random((16, 3, 1)) < (0 if kind == "all masked" else 0.6)
    domain = np.arange(16, dtype=np.int32) % 3 if kind == "domains" else None
    variables = jax.jit(jnn.BatchNorm(**options).init)(jax.random.key(0), x, domain=domain)

    def train(names, x, dy, mask, domain):
        norm = jnn.BatchNorm(**options, axis_name=names)

        def loss(params):
            y, new = norm.apply(
                {**variables, "params": params},
                x,
                mask=mask,
                domain=domain,
                mutable=["batch_stats"],
            )
            total = (y * dy).sum()
            return total if names is None else jax.lax.psum(total, names), (y, new)

        gradient, (y, new) = jax.grad(loss, has_aux=True)(variables["params"])
        return y, gradient, new

    expected = jax.jit(functools.partial(train, None))(x, dy, mask, domain)
    spec = P(("a", "b"))
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    mapped = jax.shard_map(
        functools.partial(train, ("a", "b")),
        mesh=mesh,
        in_specs=spec,
        out_specs=(spec, P(), P()),
    )
    place = NamedSharding(mesh, spec)
    actual = jax.jit(mapped)(*jax.device_put((x, dy, mask, domain), place))
    (y, gradient, new), (y_, gradient_, new_) = jax.device_get((actual, expected))
    chex.assert_trees_all_close((y, new), (y_, new_), **CLOSE)
    # gamma is 1 and beta 0, so that y is what gamma multiplies.
    gradient, gradient_ = jax.tree.map(np.asarray, (gradient, gradient_))
    for d in (...,) if domain is None else range(3):
        mine = np.asarray(mask & (True if domain is None else (domain == d)[:, None, None]))
        of_domain = [[g["gamma"][d], g["beta"][d]] for g in (gradient, gradient_)]
        assert_parameter_gradients_close(*of_domain, np.where(mine, dy, 0), y)
    if kind == "all masked":
        chex.assert_trees_all_equal(new["batch_stats"], variables["batch_stats"])
