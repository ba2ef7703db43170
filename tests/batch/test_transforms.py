"""Batch norm's state under every transformation, while initializing, training and evaluating.

One table: each way of calling a model {init, train, eval}. What a way must equal is computed by
plain calls of the layer, one after the other.
"""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxnorm.linen as jnn

pytestmark = pytest.mark.quickly_compiled

P = PartitionSpec
MOMENTUM = 0.5
# A few layers deep, values below 10: some roundings of 6e-8 each.
CLOSE = {"rtol": 5e-6, "atol": 5e-6}


class Layer(nn.Module):
    """A dense layer and a batch norm, in the signature of a scan's body."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4, name="dense")(x)
        norm = jnn.BatchNorm(momentum=MOMENTUM, axis_name=self.axis_name, name="norm")
        return nn.tanh(norm(x, use_running_average=not train)), None


@pytest.fixture
def x(rng):
    return rng.normal(size=(8, 4)).astype(np.float32)


@pytest.fixture
def variables(rng):
    def draw(*shape):
        return (rng.random(shape) + 0.5).astype(np.float32)

    return {
        "params": {
            "dense": {"kernel": draw(4, 4), "bias": draw(4)},
            "norm": {"gamma": draw(4), "beta": draw(4)},
        },
        "batch_stats": {"norm": {"mean": draw(4), "var": draw(4)}},
    }


@functools.partial(jax.jit, static_argnums=2)
def plain(variables, x, train):
    """(y, batch_stats) of one layer, called as it is."""
    if not train:
        return Layer().apply(variables, x, False)[0], variables["batch_stats"]
    (y, _), new = Layer().apply(variables, x, True, mutable=["batch_stats"])
    return y, new["batch_stats"]


def stack(*trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def unstack(tree, n):
    return [jax.tree.map(lambda a, i=i: a[i], tree) for i in range(n)]


def apply(model, variables, x, train, *args):
    """(y, batch_stats) of a model; in evaluation nothing is mutable."""
    if not train:
        return model.apply(variables, x, False, *args), variables["batch_stats"]
    y, new = model.apply(variables, x, True, *args, mutable=["batch_stats"])
    return y, new["batch_stats"]


def check_init(model, variables, x, *args):
    """Initializing makes the structure of `variables`, and statistics that no data has touched."""
    init = functools.partial(model.init, jax.random.key(0))
    made, evaluated = jax.jit(lambda x: [init(x, train, *args) for train in (True, False)])(x)
    chex.assert_trees_all_equal_shapes_and_dtypes(made, variables)
    for path, value in jax.tree_util.tree_leaves_with_path(made["batch_stats"]):
        start = 1.0 if "var" in str(path[-1]) else 0.0
        np.testing.assert_array_equal(value, np.full(value.shape, start))
    chex.assert_trees_all_equal(evaluated, made)


class Plain(nn.Module):
    layer: type = Layer
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        return self.layer(self.axis_name, name="layer")(x, train)[0]


def nested(variables):
    return {kind: {"layer": value} for kind, value in variables.items()}


def test_jit(x, variables):
    model, inside = Plain(), nested(variables)
    check_init(model, inside, x)
    for train in (True, False):
        y, stats = jax.jit(lambda v, x, t=train: apply(model, v, x, t))(inside, x)
        chex.assert_trees_all_close((y, stats["layer"]), plain(variables, x, train), **CLOSE)


def test_eval_shape(x, variables):
    model, inside = Plain(), nested(variables)
    made = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, True), x)
    chex.assert_trees_all_equal_shapes_and_dtypes(made, inside)
    for train in (True, False):
        y, stats = jax.eval_shape(lambda v, x, t=train: apply(model, v, x, t), inside, x)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        chex.assert_trees_all_equal_shapes_and_dtypes(stats, inside["batch_stats"])


def test_remat(x, variables):
    """The statistics are updated once though the forward pass runs twice."""
    model = Plain(nn.remat(Layer, static_argnums=(2,)))
    inside = nested(variables)
    check_init(model, inside, x)
    for train in (True, False):

        def loss(params, model=model, train=train):
            y, stats = apply(model, {**inside, "params": params}, x, train)
            return (y**2).sum(), stats

        actual = jax.jit(jax.grad(loss, has_aux=True))(inside["params"])

        def plain_loss(params, train=train):
            y, stats = plain({**variables, "params": params}, x, train)
            return (y**2).sum(), stats

        expected = jax.jit(jax.grad(plain_loss, has_aux=True))(variables["params"])
        chex.assert_trees_all_close((actual[0]["layer"], actual[1]["layer"]), expected, **CLOSE)


class OverSteps(nn.Module):
    """The same layer at three steps in sequence: statistics are the scan's carry."""

    @nn.compact
    def __call__(self, x, train):
        layer = Layer(name="layer")
        if self.is_initializing():
            # Flax cannot make the variables of a carry within the scan.
            return layer(x, train)[0]
        # In evaluation nothing is mutable, so that the statistics are broadcast.
        stats = {"variable_carry": "batch_stats", "variable_broadcast": "params"}
        if not train:
            stats = {"variable_broadcast": ["params", "batch_stats"]}
        scan = nn.scan(
            lambda layer, x, _: layer(x, train), split_rngs={"params": False}, length=3, **stats
        )
        return scan(layer, x, None)[0]


def test_scan_over_steps(x, variables):
    model, inside = OverSteps(), nested(variables)
    check_init(model, inside, x)
    for train in (True, False):
        y, stats = jax.jit(lambda v, x, t=train: apply(model, v, x, t))(inside, x)
        want, expected = x, variables
        for _ in range(3):
            want, new = plain(expected, want, train)
            expected = {**expected, "batch_stats": new}
        chex.assert_trees_all_close((y, stats["layer"]), (want, new), **CLOSE)


class OverLayers(nn.Module):
    """Three layers with parameters and statistics of their own, stacked."""

    @nn.compact
    def __call__(self, x, train):
        scan = nn.scan(
            nn.remat(Layer, static_argnums=(2,)),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=3,
        )
        return scan(name="layer")(x, train)[0]


def test_scan_over_layers(x, variables):
    """`train` is static in the scan's body, and nothing need be mutable in evaluation."""
    layers = [jax.tree.map(lambda a, i=i: a + np.float32(0.1 * i), variables) for i in range(3)]
    model, inside = OverLayers(), nested(stack(*layers))
    check_init(model, inside, x)
    for train in (True, False):
        y, stats = jax.jit(lambda v, x, t=train: apply(model, v, x, t))(inside, x)
        want, rows = x, []
        for layer in layers:
            want, new = plain(layer, want, train)
            rows.append(new)
        chex.assert_trees_all_close((y, stats["layer"]), (want, stack(*rows)), **CLOSE)


class Mapped(nn.Module):
    """nn.vmap over the first axis of x; statistics shared, or one set for each entry."""

    shared: bool
    layer: type = Layer
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        axis = None if self.shared else 0
        mapped = nn.vmap(
            self.layer,
            in_axes=(0, None),
            variable_axes={"params": axis, "batch_stats": axis},
            split_rngs={"params": not self.shared},
            axis_name=self.axis_name,
        )
        return mapped(self.axis_name, name="layer")(x, train)[0]


def test_vmap_with_stacked_statistics(x, variables):
    entries = [jax.tree.map(lambda a, i=i: a + np.float32(0.1 * i), variables) for i in range(2)]
    model, inside = Mapped(shared=False), nested(stack(*entries))
    parts = x.reshape(2, 4, 4)
    check_init(model, inside, parts)
    for train in (True, False):
        y, stats = jax.jit(lambda v, x, t=train: apply(model, v, x, t))(inside, parts)
        rows = [plain(v, part, train) for v, part in zip(entries, parts, strict=True)]
        chex.assert_trees_all_close((y, stats["layer"]), stack(*rows), **CLOSE)


def test_vmap_with_shared_statistics(x, variables):
    """Pooled over the mapped axis it is the layer on the whole batch."""
    model, inside = Mapped(shared=True, axis_name="parts"), nested(variables)
    parts = x.reshape(2, 4, 4)
    check_init(model, inside, parts)
    for train in (True, False):
        y, stats = jax.jit(lambda v, x, t=train: apply(model, v, x, t))(inside, parts)
        want = plain(variables, x, train)
        chex.assert_trees_all_close((y.reshape(8, 4), stats["layer"]), want, **CLOSE)


def test_nested_vmap(x, variables):
    """Outside two sets of everything, inside shared statistics pooled over a named axis."""

    class Nested(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            mapped = nn.vmap(
                Mapped,
                in_axes=(0, None),
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
            )
            return mapped(shared=True, axis_name="parts", name="outer")(x, train)

    entries = [jax.tree.map(lambda a, i=i: a + np.float32(0.1 * i), variables) for i in range(2)]
    inside = {k: {"outer": v} for k, v in nested(stack(*entries)).items()}
    batches = jnp.stack([x, 2 * x])
    parts = batches.reshape(2, 2, 4, 4)
    check_init(Nested(), inside, parts)
    for train in (True, False):
        y, stats = jax.jit(lambda v, x, t=train: apply(Nested(), v, x, t))(inside, parts)
        rows = [plain(v, batch, train) for v, batch in zip(entries, batches, strict=True)]
        got = y.reshape(2, 8, 4), stats["outer"]["layer"]
        chex.assert_trees_all_close(got, stack(*rows), **CLOSE)


def test_jax_vmap_over_whole_models(x, variables):
    """An ensemble: jax.vmap over init, and over apply with stacked variables."""
    keys = jax.random.split(jax.random.key(0), 3)
    made = jax.eval_shape(jax.vmap(lambda key: Plain().init(key, x, True)), keys)
    members = [jax.tree.map(lambda a, i=i: a + np.float32(0.1 * i), variables) for i in range(3)]
    inside = nested(stack(*members))
    chex.assert_trees_all_equal_shapes_and_dtypes(made, inside)
    for train in (True, False):
        y, stats = jax.jit(jax.vmap(lambda v, t=train: apply(Plain(), v, x, t)))(inside)
        rows = [plain(member, x, train) for member in members]
        chex.assert_trees_all_close((y, stats["layer"]), stack(*rows), **CLOSE)


def test_shard_map(x, variables):
    """Initialized outside, replicated inside; the new statistics are inferred to be replicated."""
    mesh = jax.make_mesh((8,), ("d",))
    x = np.concatenate([x, 2 * x])
    model, inside = Plain(axis_name="d"), nested(variables)
    check_init(model, inside, x)
    placed = jax.device_put(x, NamedSharding(mesh, P("d")))
    for train in (True, False):
        mapped = jax.shard_map(
            lambda v, x, t=train: apply(model, v, x, t),
            mesh=mesh,
            in_specs=(P(), P("d")),
            out_specs=(P("d"), P()),
        )
        y, stats = jax.jit(mapped)(inside, placed)
        want = plain(variables, x, train)
        got = jax.device_get((y, stats["layer"]))
        chex.assert_trees_all_close(got, jax.device_get(want), **CLOSE)


def test_initializing_inside_shard_map(x, variables):
    mesh = jax.make_mesh((8,), ("d",))
    x = np.concatenate([x, 2 * x])
    made = jax.jit(
        jax.shard_map(
            lambda x: Plain(axis_name="d").init(jax.random.key(0), x, True),
            mesh=mesh,
            in_specs=P("d"),
            out_specs=P(),
        )
    )(jax.device_put(x, NamedSharding(mesh, P("d"))))
    chex.assert_trees_all_equal_shapes_and_dtypes(made, nested(variables))
