"""Microbatches whose statistics, or whose whole step, equal those of the full batch."""

import contextlib
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
import jaxnorm.drop_in.linen as dnn
import jaxnorm.linen as jnn
from jaxnorm import tools
from tests.support.jaxpr_text import drawn, initialized

pytestmark = pytest.mark.quickly_compiled

# Sums in another order: a few roundings of 6e-8 of values below 10.
CLOSE = {"rtol": 2e-6, "atol": 4e-6}


@pytest.fixture
def x(rng):
    return (rng.normal(size=(12, 3)) + 1).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def step(norm, variables, stats, x, **options):
    _, new = norm.apply({**variables, "batch_stats": stats}, x, mutable=["batch_stats"], **options)
    return new["batch_stats"]


@pytest.mark.parametrize(
    "options", [{"unbiased": False}, {"momentum": None}, {"momentum": 0.5, "debias": True}], ids=str
)
def test_one_update_for_all_microbatches(x, options):
    """Uneven microbatches, one of them masked; twice, so that averages go on from the first."""
    norm = jnn.BatchNorm(**{"momentum": 0.9, **options}, use_running_average=False)
    variables = initialized(norm, x)
    mask = np.arange(12)[:, None] != 7
    expected = stats = variables["batch_stats"]
    settings = {"momentum": norm.momentum, "unbiased": norm.unbiased, "debias": norm.debias}
    for scale in (1.0, 3.0):
        expected = step(norm, variables, expected, np.float32(scale) * x, mask=mask)
        collecting = tools.accumulate(stats)
        for part in (slice(0, 5), slice(5, 10), slice(10, 12)):
            collecting = step(
                norm, variables, collecting, np.float32(scale) * x[part], mask=mask[part]
            )
        stats = tools.settle(collecting, **settings)
    chex.assert_trees_all_close(stats, expected, **CLOSE)


def test_in_a_scan_over_microbatches(x):
    """The structure does not change, so the statistics can be a scan's carry."""
    norm = jnn.BatchNorm(use_running_average=False)
    variables = initialized(norm, x)

    @jax.jit
    def accumulated(stats, microbatches):
        return jax.lax.scan(
            lambda stats, x: (step(norm, variables, stats, x), None), stats, microbatches
        )[0]

    stats = accumulated(tools.accumulate(variables["batch_stats"]), x.reshape(3, 4, 3))
    expected = step(norm, variables, variables["batch_stats"], x)
    chex.assert_trees_all_close(tools.settle(stats, momentum=0.99), expected, **CLOSE)


def test_the_whole_step_over_a_named_axis(x):
    """Outputs and gradients too, when the microbatches are mapped with a named axis."""

    class Net(nn.Module):
        axis_name: str | None

        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                x = nn.tanh(nn.Dense(3)(x))
                x = jnn.BatchNorm(axis_name=self.axis_name, use_running_average=False)(x)
            return x

    variables = drawn(Net(None), x)

    def gradient(axis_name):
        def loss(params, x):
            y, new = Net(axis_name).apply(
                {**variables, "params": params}, x, mutable=["batch_stats"]
            )
            return (y**3).mean(), new

        def total(params):
            if axis_name is None:
                return loss(params, x)
            mapped = jax.vmap(lambda x: loss(params, x), axis_name=axis_name, out_axes=(0, None))
            values, new = mapped(x.reshape(3, 4, 3))
            return values.mean(), new

        return jax.jit(jax.grad(total, has_aux=True))(variables["params"])

    chex.assert_trees_all_close(gradient("micro"), gradient(None), **CLOSE)


def test_one_layer_in_two_passes(x):
    """Merge the microbatches' moments, then standardize each by the result; gradients included."""
    weights = np.cos(np.arange(36, dtype=np.float32)).reshape(12, 3)

    def in_parts(x):
        parts = jnp.split(x, [5, 9])
        moments = jaxnorm.merge_moments(*(jaxnorm.moments(p, 0) for p in parts))
        y = [jaxnorm.standardize(p, moments, axis=0, epsilon=1e-5) for p in parts]
        return (jnp.concatenate(y) * weights).sum(), moments

    def at_once(x):
        y, moments = jaxnorm.batch_norm(x, axis=0)
        return (y * weights).sum(), moments

    results = [jax.jit(jax.value_and_grad(f, has_aux=True))(x) for f in (in_parts, at_once)]
    chex.assert_trees_all_close(*results, **CLOSE)


def test_moments_stacked_along_an_axis_merge(x):
    stacked = jax.vmap(lambda part: jaxnorm.moments(part, 0))(x.reshape(4, 3, 3))
    merged = jaxnorm.merge_moments(stacked, axis=0)
    whole = jaxnorm.moments(x, 0)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-6)
    np.testing.assert_allclose(merged.var, whole.var, rtol=1e-6)
    np.testing.assert_array_equal(merged.count, np.full(3, 12))


def test_merging_is_stable_at_a_large_mean(x):
    """The parts' means come rounded to 3e-2; times their distance of 0.5, twice, that is 3e-2."""
    x = x + np.float32(1e6)
    stacked = jax.vmap(lambda part: jaxnorm.moments(part, 0))(x.reshape(4, 3, 3))
    expected = np.asarray(x, np.float64).var(0)
    np.testing.assert_allclose(jaxnorm.merge_moments(stacked, axis=0).var, expected, atol=0.03)


def test_domains_accumulate_in_their_own_rows(x):
    norm = jnn.BatchNorm(num_domains=3, use_running_average=False)
    variables = initialized(norm, x, domain=0)
    expected = stats = variables["batch_stats"]
    for domain in (0, 2):
        expected = step(norm, variables, expected, x * (domain + 1), domain=domain)
    stats = tools.accumulate(stats)
    for domain in (0, 2):
        for part in np.split(x * (domain + 1), 2):
            stats = step(norm, variables, stats, part, domain=domain)
    chex.assert_trees_all_close(tools.settle(stats, momentum=0.99), expected, **CLOSE)


def in_parts(model, variables, x, context=contextlib.nullcontext, **options):
    """Returns the statistics after two microbatches, settled."""
    stats = tools.accumulate(variables["batch_stats"])
    with context():
        for part in jnp.split(x, 2):
            stats = step(model, variables, stats, part)
    return tools.settle(stats, momentum=0.9, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"frozen": "all"},
        {"frozen": "statistics"},
        {"update_running": False},
        {"use_running_average": True},
        {"context": lambda: tools.freeze("*")},
        {"norm": dnn.BatchNorm, "use_running_average": True},
        {"norm": dnn.BatchNorm, "context": lambda: tools.freeze("*")},
        {"norm": nn.BatchNorm, "context": lambda: tools.freeze("*")},
        {"norm": nn.BatchNorm, "use_running_average": True},
        {"norm": jnn.SwitchableNorm, "context": lambda: tools.freeze("*")},
        {"norm": jnn.BatchInstanceNorm, "use_running_average": True},
    ],
    ids=lambda options: " ".join(f"{k}={getattr(v, '__name__', v)}" for k, v in options.items()),
)
def test_what_is_frozen_stays_as_it_is(x, options):
    options = {"norm": jnn.BatchNorm, "use_running_average": False, **options}
    norm, context = options.pop("norm"), options.pop("context", contextlib.nullcontext)
    x = x.reshape(4, 3, 3)
    variables = initialized(norm(use_running_average=True), x)
    chex.assert_trees_all_equal(
        in_parts(norm(**options), variables, x, context), variables["batch_stats"]
    )


def test_traced_flags_say_which_microbatches_count(x):
    norm = jnn.BatchNorm(momentum=0.9)
    variables = initialized(norm, x, use_running_average=True)

    def update(stats, x, train):
        flags = {"use_running_average": jnp.asarray(not train)}
        return step(norm, variables, stats, x, **flags)

    stats = tools.accumulate(variables["batch_stats"])
    for part, train in zip(jnp.split(x, 3), (True, False, True), strict=True):
        stats = update(stats, part, train)
    counted = jnp.concatenate([x[:4], x[8:]])
    expected = update(variables["batch_stats"], counted, True)
    chex.assert_trees_all_close(tools.settle(stats, momentum=0.9), expected, **CLOSE)


@pytest.mark.parametrize(
    ("norm", "context"),
    [(dnn.BatchNorm, contextlib.nullcontext), (nn.BatchNorm, dnn.everywhere)],
    ids=["drop-in", "everywhere"],
)
def test_drop_ins_accumulate(x, norm, context):
    norm = norm(momentum=0.9, use_running_average=False)
    variables = initialized(norm, x)
    with context():
        expected = step(norm, variables, variables["batch_stats"], x)
    stats = in_parts(norm, variables, x, context, unbiased=False)
    chex.assert_trees_all_close(stats, expected, **CLOSE)


class Foreign(nn.Module):
    """A batch norm of one's own."""

    @nn.compact
    def __call__(self, x):
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(3))
        var = self.variable("batch_stats", "var", lambda: jnp.ones(3))
        if not self.is_initializing():
            mean.value = x.mean(0)
        return (x - mean.value[None]) / var.value[None]


class Around(nn.Module):
    """Norms in places that are made by transformations."""

    norm: nn.Module

    @nn.compact
    def __call__(self, x):
        split = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}

        def body(norm, x, _):
            return norm(x), None

        norm = nn.scan(body, length=2, metadata_params={nn.PARTITION_NAME: "layers"}, **split)
        return norm(self.norm, x, None)[0]


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize(
    "norm", [nn.BatchNorm(use_running_average=False), Foreign()], ids=["flax", "own"]
)
def test_a_layer_that_cannot_accumulate_is_an_error(x, norm, around):
    model = Around(norm) if around else nn.Sequential((nn.Dense(3), norm))
    variables = drawn(model, x)
    place = "norm" if around else "layers_1"
    with pytest.raises(ValueError) as error:
        in_parts(model, variables, x)
    assert str(error.value).startswith(
        f"the layer of the running mean at batch_stats/{place} cannot accumulate: norms of "
        "jaxnorm.linen and jaxnorm.drop_in.linen do. Norms of flax's do so inside `with "
        "jaxnorm.drop_in.linen.everywhere():`"
    )


def test_boxes_of_a_model_stay(x):
    """Partitioned statistics, under a scan: the accumulated mean is that of the whole batch."""
    model = Around(jnn.BatchNorm(use_running_average=False, momentum=0.9))
    variables = drawn(model, x)
    boxed = nn.Partitioned(variables["batch_stats"]["norm"]["mean"], ("layers", "d"))
    stats = {"norm": {**variables["batch_stats"]["norm"], "mean": boxed}}
    expected = step(model, variables, stats, x)
    new = in_parts(model, {**variables, "batch_stats": stats}, x)
    assert new["norm"]["mean"].names == ("layers", "d")
    np.testing.assert_allclose(
        new["norm"]["mean"].value[0], expected["norm"]["mean"].value[0], rtol=1e-5, atol=1e-5
    )


def test_nothing_to_accumulate():
    with pytest.raises(ValueError) as error:
        tools.accumulate({"layer": {"u": jnp.ones(3)}})
    assert str(error.value) == "batch_stats holds no running mean and var to accumulate for."
    with pytest.raises(ValueError) as error:
        tools.settle({"layer": {"mean": jnp.ones(3), "var": jnp.ones(3)}}, momentum=0.9)
    assert str(error.value) == (
        "batch_stats holds no accumulators; put them there with accumulate."
    )
