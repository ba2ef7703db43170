"""What inspect sees in models that are sick in known ways."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm.drop_in.nnx
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx
from jaxnorm import plot, tools
from tests.support.jaxpr_text import initialized

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.usefixtures("close_figures")]
EVALUATION = {"use_running_average": True}


def batches_of(rng, count=2, size=32, shape=(4,)):
    return [rng.normal(3.0, 2.0, (size + 8 * i, *shape)).astype(np.float32) for i in range(count)]


class Net(nn.Module):
    """A norm of each library, one in a loop, behind a layer of known output."""

    @nn.compact
    def __call__(self, x):
        x = jnn.BatchNorm(momentum=0.9, debias=True, name="own", **EVALUATION)(x)
        x = nn.remat(nn.BatchNorm)(name="flax", **EVALUATION)(2 * x + 1)
        split = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(Block, length=2, **split)(name="blocks")(x, None)
        return nn.GroupNorm(num_groups=2, name="group")(nn.RMSNorm(name="rms")(x))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnn.BatchNorm(name="norm", **EVALUATION)(3 * x), None


def test_distances_and_ratios_are_those_of_all_batches(rng):
    batches = batches_of(rng)
    variables = initialized(Net(), batches[0])
    seen = tools.inspect(Net(), variables, batches)
    layers = {layer.path: layer for layer in seen.layers}
    assert list(layers) == ["own", "flax", "blocks/norm", "rms", "group"]
    every = np.concatenate(batches).astype(np.float64)
    own = layers["own"]
    np.testing.assert_allclose(own.distance, -every.mean(0) / every.std(0), rtol=1e-5)
    np.testing.assert_allclose(own.variance_ratio, 1 / every.var(0), rtol=1e-5)
    # Batches come normalized to what follows, as in training.
    np.testing.assert_allclose(layers["flax"].distance, -1 / 2, rtol=1e-4)
    np.testing.assert_allclose(layers["blocks/norm"].variance_ratio, np.full(8, 1 / 9), rtol=1e-4)
    assert (own.updates, own.pooled, own.channels, own.dead) == (0, 32, 4, 0)
    assert (layers["group"].pooled, layers["rms"].pooled) == (2, 4)
    assert not layers["group"].is_batch and list(seen.running) == ["own", "flax", "blocks/norm"]
    assert "its running statistics have never been updated" in seen.findings[0]
    text = str(seen)
    assert text.splitlines()[1].split()[:3] == ["own", "BatchNorm", "4"]
    assert all(f"- {finding}" in text for finding in seen.findings)
    drawn = plot.running_statistics(seen)
    assert [ax.get_title() for ax in drawn.axes if ax.get_title()] == list(seen.running)


def test_a_metric_is_averaged_over_the_examples_of_both_modes(rng):
    batches = batches_of(rng)
    norm = jnn.BatchNorm(epsilon=0.0, use_running_average=True)
    variables = initialized(norm, batches[0])
    seen = tools.inspect(norm, variables, batches, metric=lambda y, x: jnp.square(y).mean())
    assert seen.metrics == {
        "evaluation": pytest.approx(np.square(np.concatenate(batches)).mean(), rel=1e-5),
        "batch": pytest.approx(1, rel=1e-5),
    }
    assert seen.findings[0].startswith("the metric is 1") and "metric, batch: 1" in str(seen)


def test_a_healthy_model_has_no_findings(rng):
    batches = batches_of(rng)
    variables = initialized(Net(), batches[0])
    recalibrated = {**variables, "batch_stats": healthy(variables["batch_stats"], batches)}
    seen = tools.inspect(Net(), recalibrated, batches)
    assert seen.findings == [] and str(seen).endswith("Nothing is wrong.")
    assert all((np.abs(layer.distance) < 0.1).all() for layer in seen.layers if layer.is_batch)


def healthy(stats, batches):
    every = np.concatenate(batches)

    def full(shape, value):
        return np.full(shape, value, np.float32)

    return {
        "own": {
            "mean": every.mean(0),
            "var": every.var(0),
            "count": full(4, 99.0),
        },
        "flax": {"mean": full(4, 1.0), "var": full(4, 4.0)},
        "blocks": {"norm": {"mean": full((2, 4), 0.01), "var": full((2, 4), 9.0)}},
    }


class Sick(nnx.Module):
    """Half precision that overflows, channels that are constant or silent, single values."""

    def __init__(self):
        self.few = jnx.BatchNorm(4)
        self.flax = jaxnorm.drop_in.nnx.BatchNorm(4, momentum=0.9, rngs=nnx.Rngs(0))
        self.single = nnx.GroupNorm(4, num_groups=4, rngs=nnx.Rngs(0))
        self.layer = jnx.LayerNorm(4)

    def __call__(self, x):
        x = self.few(x)
        x = self.flax(x)
        half = self.layer((x * jnp.array([[1.0, 1.0, 1.0, 60_000.0]])).astype(jnp.float16))
        return self.single(x) + half.astype(x.dtype)


def test_findings_name_the_illness_and_the_remedy(rng):
    (x,) = batches_of(rng, 1, 10)
    x[:, 1] = 7.0
    x[:, 2] += 1e4
    model = Sick()
    model.few.gamma.set_value(jnp.array([1.0, 1.0, 1e-4, 1.0]))
    state = nnx.state(model)
    seen = tools.inspect(model, [x])
    expected = [
        ("layer", "inputs are not finite in float16; use bfloat16"),
        ("single", "each statistic is of one value"),
        ("few", "evaluation normalizes 4 of 4 channels otherwise than training"),
        ("few", "its statistics in training are of 10 values, which is noisy; use a larger batch"),
        ("few", "1 of 4 channels are constant (variance 0)"),
        ("few", "a mean is "),
        ("few", "in 1 of 4 channels gamma is below 0.001"),
    ]
    places = []
    for path, words in expected:
        (place,) = (
            i for i, f in enumerate(seen.findings) if f.startswith(f"{path}: ") and words in f
        )
        places.append(place)
    assert places == sorted(places)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not model.few.use_running_average


def test_a_trained_layer_says_how_much_of_its_start_is_left(rng):
    norm = jnn.BatchNorm(momentum=0.9, debias=True, use_running_average=True)
    (x,) = batches_of(rng, 1)
    variables = initialized(norm, x)
    stats = {"mean": x.mean(0), "var": x.var(0), "count": np.full(4, 5, np.float32)}
    (finding,) = tools.inspect(norm, {**variables, "batch_stats": stats}, [x]).findings
    assert "after 5 updates with momentum 0.9 its running statistics are still 59%" in finding


def test_statistics_that_cannot_be_compared_or_are_not_finite(rng):
    (x,) = batches_of(rng, 1)
    norm = jnn.BatchNorm(num_domains=2, use_running_average=True)
    variables = initialized(norm, x, domain=0)
    seen = tools.inspect(norm, variables, [x], call=lambda net, x: net(x, domain=1))
    assert seen.running == {} and seen.findings == [] and "BatchNorm" in str(seen)
    norm = jnn.BatchNorm(use_running_average=True)
    variables = initialized(norm, x)
    stats = {"mean": np.full(4, np.nan), "var": np.full(4, np.inf, np.float32)}
    seen = tools.inspect(norm, {**variables, "batch_stats": stats}, [x])
    assert "its running statistics are not finite; recalibrate" in seen.findings[0] and str(seen)


def test_what_is_not_seen_is_said(rng):
    class Branch(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = nn.LayerNorm(name="norm")
            return nn.cond(x.sum() > 0, lambda m, x: m(x), lambda m, x: m(-x), norm, x)

    (x,) = batches_of(rng, 1)
    variables = {"params": {"norm": {"scale": jnp.ones(4), "bias": jnp.ones(4)}}}
    seen = tools.inspect(Branch(), variables, [x])
    assert seen.layers == [] and seen.findings == [
        "norm: it runs in a branch or in a loop of unknown length, and was not seen."
    ]


def test_masks_count_and_batches_are_called_as_said(rng):
    norm = jnn.BatchNorm(use_running_average=True)
    (x,) = batches_of(rng, 1)
    batch = {"x": np.concatenate([x[:20], np.nan * x[20:]]), "mask": (np.arange(32) < 20)[:, None]}
    variables = initialized(norm, x)
    call = {"call": lambda net, batch: net(batch["x"], mask=batch["mask"])}
    (layer,) = tools.inspect(norm, variables, [batch], **call).layers
    np.testing.assert_allclose(layer.batch.mean, x[:20].mean(0), rtol=1e-5)
    assert (layer.infinite, layer.pooled) == (0, 20)
    batch["mask"] = batch["mask"].astype(np.int32)
    flaxes = nn.Sequential([nn.BatchNorm(use_running_average=True)])
    call = {"call": lambda net, batch: net.layers[0](batch["x"], mask=batch["mask"])}
    (layer,) = tools.inspect(flaxes, initialized(flaxes, x), [batch], **call).layers
    assert (layer.infinite, layer.pooled) == (0, 20)


def test_errors(rng):
    batches = batches_of(rng, 1)
    norm = jnn.BatchNorm(use_running_average=True)
    variables = initialized(norm, batches[0])

    def message(kind, *args, **options):
        with pytest.raises(kind) as error:
            tools.inspect(*args, **options)
        return str(error.value)

    assert message(ValueError, norm, variables, []) == (
        "batches is empty; an inspection needs at least one batch."
    )
    assert message(TypeError, norm, variables) == (
        "inspect takes one iterable of batches after the model and its variables, got 0 more "
        "arguments."
    )
    assert "got ['gamma'" not in message(TypeError, norm, batches)
    assert message(ValueError, norm, {"params": variables["params"]}, batches) == (
        "inspect: variables hold no running mean for the model; give the collection batch_stats "
        "too, as it was trained."
    )
    assert message(
        ValueError, norm, variables, batches, metric=lambda y, x: jnp.square(y).mean(1)
    ) == (
        "metric must return one number, got an array of shape (32,); take its mean over the "
        "examples."
    )
    assert message(
        ValueError, norm, variables, batches, metric=lambda y, x: float(y.mean())
    ).startswith("metric must compute one number by jax.numpy, as under jit, but: ")
    dense = nn.Dense(2)
    assert message(ValueError, dense, initialized(dense, batches[0]), batches) == (
        "Dense calls no normalization of jaxnorm or flax, so that there is nothing to inspect."
    )
    assert message(ValueError, norm, variables, [batches[0][:, :3]]).startswith(
        "BatchNorm cannot be run on the arguments given: "
    )
