"""Formulas of norms of graphs and of sequences, in float64."""

import numpy as np

import jaxnorm
from tests.techniques.technique import CENTERED, Technique, mean_of, var_of

AFFINE = (("gamma", (4,)), ("beta", (4,)))
GRAPHS = np.tile([0, 2, 0, 2, 2, 0, 7, 2, 0, 0, 2, 2], 4)  # the second is empty; 7 is none


def of_each_graph(formula):
    """Applies a formula to the nodes of each graph; nodes of none give 0."""

    def apply(x, *parameters, mask=None):
        kept = np.ones(x.shape, bool) if mask is None else mask
        y = np.zeros_like(x)
        for graph in (0, 2):
            nodes = graph == GRAPHS
            y[nodes] = formula(x[nodes], *parameters, mask=kept[nodes])
        return y

    return apply


@of_each_graph
def graph_norm(x, alpha, gamma, beta, mask=None):
    """Cai et al. 2020, equation 6."""
    o = x - alpha * mean_of(x, (0,), mask)
    return gamma * o / np.sqrt(mean_of(o**2, (0,), mask) + 1e-5) + beta


@of_each_graph
def instance(x, gamma, beta, mask=None):
    o = x - mean_of(x, (0,), mask)
    return gamma * o / np.sqrt(var_of(x, (0,), mask) + 1e-5) + beta


@of_each_graph
def pair_norm(x, mask=None):
    """Zhao & Akoglu 2019, equations 10 and 11."""
    c = x - mean_of(x, (0,), mask)
    return 3 * c / np.sqrt(mean_of(c**2, (0,), mask).sum() + 1e-5)


def cumulative(x, gamma, beta, mask=None):
    """Luo & Mesgarani 2018, equation 13 to 15."""
    kept = np.ones(x.shape, bool) if mask is None else mask
    y = np.zeros_like(x)
    for t in range(x.shape[1]):
        past, held = x[:, : t + 1], kept[:, : t + 1]
        centered = x[:, t : t + 1] - mean_of(past, (1, 2), held)
        y[:, t : t + 1] = centered / np.sqrt(var_of(past, (1, 2), held) + 1e-2)
    return gamma * y + beta


def _graph_norm(x, *parameters, **options):
    named = dict(zip(("alpha", "gamma", "beta")[-len(parameters) :], parameters, strict=True))
    return jaxnorm.graph_norm(x, GRAPHS, num_segments=3, **named, **options)


GRAPH = [
    Technique(
        name="graph_norm",
        public="graph_norm",
        function=_graph_norm,
        reference=graph_norm,
        shape=(48, 4),
        parameters=(("alpha", (4,)), *AFFINE),
    ),
    Technique(
        name="graph_norm_of_all_the_mean",
        public="graph_norm",
        function=_graph_norm,
        reference=instance,
        shape=(48, 4),
        parameters=AFFINE,
        means=CENTERED,
    ),
    Technique(
        name="pair_norm",
        public="pair_norm",
        function=lambda x, **o: jaxnorm.pair_norm(x, GRAPHS, num_segments=3, scale=3.0, **o),
        reference=pair_norm,
        shape=(48, 4),
        means=CENTERED,
    ),
    Technique(
        name="cumulative_norm",
        public="cumulative_norm",
        function=lambda x, *p, **o: jaxnorm.cumulative_norm(x, *p, axis=-1, epsilon=1e-2, **o)[0],
        reference=cumulative,
        shape=(2, 5, 16),
        parameters=(("gamma", (16,)), ("beta", (16,))),
        means=CENTERED,
    ),
]
