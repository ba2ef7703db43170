"""What the tests of recalibration share."""

import jax.numpy as jnp
import numpy as np

EPSILON = 1e-5


def uneven_batches(rng):
    """Uneven batches; the last has one example."""
    return [jnp.asarray(rng.normal(size=(n, 4)) + 1, jnp.float32) for n in (16, 16, 7, 1)]


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
