"""What the tests of recalibration share."""

import jax
import numpy as np

from tests.support.jaxpr_text import drawn

EPSILON = 1e-5


def uneven_batches(rng):
    """Uneven batches; the last has one example."""
    return [(rng.normal(size=(n, 4)) + 1).astype(np.float32) for n in (16, 16, 1)]


def start(net, *args):
    """Variables of a model that normalizes by gamma = 1 and beta = 0."""
    variables = drawn(net, *args)
    plain = {"gamma": 1, "beta": 0}

    def value(path, a):
        name = path[-1].key
        return np.full(a.shape, plain[name], a.dtype) if name in plain else a

    return jax.tree_util.tree_map_with_path(value, variables)


def population_in_evaluation(variables, data, depth=2):
    """Layer by layer in float64: each sees what the exact statistics before it let through."""
    x = np.concatenate(data).astype(np.float64)
    stats = {}
    for i in range(depth):
        dense = variables["params"][f"dense_{i}"]
        x = np.tanh(x @ np.asarray(dense["kernel"], np.float64) + np.asarray(dense["bias"]))
        stats[f"norm_{i}"] = {"mean": x.mean(0), "var": x.var(0)}
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + EPSILON)
    return stats
