"""The normalization modules for Flax NNX under every transformation of it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as checkpoint
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

import jaxnorm.nnx as jnx
from tests.nnx.twins import built, draw, values

pytestmark = pytest.mark.quickly_compiled

FEATURES, BATCH = 4, 8


class Block(nnx.Module):
    """Two norms, one with statistics, behind a projection."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.norm = jnx.BatchNorm(FEATURES, momentum=0.5, rngs=rngs)
        self.last = jnx.LayerNorm(FEATURES, rngs=rngs)

    def __call__(self, x):
        return self.last(jnp.tanh(self.norm(self.dense(x))))


def close(a, b, atol=1e-5):
    chex.assert_trees_all_close(a, b, atol=atol)


def make_blocks(number):
    """The same block, several times."""
    return [built(lambda: Block(nnx.Rngs(0))) for _ in range(number)]


def stacked():
    """Three blocks beside each other, as nnx.vmap makes them."""

    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return Block(rngs)

    return built(lambda: make(nnx.Rngs(0)))


def one_of(tree, i):
    return jax.tree.map(lambda a: np.asarray(a)[i], tree)


call = nnx.jit(lambda m, x: m(x))


@pytest.fixture
def x(rng):
    return draw(rng, (BATCH, FEATURES))


def test_jit(x):
    eager, jitted = make_blocks(2)
    expected = [eager(x), eager(x)]
    close([call(jitted, x), call(jitted, x)], expected)
    close(values(jitted), values(eager))
    # Both modes, each compiled once, and evaluation writes nothing.
    before = values(jitted)
    for block in (eager, jitted):
        block.eval()
    close(call(jitted, x), eager(x))
    chex.assert_trees_all_equal(values(jitted), before)


def test_split_and_merge_in_plain_jax(x):
    block, expected = make_blocks(2)
    graph, params, stats = nnx.split(block, nnx.Param, nnx.BatchStat)

    @jax.jit
    def step(params, stats, x):
        model = nnx.merge(graph, params, stats)
        y = model(x)
        return y, nnx.state(model, nnx.BatchStat)

    y, new = step(params, stats, x)
    close(y, expected(x))
    nnx.update(block, new)
    close(values(block), values(expected))


def test_gradients_and_an_optimizer(x):
    block = built(lambda: Block(nnx.Rngs(0)))
    optimizer = nnx.Optimizer(block, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        def loss(model):
            return ((model(x) - x) ** 2).mean()

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value, gradients

    first = values(block, nnx.BatchStat)
    value, gradients = step(block, optimizer, x)
    parameters = {"norm": {"gamma", "beta"}, "last": {"gamma", "beta"}, "dense": {"kernel", "bias"}}
    assert {k: set(v) for k, v in nnx.to_pure_dict(gradients).items()} == parameters
    assert all(np.any(g) for g in jax.tree.leaves(nnx.to_pure_dict(gradients)["last"]))
    assert not np.array_equal(values(block, nnx.BatchStat)["norm"]["mean"], first["norm"]["mean"])
    for _ in range(10):
        last, _ = step(block, optimizer, x)
    assert last < value
    # nnx.grad gives the same.
    a, b = make_blocks(2)
    loss = lambda m: (m(x) ** 3).sum()  # noqa: E731
    both = nnx.jit(lambda a, b: (nnx.grad(loss)(a), nnx.value_and_grad(loss)(b)[1]))
    close(*map(nnx.to_pure_dict, both(a, b)))
    close(values(a), values(b))


def test_vmap_over_models(x):
    blocks = stacked()
    assert {v.shape[0] for v in jax.tree.leaves(values(blocks))} == {3}
    graph, state = nnx.split(blocks)
    alone = [nnx.merge(graph, one_of(state, i)) for i in range(3)]
    y = nnx.jit(nnx.vmap(lambda m, x: m(x), in_axes=(0, None)))(blocks, x)
    close(y, np.stack([call(block, x) for block in alone]))
    for i, block in enumerate(alone):
        close(one_of(values(blocks), i), values(block))


def test_vmap_with_an_axis_name_pools_over_it(x):
    norm, whole = (jnx.BatchNorm(FEATURES, axis_name=name) for name in ("parts", None))
    parts = x.reshape(2, -1, FEATURES)
    axes = nnx.StateAxes({...: None})
    call = nnx.vmap(lambda m, x: m(x), in_axes=(axes, 0), out_axes=0, axis_name="parts")
    close(call(norm, parts).reshape(x.shape), whole(x))
    close(values(norm), values(whole))
    groups = jnx.BatchNorm(FEATURES, axis_name="parts", axis_index_groups=[[0], [1]])
    groups.use_running_average = True
    chex.assert_trees_all_equal(call(groups, parts).reshape(x.shape), groups(x))


def test_scan_over_layers(x):
    blocks = stacked()
    graph, state = nnx.split(blocks)
    alone = [nnx.merge(graph, one_of(state, i)) for i in range(3)]
    forward = nnx.jit(nnx.scan(lambda x, m: m(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry))
    y, expected = forward(x, blocks), x
    for block in alone:
        expected = call(block, expected)
    close(y, expected)
    for i, block in enumerate(alone):
        close(one_of(values(blocks), i), values(block))


def test_scan_over_time_keeps_one_state(rng):
    xs = draw(rng, (3, BATCH, FEATURES))
    scanned, alone = make_blocks(2)

    @nnx.scan(in_axes=(nnx.StateAxes({...: nnx.Carry}), 0), out_axes=0)
    def forward(model, x):
        return model(x)

    close(forward(scanned, xs), np.stack([call(alone, x) for x in np.asarray(xs)]))
    close(values(scanned), values(alone))


def test_remat(x):
    plain, saved = make_blocks(2)

    def loss(call):
        return lambda m: (call(m, x) ** 3).sum()

    @nnx.jit
    def both(plain, saved):
        gradients = nnx.grad(loss(lambda m, x: m(x)))(plain)
        return gradients, nnx.grad(loss(nnx.remat(lambda m, x: m(x))))(saved)

    close(*map(nnx.to_pure_dict, both(plain, saved)))
    close(values(saved), values(plain))  # the statistics moved once


def test_evaluation_writes_nothing_so_that_plain_transformations_do(x):
    block = built(lambda: Block(nnx.Rngs(0)))
    with pytest.raises(Exception, match="different trace level"):
        jax.jit(lambda x: block(x))(x)
    block.eval()
    close(jax.jit(lambda x: block(x))(x), block(x))
    parts = x.reshape(2, -1, FEATURES)
    close(jax.vmap(block)(parts).reshape(x.shape), block(x))
    close(jax.checkpoint(block)(x), block(x))


def test_eval_shape(x):
    abstract = nnx.eval_shape(lambda: Block(nnx.Rngs(0)))
    shapes = jax.tree.map(lambda v: (v.shape, v.dtype), values(abstract))
    (block,) = make_blocks(1)
    assert shapes == jax.tree.map(lambda v: (v.shape, v.dtype), values(block))
    graph, state = nnx.split(block)
    close(nnx.merge(nnx.split(abstract)[0], state)(x), block(x))
    assert nnx.eval_shape(lambda m, x: m(x), block, x).shape == x.shape
    assert graph == nnx.split(abstract)[0]


def test_clones_and_graphs_compare_and_hash():
    a, b = make_blocks(2)
    assert nnx.split(a)[0] == nnx.split(nnx.clone(b))[0]
    assert hash(nnx.split(a)[0]) == hash(nnx.split(b)[0])
    a.norm.momentum = 0.9
    assert nnx.split(a)[0] != nnx.split(b)[0]
    assert a != b and len({a, b}) == 2


def test_options_may_be_lists(x):
    """The graph of a model must be hashable for plain `jax.jit` to take it as static."""
    norms = (
        jnx.LayerNorm([2, 4], reduction_axes=[1, 2], feature_axes=[1, 2]),
        jnx.BatchNorm(4, axis_name="parts", axis_index_groups=[[0], [1]], input_shape=[1, 4]),
        jnx.WeightNorm(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), select=["kernel"], feature_axes=[1]),
    )
    assert len({nnx.split(norm)[0] for norm in norms}) == 3
    parts = x.reshape(-1, 2, FEATURES)
    call = jax.jit(lambda graph, state, x: nnx.merge(graph, state)(x), static_argnums=0)
    close(call(*nnx.split(norms[0]), parts), norms[0](parts))


def test_partitioned_parameters(x):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    alone = jnx.BatchNorm(FEATURES)
    expected = alone(x)
    init = nnx.with_partitioning(nnx.initializers.ones, ("model",))
    with jax.set_mesh(mesh):
        norm = jnx.BatchNorm(FEATURES, gamma_init=init, beta_metadata={"out_sharding": ("model",)})
        assert norm.gamma.get_metadata("out_sharding") == ("model",)
        for parameter in (norm.gamma, norm.beta):
            assert parameter[...].sharding.spec == PartitionSpec("model")
        x = jax.device_put(x, PartitionSpec("data", "model"))
        y = call(norm, x)
        specs = nnx.get_partition_spec(nnx.state(norm, nnx.Param))
    close(jax.device_get(y), jax.device_get(expected))
    close(jax.device_get(values(norm)), jax.device_get(values(alone)))
    assert specs["gamma"].get_value() == PartitionSpec("model")


def test_eager_training_on_divided_batches(x):
    """The state follows the data to where it lies."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    norm, alone = jnx.BatchNorm(FEATURES), jnx.BatchNorm(FEATURES)
    divided = jax.device_put(x, jax.NamedSharding(mesh, PartitionSpec("data")))
    for _ in range(2):
        close(jax.device_get(norm(divided)), jax.device_get(alone(x)))
    close(jax.device_get(values(norm)), jax.device_get(values(alone)))


def test_checkpoints(x, tmp_path):
    block, expected = make_blocks(2)
    for trained in (block, expected):
        trained(x)
    path = tmp_path / "block"
    with checkpoint.StandardCheckpointer() as keeper:
        keeper.save(path, nnx.state(block))
        keeper.wait_until_finished()
        abstract = nnx.eval_shape(lambda: Block(nnx.Rngs(1)))
        graph, shapes = nnx.split(abstract)
        restored = nnx.merge(graph, keeper.restore(path, shapes))
    chex.assert_trees_all_equal(values(restored), values(expected))
    chex.assert_trees_all_equal(restored(x), expected(x))
    chex.assert_trees_all_equal(values(restored), values(expected))
