"""The catalogue's modules for NNX: the same values as their twins for linen, in compiled steps."""

import functools
import inspect
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as checkpoint
import pytest
from flax import nnx

import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx
from jaxnorm import tools
from tests.nnx.catalogue import CONDITION, SHAPE, TWINS
from tests.nnx.twins import NORMS, draw, merged, values

equal = chex.assert_trees_all_equal
twins = pytest.mark.parametrize("name", TWINS)


def test_every_module_is_here_or_tested_by_itself():
    wrappers = {"WeightNorm", "SpectralNorm", "WeightStandardization", "bake"}
    cells = {"LayerNormLSTMCell", "LayerNormGRUCell"}
    here = {*TWINS, *(norm[0] for norm in NORMS.values())}
    assert here | wrappers | cells == set(jnx.__all__)


@twins
def test_equals_its_twin_for_linen(name, rng):
    """One program for each library and mode: results, gradients, states, and gamma of the call."""
    twin = TWINS[name]
    variables = twin.variables(rng)
    module = twin.load(variables)
    takes = inspect.signature(type(module).__call__).parameters
    x, dy = draw(rng, SHAPE), draw(rng, SHAPE)
    options = {"mask": jnp.asarray(rng.random(SHAPE[:2])[..., None] < 0.8)} if twin.masked else {}
    given = {name: draw(rng, SHAPE) for name in ("gamma", "beta") if name in takes}
    linen_params = variables.pop("params", {})

    def run(call, params, rest, x):
        y, vjp, new = jax.vjp(lambda *a: call(a[0], rest, a[1], options), params, x, has_aux=True)
        return y, new, vjp(dy), call(params, rest, x, {**options, **given})[0]

    for training in (True, False) if twin.trained else (False,):
        mode = {"use_running_average": not training} if twin.trained else {}
        module.train() if training else module.eval()
        graph, params, rest = nnx.split(module, nnx.Param, ...)

        def call_linen(params, rest, x, options, mode=mode):
            apply = {**options, **mode, "mutable": ["batch_stats", "cache"]}
            y, new = twin.linen.apply({"params": params, **rest}, x, *twin.others, **apply)
            return y, {**rest, **new}

        def call_nnx(params, rest, x, options, graph=graph):
            model = nnx.merge(graph, params, rest, copy=True)
            y = model(x, *twin.others, **options)
            return y, nnx.state(model, nnx.Not(nnx.Param))

        # The same operations on the same variables give the same bits: nothing need be compiled.
        linen = jax.make_jaxpr(functools.partial(run, call_linen))(linen_params, variables, x)
        own = jax.make_jaxpr(functools.partial(run, call_nnx))(params, rest, x)
        assert _text(own) == _text(linen)
        assert linen.in_avals == own.in_avals


def _text(program):
    """A program as text, without where in memory its functions are."""
    return re.sub(r"0x[0-9a-f]+", "", str(program))


def test_start_as_their_twins_do():
    for name, twin in TWINS.items():
        first, own = merged(twin.start()), values(twin.make(nnx.Rngs(0)))
        check = chex.assert_trees_all_equal_shapes_and_dtypes if name == "SPADE" else equal
        check(own, first)


class All(nnx.Module):
    """One of each, side by side."""

    def __init__(self, rngs):
        for name, twin in TWINS.items():
            setattr(self, name, twin.make(rngs))

    def __call__(self, x):
        results = [getattr(self, name)(x, *twin.others) for name, twin in TWINS.items()]
        return sum(results) / len(results)


def stack(number):
    """Models beside each other, as nnx.vmap makes them, and the same one by one."""

    @nnx.split_rngs(splits=number)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return All(rngs)

    models = make(nnx.Rngs(0))
    graph, state = nnx.split(models)
    alone = [jax.tree.map(lambda a, i=i: a[i], state) for i in range(number)]
    return models, [nnx.merge(graph, state, copy=True) for state in alone]


def test_all_under_transformations(rng):
    """Steps over layers that are scanned, rematerialized and differentiated, in one program."""
    x = draw(rng, SHAPE)
    models, alone = stack(2)
    optimizer = nnx.Optimizer(models, optax.sgd(0.1), wrt=nnx.Param)
    first = values(models)

    @nnx.jit
    def step(models, optimizer, x):
        layers = nnx.scan(
            nnx.remat(lambda x, model: model(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
        )

        def loss(models):
            y = layers(x, models)
            return (y**2).sum(), y

        (_, y), gradients = nnx.value_and_grad(loss, has_aux=True)(models)
        optimizer.update(models, gradients)
        return y, gradients

    call = nnx.jit(lambda model, x: model(x))
    y, gradients = step(models, optimizer, x)
    expected = x
    for model in alone:
        expected = call(model, expected)
    chex.assert_trees_all_close(y, expected, atol=1e-4)
    for i, model in enumerate(alone):
        moved = jax.tree.map(lambda a, i=i: a[i], values(models, nnx.Not(nnx.Param)))
        chex.assert_trees_all_close(moved, values(model, nnx.Not(nnx.Param)), atol=1e-4)
    chex.assert_trees_all_equal_shapes_and_dtypes(values(models), first)
    gradients = nnx.to_pure_dict(gradients)
    assert set(gradients) == set(values(models, nnx.Param))
    for path, gradient in jax.tree.leaves_with_path(gradients):
        assert jnp.all(jnp.isfinite(gradient)), path
        assert jnp.any(gradient), path
