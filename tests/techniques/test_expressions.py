"""Techniques that the functions already are: each expression against its paper's formula.

The expressions are those of the table in the README. Formulas are in float64.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxnorm
import jaxnorm.linen as jnn
from tests.techniques.technique import mean_of, var_of

pytestmark = pytest.mark.quickly_compiled

IMAGE = (6, 3, 2, 8)
GRAPHS = np.array([0, 1, 0, 1, 1, 0])
SIZES = np.array([3, 3])


def bn(x, axes=(0, 1, 2), epsilon=1e-5):
    return (x - mean_of(x, axes)) / np.sqrt(var_of(x, axes) + epsilon)


def rms(x, axes=(-1,), epsilon=1e-6):
    return x / np.sqrt(mean_of(x**2, axes) + epsilon)


def unit(x, axis=-1):
    return x / np.sqrt((x**2).sum(axis, keepdims=True))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# --- of each position or example ------------------------------------------------------------


def pixel_norm(x):
    return jaxnorm.rms_norm(x, epsilon=1e-8)


def pono_with_moment_shortcut(x, later):
    """Huang & Belongie's affine, of the moments that layer norm of each position took away."""
    moments = jaxnorm.moments(x, axis=-1)
    normalized = jaxnorm.standardize(x, moments, axis=-1, epsilon=1e-5)
    return normalized, jaxnorm.unstandardize(later, moments, axis=-1, epsilon=1e-5)


def pono_reference(x, later):
    mean, scale = mean_of(x, (-1,)), np.sqrt(var_of(x, (-1,)) + 1e-5)
    return (x - mean) / scale, later * scale + mean


def query_key_norm(q, k, g):
    """Logits of [batch, time, heads, features]."""
    scaled = g * jaxnorm.lp_norm(q)
    return jnp.einsum("bqhd,bkhd->bhqk", scaled, jaxnorm.lp_norm(k))


def query_key_reference(q, k, g):
    return np.einsum("bqhd,bkhd->bhqk", g * unit(q), unit(k))


def partial_rms_norm(x):
    """The first quarter of the features tells the scale of all."""
    square = jnp.mean(x[..., : x.shape[-1] // 4] ** 2, -1)
    moments = jaxnorm.Moments(jnp.zeros_like(square), square, jnp.ones(()))
    return jaxnorm.standardize(x, moments, axis=-1, epsilon=1e-6)


def partial_rms_reference(x):
    part = x[..., : x.shape[-1] // 4]
    return x / np.sqrt((part**2).mean(-1, keepdims=True) + 1e-6)


# --- conditional affines --------------------------------------------------------------------

CLASSES = np.array([0, 2, 1, 1, 0, 2])


def class_conditional_batch_norm(x, gamma, beta):
    rows = (p[CLASSES].reshape(6, 1, 1, 8) for p in (gamma, beta))
    return jaxnorm.batch_norm(x, *rows, axis=(0, 1, 2))[0]


def class_conditional_reference(x, gamma, beta):
    gamma, beta = (p[CLASSES].reshape(6, 1, 1, 8) for p in (gamma, beta))
    return bn(x) * gamma + beta


def conditional_batch_norm(x, gamma, change):
    """gamma and a change of it by a network, one for each example."""
    gamma = gamma.reshape(1, 1, 1, 8) + change.reshape(6, 1, 1, 8)
    return jaxnorm.batch_norm(x, gamma, axis=(0, 1, 2))[0]


def conditional_instance_norm(x, gamma, beta):
    rows = (p[CLASSES].reshape(6, 1, 1, 8) for p in (gamma, beta))
    return jaxnorm.instance_norm(x, *rows, epsilon=1e-5)


def conditional_instance_reference(x, gamma, beta):
    gamma, beta = (p[CLASSES].reshape(6, 1, 1, 8) for p in (gamma, beta))
    return bn(x, (1, 2)) * gamma + beta


# --- other statistics of the batch ----------------------------------------------------------


def instance_batch_norm(x):
    first, second = jnp.split(x, 2, -1)
    first = jaxnorm.instance_norm(first, epsilon=1e-5)
    return jnp.concatenate([first, jaxnorm.batch_norm(second, axis=(0, 1, 2))[0]], -1)


def instance_batch_reference(x):
    first, second = np.split(x, 2, -1)
    return np.concatenate([bn(first, (1, 2)), bn(second)], -1)


def mean_only_batch_norm(x, beta):
    moments = jaxnorm.moments(x, axis=(0, 1, 2))
    ones = moments._replace(var=jnp.ones_like(moments.var))
    return jaxnorm.standardize(x, ones, beta=beta, axis=(0, 1, 2), epsilon=0.0)


def virtual_batch_norm(x, reference):
    """Each example by the moments of the reference batch and its own, merged."""
    own = jaxnorm.moments(x, axis=(1, 2))
    fixed = jaxnorm.moments(reference, axis=(0, 1, 2))
    fixed = jaxnorm.Moments(fixed.mean[None], fixed.var[None], fixed.count)
    both = jaxnorm.merge_moments(own, fixed)
    return jaxnorm.standardize(x, both, axis=(1, 2), epsilon=1e-3)


def virtual_batch_reference(x, reference):
    y = np.empty_like(x)
    for i, example in enumerate(x):
        batch = np.concatenate([example[None], reference])
        y[i] = (example - batch.mean((0, 1, 2))) / np.sqrt(batch.var((0, 1, 2)) + 1e-3)
    return y


def adabn(x, gamma):
    """Statistics of each domain, one gamma for all."""
    domains = CLASSES % 2
    return jaxnorm.segment_batch_norm(x, domains, gamma, num_segments=2, axis=(0, 1, 2))[0]


def adabn_reference(x, gamma):
    y = np.empty_like(x)
    for domain in (0, 1):
        y[CLASSES % 2 == domain] = bn(x[CLASSES % 2 == domain]) * gamma
    return y


def prediction_time_batch_norm(x, mean, var):
    """The training's moments weigh 16 examples, the test batch's 6."""
    training = jaxnorm.Moments(mean, var**2, jnp.zeros(()))
    batch = jaxnorm.moments(x, axis=(0, 1, 2))
    mixed = jaxnorm.mix_moments(batch, training, weight=6 / 22)
    return jaxnorm.standardize(x, mixed, axis=(0, 1, 2), epsilon=1e-5)


def prediction_time_reference(x, mean, var):
    mean = 16 / 22 * mean + 6 / 22 * x.mean((0, 1, 2))
    var = 16 / 22 * var**2 + 6 / 22 * x.var((0, 1, 2))
    return (x - mean) / np.sqrt(var + 1e-5)


def moving_average_batch_norm(x, mean, var):
    """By the running moments, in training as well; they moved by this batch first."""
    running = jaxnorm.Moments(mean, var**2, jnp.zeros(()))
    batch = jax.lax.stop_gradient(jaxnorm.moments(x, axis=(0, 1, 2)))
    running = jaxnorm.update_moments(running, batch, momentum=0.9, unbiased=False)
    return jaxnorm.standardize(x, running, axis=(0, 1, 2), epsilon=1e-5)


def moving_average_reference(x, mean, var):
    mean = 0.9 * mean + 0.1 * x.mean((0, 1, 2))
    var = 0.9 * var**2 + 0.1 * x.var((0, 1, 2))
    return (x - mean) / np.sqrt(var + 1e-5)


# --- placement, in networks -----------------------------------------------------------------


def branch(x):
    return jnp.tanh(x) * 3


def branch_reference(x):
    return np.tanh(x) * 3


def ln(x):
    return bn(x, (-1,), 1e-6)


def sandwich_norm(x):
    """Peri-norm too: a norm before and after each branch, none on the way."""
    return x + jaxnorm.layer_norm(branch(jaxnorm.layer_norm(x)))


def deep_norm(x):
    """Post-norm with a residual that grows with the depth of N layers: alpha = (2 N)^(1/4)."""
    return jaxnorm.layer_norm((2 * 12) ** 0.25 * x + branch(x))


def layer_norm_scaling(x):
    return jaxnorm.layer_norm(x, 1 / math.sqrt(7))


# --- graphs ---------------------------------------------------------------------------------


def of_each_graph(function):
    def apply(x):
        y = np.empty_like(x)
        for graph in (0, 1):
            y[graph == GRAPHS] = function(x[graph == GRAPHS])
        return y

    return apply


def graph_layer_norm(x):
    """Over the nodes and the features of a graph."""
    return jaxnorm.segment_batch_norm(x, GRAPHS, num_segments=2, axis=(0, 1))[0]


def graph_instance_norm(x):
    return jaxnorm.graph_norm(x, GRAPHS, num_segments=2)


def mean_subtraction(x):
    mean = jaxnorm.moments(x, axis=0).mean
    return x - mean[None]


def graph_size_norm(x):
    return x / jnp.sqrt(jnp.asarray(SIZES[GRAPHS], x.dtype))[:, None]


def message_norm(x, message, scale):
    """Features of a node, and a message as long as they are, times a learned scale."""
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x + jaxnorm.lp_norm(message) * length * scale


def message_reference(x, message, scale):
    return x + unit(message) * np.sqrt((x**2).sum(-1, keepdims=True)) * scale


def diff_group_norm(x, weights):
    """Nodes are assigned to clusters; each cluster's share of the features has a batch norm."""
    shares = jax.nn.softmax(x @ weights)
    parts, _ = jaxnorm.batch_norm(shares[:, :, None] * x[:, None, :], axis=0)
    return x + 0.01 * parts.sum(1)


def diff_group_reference(x, weights):
    shares = softmax(x @ weights)
    return x + 0.01 * sum(bn(shares[:, i : i + 1] * x, (0,)) for i in range(shares.shape[1]))


# --- features and weights -------------------------------------------------------------------


def norm_per_attention_head(x):
    """[batch, time, heads * features]: group norm of each time."""
    return jaxnorm.group_norm(x, num_groups=4, axis=-1)


def norm_per_head_reference(x):
    heads = x.reshape(*x.shape[:-1], 4, -1)
    return bn(heads, (-1,), 1e-6).reshape(x.shape)


def cosine_normalization(x, w):
    return jaxnorm.lp_norm(x) @ jaxnorm.weight_norm(w, axis=0)


def cosine_reference(x, w):
    return unit(x) @ unit(w, 0)


def centred_weight_norm(w, g):
    return jaxnorm.scaled_weight_standardize(w, g, axis=0, epsilon=0.0)


def centred_weight_reference(w, g):
    return g * unit(w - w.mean(0), 0)


def sigma_reparametrization(w, gamma):
    """gamma W / sigma, sigma the largest singular value."""
    first = jnp.ones(w.shape[1:], w.dtype)
    return gamma * jaxnorm.spectral_norm(w, first, n_steps=200)[0]


def sigma_reference(w, gamma):
    return gamma * w / np.linalg.svd(w)[1].max()


EXPRESSIONS = {
    "PixelNorm": (pixel_norm, lambda x: rms(x, epsilon=1e-8), [IMAGE]),
    "PONO": (pono_with_moment_shortcut, pono_reference, [IMAGE, IMAGE]),
    "QK norm": (query_key_norm, query_key_reference, [(2, 5, 3, 4), (2, 5, 3, 4), ()]),
    "pRMSNorm": (partial_rms_norm, partial_rms_reference, [IMAGE]),
    "class-conditional batch norm": (
        class_conditional_batch_norm,
        class_conditional_reference,
        [IMAGE, (3, 8), (3, 8)],
    ),
    "conditional batch norm": (
        conditional_batch_norm,
        lambda x, g, c: bn(x) * (g + c.reshape(6, 1, 1, 8)),
        [IMAGE, (8,), (6, 8)],
    ),
    "conditional instance norm": (
        conditional_instance_norm,
        conditional_instance_reference,
        [IMAGE, (3, 8), (3, 8)],
    ),
    "IBN": (instance_batch_norm, instance_batch_reference, [IMAGE]),
    "mean-only batch norm": (
        mean_only_batch_norm,
        lambda x, b: x - mean_of(x, (0, 1, 2)) + b,
        [IMAGE, (8,)],
    ),
    "virtual batch norm": (virtual_batch_norm, virtual_batch_reference, [IMAGE, (4, 3, 2, 8)]),
    "AdaBN": (adabn, adabn_reference, [IMAGE, (8,)]),
    "prediction-time batch norm": (
        prediction_time_batch_norm,
        prediction_time_reference,
        [IMAGE, (8,), (8,)],
    ),
    "moving-average batch norm": (
        moving_average_batch_norm,
        moving_average_reference,
        [IMAGE, (8,), (8,)],
    ),
    "sandwich norm": (sandwich_norm, lambda x: x + ln(branch_reference(ln(x))), [(5, 8)]),
    "DeepNorm": (deep_norm, lambda x: ln(24**0.25 * x + branch_reference(x)), [(5, 8)]),
    "layer norm scaling": (layer_norm_scaling, lambda x: ln(x) / 7**0.5, [(5, 8)]),
    "graph layer norm": (graph_layer_norm, of_each_graph(lambda x: bn(x, (0, 1))), [(6, 4)]),
    "graph instance norm": (graph_instance_norm, of_each_graph(lambda x: bn(x, (0,))), [(6, 4)]),
    "MeanSubtraction": (mean_subtraction, lambda x: x - x.mean(0), [(6, 4)]),
    "GraphSizeNorm": (graph_size_norm, lambda x: x / 3**0.5, [(6, 4)]),
    "MessageNorm": (message_norm, message_reference, [(6, 4), (6, 4), ()]),
    "DiffGroupNorm": (diff_group_norm, diff_group_reference, [(6, 4), (4, 3)]),
    "norm per attention head": (norm_per_attention_head, norm_per_head_reference, [(2, 3, 16)]),
    "RMS norm without gamma": (jaxnorm.rms_norm, rms, [(5, 8)]),
    "cosine normalization": (cosine_normalization, cosine_reference, [(5, 8), (8, 3)]),
    "centred weight norm": (centred_weight_norm, centred_weight_reference, [(8, 3), (3,)]),
    "sigma reparametrization": (sigma_reparametrization, sigma_reference, [(8, 3), ()]),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expression_is_its_papers_formula(name, rng):
    expression, formula, shapes = EXPRESSIONS[name]
    arrays = [np.float32(rng.normal(0.5, 2, shape)) for shape in shapes]
    found = jax.tree.leaves(jax.jit(expression)(*arrays))
    expected = jax.tree.leaves(formula(*(np.asarray(a, np.float64) for a in arrays)))
    for value, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, exact, atol=4e-6 * max(1, np.abs(exact).max()), rtol=0)


@jax.default_matmul_precision("highest")  # on GPU dense layers round their inputs
def test_tent_learns_the_parameters_of_norms_alone(rng):
    """Predictions by the test batch's statistics; entropy is lowered by gamma and beta alone."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(8, name="dense")(x)
            norm = jnn.BatchNorm(use_running_average=True, eval_statistics="batch", name="norm")
            return nn.Dense(3, name="head")(nn.relu(norm(x)))

    x = rng.normal(size=(32, 4)).astype(np.float32)
    variables = jax.jit(Model().init)(jax.random.key(0), x)
    params = variables["params"]

    def entropy(params):
        log = jax.nn.log_softmax(Model().apply({**variables, "params": params}, x))
        return -jnp.mean(jnp.sum(jnp.exp(log) * log, -1))

    is_norm = {name: jax.tree.map(lambda _, n=name: n == "norm", params[name]) for name in params}
    labels = jax.tree.map(lambda norm: "learned" if norm else "fixed", is_norm)
    optimizer = optax.multi_transform(
        {"learned": optax.sgd(0.1), "fixed": optax.set_to_zero()}, labels
    )

    @jax.jit
    def learn(params):
        def step(carry, _):
            learned, state = carry
            updates, state = optimizer.update(jax.grad(entropy)(learned), state, learned)
            return (optax.apply_updates(learned, updates), state), None

        (learned, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=3)
        return learned, entropy(learned), entropy(params), Model().apply(variables, x)

    learned, less, before, first = learn(params)
    assert less < before
    for name in ("dense", "head"):
        jax.tree.map(np.testing.assert_array_equal, learned[name], params[name])
    assert (learned["norm"]["gamma"] != params["norm"]["gamma"]).any()
    hidden = x @ np.asarray(params["dense"]["kernel"], np.float64)
    y = np.maximum(bn(hidden, (0,)), 0) @ np.asarray(params["head"]["kernel"], np.float64)
    np.testing.assert_allclose(first, y, atol=1e-5)


def test_weights_on_the_sphere_after_each_step(rng):
    """nGPT's rule: an optax transformation that ends each update on the sphere."""

    def onto_sphere(axis):
        def project(updates, state, params):
            def move(update, w):
                return jaxnorm.weight_norm(w + update, axis=axis) - w

            return jax.tree.map(move, updates, params), state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), project)

    params = {"w": jaxnorm.weight_norm(jnp.asarray(rng.normal(size=(8, 3)), jnp.float32), axis=0)}
    optimizer = optax.chain(optax.sgd(0.5), onto_sphere(0))
    state = optimizer.init(params)
    gradient = {"w": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)}
    updates, _ = optimizer.update(gradient, state, params)
    new = optax.apply_updates(params, updates)
    stepped = np.asarray(params["w"], np.float64) - 0.5 * np.asarray(gradient["w"], np.float64)
    np.testing.assert_allclose(new["w"], unit(stepped, 0), atol=1e-6)
