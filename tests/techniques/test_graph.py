"""Norms of graphs at the sizes that batches of graphs have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxnorm
from tests.contract.test_exact import excess

NODES, FEATURES = 4096, 16


def draw(rng, number):
    """Nodes whose means are a million deviations, and the graph of each; two are in none."""
    x = rng.standard_normal((NODES, FEATURES)) + 1e6 * rng.choice([-1, 0, 1], FEATURES)
    graphs = np.sort(rng.integers(0, number, NODES))
    graphs[:2] = -1, number
    return jnp.asarray(x, jnp.float32), jnp.asarray(graphs, jnp.int32)


@pytest.mark.parametrize("number", [2, 900])
def test_exact_and_lean_whatever_the_number_of_graphs(number, rng):
    x, graphs = draw(rng, number)
    norm = functools.partial(jaxnorm.graph_norm, num_segments=number)
    compiled = jax.jit(norm).lower(x, graphs).compile()
    y, wide = np.asarray(compiled(x, graphs)), np.asarray(x, np.float64)
    expected = np.zeros_like(wide)
    for graph in range(number):
        own = np.asarray(graphs) == graph
        if own.any():
            rest = wide[own] - wide[own].mean(0)
            expected[own] = rest / np.sqrt(np.square(rest).mean(0) + 1e-5)
    assert excess(y, expected) <= 1
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * x.nbytes


def test_nodes_over_devices_stay_where_they_are(rng):
    x, graphs = draw(rng, 30)
    mesh = jax.make_mesh((8,), ("nodes",), axis_types=(AxisType.Auto,))
    x, graphs = jax.device_put((x, graphs), NamedSharding(mesh, PartitionSpec("nodes")))

    def loss(x):
        return jnp.sum(jaxnorm.graph_norm(x, graphs, num_segments=30) ** 3)

    text = jax.jit(jax.grad(loss)).lower(x).compile().as_text()
    assert "all-reduce" in text
    for moved in ("all-gather", "all-to-all", "collective-permute"):
        assert moved not in text
