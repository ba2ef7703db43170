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

        run_both = [jax.jit(functools.partial(run, call)) for call in (call_linen, call_nnx)]
        y, new, gradients, other = run_both[0](linen_params, variables, x)
        y2, new2, gradients2, other2 = run_both[1](params, rest, x)
        equal((y2, other2), (y, other))
        equal((nnx.to_pure_dict(gradients2[0]), gradients2[1]), gradients)
        equal(nnx.to_pure_dict(new2), merged(new))
        chex.assert_trees_all_equal_dtypes(merged(new), merged(variables))
        moves = name == "CumulativeNorm" or training
        assert moves == (not _same(merged(new), merged(variables)))
        assert given == {} or not jnp.array_equal(other, y)


def _same(a, b):
    return all(map(jnp.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_start_as_their_twins_do():
    for name, twin in TWINS.items():
        first, own = merged(twin.start()), values(twin.make(nnx.Rngs(0)))
        check = chex.assert_trees_all_equal_shapes_and_dtypes if name == "SPADE" else equal
        check(own, first)
