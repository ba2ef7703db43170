"""Pictures of the layers of a model, and the record that they are drawn from."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
import jaxnorm.linen as jnn
from jaxnorm import plot
from tests.plot.readable import assert_readable

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.usefixtures("close_figures")]


def test_activations_are_drawn_as_histograms(rng):
    before = {f"block {i}": rng.normal(i, 3.0**i, (40, 8)) for i in range(4)}
    after = {name: (x - x.mean()) / x.std() for name, x in before.items()}
    figure = plot.activations(before, after, labels=("input", "output"))
    assert [ax.get_title() for ax in figure.axes] == ["input", "output"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list(before)
    for ax, layers in zip(figure.axes, (before, after), strict=True):
        described = [t.get_text() for t in ax.child_axes[0].get_yticklabels()]
        assert described[0] == "mean ± std"
        for row, (x, text) in enumerate(zip(layers.values(), described[1:], strict=True)):
            heights, edges, baseline = ax.patches[row].get_data()
            counts, _ = np.histogram(x, edges)
            assert baseline == row
            np.testing.assert_allclose(row - heights, 0.85 * counts / counts.max(), atol=1e-12)
            mean, std = text.replace("\N{MINUS SIGN}", "-").split(" ± ")
            # Both are written to the second digit of the standard deviation: rounded by at most
            # 5 % of it.
            np.testing.assert_allclose(float(mean), x.mean(), atol=0.05 * x.std())
            np.testing.assert_allclose(float(std), x.std(), rtol=0.05)
    assert_readable(figure)


def test_activations_of_extreme_layers():
    layers = {
        "constant": jnp.full(4, 2.0),
        "half": jnp.arange(4, dtype=jnp.bfloat16),
        "diverged": np.array([1.0, np.nan, -np.inf, 3.0]),
        "tiny": np.array([-1e-9, 1e-9]),
    }
    figure = plot.activations(layers)
    (ax,) = figure.axes
    described = [t.get_text() for t in ax.child_axes[0].get_yticklabels()]
    assert described[1:] == [
        "2 ± 0",
        "1.5 ± 1.1",
        "2.0 ± 1.0\n2 not finite",
        "0.0e+00 ± 1.0e\N{MINUS SIGN}09",
    ]
    assert_readable(figure)


def test_wrong_arguments_of_activations():
    with pytest.raises(ValueError) as error:
        plot.activations({})
    assert str(error.value) == "before must hold at least one layer, got none."
    with pytest.raises(ValueError) as error:
        plot.activations({"a": np.ones(2)}, {"b": np.ones(2)})
    assert str(error.value) == (
        "before and after must hold the same layers; only before has ['a'], only after has ['b']."
    )
    with pytest.raises(ValueError) as error:
        plot.activations({"a": np.full(2, np.nan)})
    assert str(error.value) == "layer 'a' holds no finite number; there is nothing to draw."


def make_moments(rng, spread=1.0):
    return jaxnorm.Moments(rng.normal(size=8), np.exp(spread * rng.normal(size=8)), np.ones(()))


def test_running_statistics_are_drawn_against_the_batch(rng):
    running = {f"norm_{i}": make_moments(rng) for i in range(5)}
    running["norm_0"] = make_moments(rng, spread=8.0)
    batch = {name: make_moments(rng) for name in running}
    # Labels with three decimals, which touched each other.
    small = jaxnorm.Moments(np.linspace(-0.066, 0.057, 8), np.linspace(1, 2, 8), np.ones(()))
    running["norm_2"] = batch["norm_2"] = small
    figure = plot.running_statistics(running, batch)
    # Five layers stand in two lines of three; means above standard deviations.
    places = [ax.get_subplotspec() for ax in figure.axes]
    assert [(p.rowspan.start, p.colspan.start) for p in places] == [
        *((0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)),
        *((2, 0), (3, 0), (2, 1), (3, 1)),
    ]
    for i, ax in enumerate(figure.axes):
        name = f"norm_{i // 2}"
        points = ax.collections[0].get_offsets().T
        pair = running[name], batch[name]
        expected = [np.sqrt(m.var) for m in pair] if i % 2 else [m.mean for m in pair]
        np.testing.assert_allclose(points, expected)
        assert ax.get_xlim() == ax.get_ylim()
    assert figure.axes[1].get_xscale() == "log"
    assert figure.axes[3].get_xscale() == "linear"
    assert_readable(figure)


def test_wrong_arguments_of_running_statistics(rng):
    with pytest.raises(ValueError) as error:
        plot.running_statistics({}, {})
    assert str(error.value) == "running must hold at least one layer, got none."
    with pytest.raises(ValueError) as error:
        plot.running_statistics({"a": make_moments(rng)}, {})
    assert str(error.value) == (
        "running and batch must hold the same layers; only running has ['a'], only batch has []."
    )


class Model(nn.Module):
    @nn.compact
    def __call__(self, x, train, mask=None):
        norm = jnn.LayerNorm(name="shared")
        x = norm(norm(x))
        x = jnn.BatchNorm(name="batch")(x, use_running_average=not train, mask=mask)
        return jnn.BatchNorm(name="mine", num_domains=2, use_running_average=not train)(x, domain=0)


def test_record_sees_what_the_norms_see(rng):
    model = Model()
    x = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    mask = jnp.arange(6)[:, None] < 4
    variables = model.init(jax.random.key(0), x, False)
    stats = variables["batch_stats"]["batch"] | {"mean": jnp.arange(4.0)}
    variables["batch_stats"]["batch"] = stats
    expected, updates = model.apply(variables, x, True, mask, mutable=["batch_stats"])
    (y, seen_updates), seen = plot.record(
        model.apply, variables, x, True, mask, mutable=["batch_stats"]
    )
    np.testing.assert_array_equal(y, expected)
    jax.tree.map(np.testing.assert_array_equal, seen_updates, updates)
    assert list(seen.before) == list(seen.after) == ["shared", "shared (2)", "batch", "mine"]
    np.testing.assert_array_equal(seen.before["shared"], x)
    np.testing.assert_array_equal(seen.before["shared (2)"], seen.after["shared"])
    np.testing.assert_array_equal(seen.after["mine"], y)
    # Statistics per domain have no batch's to compare with.
    assert list(seen.running) == list(seen.batch) == ["batch"]
    np.testing.assert_array_equal(seen.running["batch"].mean, np.arange(4.0))
    np.testing.assert_allclose(
        seen.batch["batch"].mean, np.asarray(seen.before["batch"])[:4].mean(0), atol=1e-6
    )
    plot.running_statistics(seen.running, seen.batch)
    plot.activations(seen.before, seen.after)


def test_record_needs_values():
    x = jnp.ones((2, 3))
    norm = jnn.LayerNorm()
    variables = norm.init(jax.random.key(0), x)
    _, seen = plot.record(norm.apply, variables, x)
    assert list(seen.before) == ["LayerNorm"]
    with pytest.raises(ValueError) as error:
        plot.record(jax.jit(norm.apply), variables, x)
    assert str(error.value) == (
        "LayerNorm ran inside jit, scan or remat, so its values are not known. Pass apply "
        "without jax.jit, of a model without nn.scan and nn.remat."
    )
    dense = nn.Dense(2)
    with pytest.raises(ValueError) as error:
        plot.record(dense.apply, dense.init(jax.random.key(0), x), x)
    assert str(error.value) == (
        "no module of jaxnorm.linen that normalizes activations ran. Pass a model that holds "
        "one, and its apply as it is: a jitted function that is compiled already runs no Python "
        "code."
    )


def test_one_array_is_no_dict_of_layers():
    for given in ([np.ones(3)], [{"layer": np.ones(3)}, np.ones(3)]):
        with pytest.raises(TypeError, match=r"must be a dict of arrays by the names of layers, as"):
            plot.activations(*given)
