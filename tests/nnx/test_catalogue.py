"""The catalogue's modules for NNX: all under all transformations, and what each adds."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as checkpoint
import pytest
from flax import nnx
from jax.interpreters import partial_eval as pe

import jaxnorm.nnx as jnx
from jaxnorm import tools
from tests.nnx.twins import CATALOGUE, CONDITION, SHAPE, draw, values

pytestmark = pytest.mark.quickly_compiled

equal = chex.assert_trees_all_equal


# Each kind of variables beside parameters of its own: those of a module inside, of a stream, of a
# layer around a norm, of a population.
WITH_STATE = ("BatchChannelNorm", "CumulativeNorm", "AdaptiveNorm", "InputNorm")


class All(nnx.Module):
    """One of each, side by side."""

    def __init__(self, rngs, names=tuple(CATALOGUE)):
        self.names = tuple(names)
        for name in names:
            setattr(self, name, CATALOGUE[name].make(rngs))

    def __call__(self, x):
        results = [getattr(self, name)(x, *CATALOGUE[name].others) for name in self.names]
        return sum(results) / len(results)


def stack(number, names=tuple(CATALOGUE)):
    """Models beside each other, as nnx.vmap makes them."""

    @nnx.split_rngs(splits=number)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return All(rngs, names)

    return make(nnx.Rngs(0))


@nnx.jit
def step(models, optimizer, x):
    """Layers that are scanned, rematerialized and differentiated, in one program."""
    layers = nnx.scan(
        nnx.remat(lambda x, model: model(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
    )

    def loss(models):
        y = layers(x, models)
        return (y**2).sum(), y

    (_, y), gradients = nnx.value_and_grad(loss, has_aux=True)(models)
    optimizer.update(models, gradients)
    return y, gradients


def make_optimizer(models):
    return nnx.Optimizer(models, optax.sgd(0.1), wrt=nnx.Param)


def test_all_under_transformations(rng):
    """Each parameter's gradient is computed from the input; nothing is compiled."""
    graph, state = nnx.split(nnx.eval_shape(lambda: stack(2)))

    def run(x, state):
        models = nnx.merge(graph, state)
        y, gradients = step(models, make_optimizer(models), x)
        return nnx.to_pure_dict(gradients), y, values(models)

    program, (gradients, y, after) = jax.make_jaxpr(run, return_shape=True)(draw(rng, SHAPE), state)
    assert y.shape == SHAPE
    chex.assert_trees_all_equal_shapes_and_dtypes(after, nnx.to_pure_dict(state))
    chex.assert_trees_all_equal_shapes_and_dtypes(
        gradients, nnx.to_pure_dict(nnx.filter_state(state, nnx.Param))
    )
    for i, (path, _) in enumerate(jax.tree.leaves_with_path(gradients)):
        wanted = [at == i for at in range(len(program.jaxpr.outvars))]
        assert pe.dce_jaxpr(program.jaxpr, wanted)[1][0], path


def test_steps_under_transformations(rng):
    """Of modules with state: as layer after layer, and each parameter learns."""
    x, models = draw(rng, SHAPE), stack(2, WITH_STATE)
    graph, state = nnx.split(models)
    alone = [jax.tree.map(lambda a, i=i: a[i], state) for i in range(2)]
    alone = [nnx.merge(graph, state, copy=True) for state in alone]
    call = nnx.jit(lambda model, x: model(x))
    y, gradients = step(models, make_optimizer(models), x)
    expected = x
    for model in alone:
        expected = call(model, expected)
    chex.assert_trees_all_close(y, expected, atol=1e-4)
    for i, model in enumerate(alone):
        moved = jax.tree.map(lambda a, i=i: a[i], values(models, nnx.Not(nnx.Param)))
        chex.assert_trees_all_close(moved, values(model, nnx.Not(nnx.Param)), atol=1e-4)
    for path, gradient in jax.tree.leaves_with_path(nnx.to_pure_dict(gradients)):
        assert np.all(np.isfinite(gradient)), path
        assert np.any(gradient), path


def test_all_as_trees(rng, tmp_path):
    """Shapes without values, graphs that compare and hash, models side by side, checkpoints."""
    x, model = draw(rng, SHAPE), All(nnx.Rngs(0))
    abstract = nnx.eval_shape(lambda: All(nnx.Rngs(1)))
    chex.assert_trees_all_equal_shapes_and_dtypes(values(abstract), values(model))
    graph, shapes = nnx.split(abstract)
    assert graph == nnx.split(model)[0] == nnx.split(nnx.clone(model))[0]
    assert hash(graph) == hash(nnx.split(model)[0])
    models = nnx.eval_shape(lambda: stack(2))
    beside = nnx.vmap(lambda model, x: model(x), in_axes=(0, None))
    assert nnx.eval_shape(beside, models, x).shape == (2, *SHAPE)
    for at, (path, value) in enumerate(nnx.to_flat_state(nnx.state(model))):
        del path
        value.set_value(jnp.full_like(value[...], at))
    with checkpoint.StandardCheckpointer() as keeper:
        keeper.save(tmp_path / "all", nnx.state(model))
        keeper.wait_until_finished()
        restored = nnx.merge(graph, keeper.restore(tmp_path / "all", shapes))
    nnx.update(model, nnx.state(restored))
    equal(values(restored), values(model))
    assert len({float(a.mean()) for a in jax.tree.leaves(values(restored))}) > 50


def test_modes_reach_all_and_evaluation_writes_nothing(rng):
    model, x = All(nnx.Rngs(0)), draw(rng, SHAPE)
    trained = {name for name, twin in CATALOGUE.items() if twin.trained}
    found = {place[0] for place, m in nnx.iter_modules(model) if hasattr(m, "use_running_average")}
    assert found == trained
    model.eval()
    del model.CumulativeNorm  # a stream goes on in evaluation, too
    before = values(model)
    for name in trained:
        jax.eval_shape(getattr(model, name), x, *CATALOGUE[name].others)  # in a trace of plain JAX
        with pytest.raises(Exception, match="trace level"):
            jax.eval_shape(
                functools.partial(getattr(model, name), use_running_average=False),
                x,
                *CATALOGUE[name].others,
            )
    equal(values(model), before)


def test_the_mode_of_a_batch_channel_norm_is_its_own(rng):
    norm, x = jnx.BatchChannelNorm(8, num_groups=2, estimate=True), draw(rng, SHAPE)
    norm.use_running_average = True  # and not that of norm.batch
    before = values(norm)
    norm(x)
    equal(values(norm), before)
    norm(x, use_running_average=False)
    assert not jnp.array_equal(norm.batch.mean[...], before["batch"]["mean"])


def test_a_stream_equals_the_whole(rng):
    x, options = draw(rng, SHAPE, jnp.bfloat16), {"reduction_axes": (1, 2)}
    expected = jnx.CumulativeNorm(8, **options)(x)
    norm = jnx.CumulativeNorm(8, decode=True, **options)
    message = (
        "CumulativeNorm(num_features=8) was made without a running mean, which its options of "
        "now need. Begin the stream with init_cache(x.shape)."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        norm(x)
    for _ in range(2):  # two streams
        norm.init_cache(x.shape)
        y = nnx.scan(lambda m, x: m(x), in_axes=(nnx.StateAxes({...: nnx.Carry}), 1), out_axes=1)(
            norm, x[:, :, None]
        )
        chex.assert_trees_all_close(y[:, :, 0], expected, atol=1e-2)
    cache = nnx.state(norm, nnx.Cache)
    assert set(cache) == {"mean", "var", "count"}
    assert {str(value[...].dtype) for value in cache.values()} == {"float32"}
    with pytest.raises(ValueError, match=r"Begin the stream with init_cache\(x.shape\)"):
        norm(x[:2])


def test_series_come_back(rng):
    x, norm = 1e3 + draw(rng, SHAPE), jnx.RevIN(8, param_names=("scale", "bias"))
    nnx.update(norm, jax.tree.map(lambda a: 1 + 0.1 * draw(rng, a.shape), nnx.state(norm)))

    def forth_and_back(norm, x):
        y = norm(x)
        return norm.denormalize(jnp.concatenate([y, y[:, :2]], 1))

    other = nnx.clone(norm)
    for call in (forth_and_back, nnx.jit(forth_and_back)):
        back = call(norm, x)
        chex.assert_trees_all_close(back, jnp.concatenate([x, x[:, :2]], 1), rtol=1e-6)
    # What was found eagerly is there; a copy has found nothing.
    chex.assert_trees_all_close(norm.denormalize(norm.normalize(x)), x, rtol=1e-6)
    for module in (other, nnx.clone(norm)):
        with pytest.raises(ValueError, match="call normalize before it"):
            module.denormalize(x)
    graph = nnx.split(norm)[0]
    norm.normalize(2 * x)
    assert nnx.split(norm)[0] == graph
    with pytest.raises(ValueError, match="does not fit an input of shape"):
        norm(x[..., :4])


@pytest.mark.parametrize("transform", [nnx.jit, nnx.remat, nnx.value_and_grad])
def test_a_series_does_not_come_back_as_an_earlier_one(rng, transform):
    x, norm, traced = 1e3 + draw(rng, SHAPE), jnx.RevIN(8), []

    def total(norm, x):
        traced.append(norm)
        return norm.normalize(x).sum()

    run = transform(total)
    for _ in range(2):
        chex.assert_trees_all_close(norm.denormalize(norm.normalize(x)), x, rtol=1e-6)
        run(norm, 2 * x)
        with pytest.raises(ValueError, match="call normalize before it"):
            norm.denormalize(x)
    assert transform is not nnx.jit or len(traced) == 1


def test_a_module_that_was_not_given_keeps_no_traced_moments(rng):
    x, norm = 1e3 + draw(rng, SHAPE), jnx.RevIN(8)
    chex.assert_trees_all_close(jax.jit(lambda x: norm.denormalize(norm(x)))(x), x, rtol=1e-6)
    jax.jit(lambda x: jax.grad(lambda y: norm.denormalize(y).sum())(norm(x)))(x)
    for transform in (jax.jit, jax.vmap):
        transform(norm.normalize)(x[None] if transform is jax.vmap else x)
        with pytest.raises(ValueError, match="call normalize before it"):
            norm.denormalize(x)
    assert not any(isinstance(value, jax.core.Tracer) for value in jax.tree.leaves(vars(norm)))


def test_inputs_come_back(rng):
    x, norm = 1e3 + draw(rng, SHAPE), jnx.InputNorm([6, 8], feature_axes=(1, 2))
    y = norm(x)
    norm.eval()
    chex.assert_trees_all_close(norm.inverse(y), x, rtol=1e-6)
    assert norm.population_mean.shape == (6, 8)
    assert all(
        isinstance(v, nnx.BatchStat) for v in vars(norm).values() if isinstance(v, nnx.Variable)
    )
    with pytest.raises(ValueError, match=r"population_mean of shape \(6, 8\).*expected \(4, 8\)"):
        norm(x[:, :4])


def test_a_norm_under_a_condition_has_no_parameters_of_its_own(rng):
    rngs, x = nnx.Rngs(0), draw(rng, SHAPE)
    norm = jnx.AdaptiveNorm(jnx.LayerNorm(8), 3, gate=True, rngs=rngs)
    assert set(values(norm)) == {"condition"}
    y, gate = norm(x, CONDITION)
    chex.assert_trees_all_close(y, jnx.LayerNorm(8)(x), atol=1e-6)
    assert not jnp.any(gate)
    norm = jnx.AdaptiveNorm(
        jnx.LayerNorm(8, param_names=("scale", "bias")), 3, use_shift=False, rngs=rngs
    )
    assert set(values(norm)["norm"]) == {"bias"}
    with pytest.raises(ValueError, match="AdaptiveNorm has layers of its own and needs rngs"):
        jnx.AdaptiveNorm(jnx.LayerNorm(8), 3)
    with pytest.raises(TypeError, match=r"SPADE needs a module of jaxnorm.nnx that takes gamma"):
        jnx.SPADE(nnx.LayerNorm(8, rngs=rngs), 3, rngs=rngs)


def test_options_leave_parameters_out_and_name_and_place_them(rng):
    x = draw(rng, SHAPE)
    less = jnx.FilterResponseNorm(8, use_gamma=False, use_tau=False)
    assert set(values(less)) == {"beta"}
    assert less.tau is None
    less(x)
    assert values(jnx.PolyNorm(use_bias=False)).keys() == {"weights"}
    scale = jnx.LayerScale((), feature_axes=(), gamma_init=nnx.initializers.zeros)
    assert scale.gamma.shape == () and not jnp.any(scale(x))
    placed = nnx.with_partitioning(nnx.initializers.ones, ("model",))
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        norm = jnx.EvoNormS0(8, num_groups=2, v_init=placed, gamma_metadata={"role": "scale"})
        assert norm.v[...].sharding.spec == jax.sharding.PartitionSpec("model")
    assert norm.v.get_metadata("out_sharding") == ("model",)
    assert norm.gamma.get_metadata("role") == "scale"
    with pytest.raises(ValueError, match="draws its first rho at random and needs rngs"):
        jnx.BatchInstanceNorm(8, rho_init=nnx.initializers.normal())


def test_running_moments_accumulate(rng):
    x, norm = draw(rng, SHAPE), jnx.SwitchableNorm(8)
    whole = nnx.clone(norm)
    whole(x)
    tools.accumulate(norm)
    for part in (x[:1], x[1:]):
        norm(part)
    tools.settle(norm, momentum=0.99)
    chex.assert_trees_all_close(values(norm), values(whole), atol=1e-6)


def test_tables_of_models(rng):
    """`nnx.tabulate` compiles each public method by itself: none may need what is no array."""
    rngs, x = nnx.Rngs(0), draw(rng, SHAPE)
    linear = jnx.WeightNorm(nnx.Linear(8, 8, rngs=rngs))
    model = nnx.Sequential(linear, jnx.BatchNorm(8), jnx.LayerNorm(8), jnx.RevIN(8))
    assert "RevIN" in nnx.tabulate(model, x, console_kwargs={"width": 200})
    norm = jnx.AdaptiveNorm(jnx.EvoNormB0(8), 3, rngs=rngs)
    assert "EvoNormB0" in nnx.tabulate(norm, x, CONDITION, console_kwargs={"width": 200})
