"""Pictures: what is coloured, what the labels say, and that no two labels overlap."""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

import jaxnorm
import jaxnorm.linen as jnn
from jaxnorm import __main__, _plot_cubes, plot

mpl.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def caption(ax) -> str:
    return ax.texts[-1].get_text()


def assert_readable(figure) -> None:
    """Asserts that every text lies within the picture and none on another."""
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    # Ticks outside the limits are not drawn, nor those of cubes.
    drawn = {t: False for ax in figure.axes if not ax.axison for t in ax.findobj(Text)}
    drawn |= {t: True for ax in figure.axes for t in (*ax.texts, ax.title)}
    for ax in filter(lambda ax: ax.axison, figure.axes):
        for child in (ax, *ax.child_axes):
            for axis in (child.xaxis, child.yaxis):
                low, high = sorted(axis.get_view_interval())
                for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                    inside = low <= tick.get_loc() <= high
                    drawn[tick.label1] = inside and tick.label1.get_visible()
                    drawn[tick.label2] = inside and tick.label2.get_visible()
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts if drawn.get(t, True)]
    for text, box in boxes:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        assert inside, f"{text!r} is cut off"
    for (a, box_a), (b, box_b) in itertools.combinations(boxes, 2):
        assert not box_a.overlaps(box_b), f"{a!r} overlaps {b!r}"


def coloured_cells(ax) -> list[int]:
    """Returns the number of coloured cells on the left, right and top faces."""
    cells = ax.collections[0]
    hue = np.array(to_rgb(_plot_cubes.POOLED))
    faces = {}
    for light in (_plot_cubes.LEFT, _plot_cubes.RIGHT, _plot_cubes.TOP):
        same = np.isclose(cells.get_facecolors()[:, :3], light * hue).all(axis=1)
        faces[light] = int(same.sum())
    return list(faces.values())


@pytest.mark.parametrize(
    "axis", [a for k in range(5) for a in itertools.combinations(range(4), k)], ids=str
)
def test_the_coloured_cells_are_those_that_share_the_corner_mean(axis):
    shape = (3, 2, 4, 5)
    ax = plot.pools(shape, axis)
    # Which elements have the same mean as the corner, from the means themselves.
    x = np.arange(math.prod(shape), dtype=np.float64).reshape(shape)
    means = np.broadcast_to(x.mean(axis=axis, keepdims=True) if axis else x, shape)
    pooled = means == means[0, 0, 0, 0]
    left, right = pooled[:, :, :, 0].sum(), pooled[0].sum()
    # The top is the first of the stacked positions, whatever their order.
    assert coloured_cells(ax) == [left, right, pooled[:, 0, 0, :].sum()]
    pools = len(np.unique(means))
    assert caption(ax).startswith(f"{pools} mean")
    # A line around each face and one between neighbouring pools.
    runs = [len(np.unique(means[:, 0, 0, 0])), len(np.unique(means[0, 0, 0]))]
    runs.append(len(np.unique(means[0, :, :, 0])))
    lines = sum(runs[i] + 1 + runs[j] + 1 for i, j in ((0, 2), (1, 2), (0, 1)))
    assert len(ax.collections[1].get_segments()) == lines


@pytest.mark.parametrize(
    ("options", "faces", "text"),
    [
        ({"axis": (1, 2), "num_groups": 2}, [6, 24, 4], "8 means, each of 24 values"),
        ({"axis": (1, 2), "group_size": 2}, [6, 12, 2], "16 means, each of 12 values"),
        ({"axis": 0, "num_virtual_batches": 2}, [2, 1, 2], "96 means, each of 2 values"),
        ({"axis": -1}, [1, 8, 8], "24 means, each of 8 values"),
        ({"axis": (0, 1, 2, 3)}, [24, 48, 32], "1 mean, of 192 values"),
        ({"axis": ()}, [1, 1, 1], "192 means, each of 1 value"),
    ],
    ids=str,
)
def test_groups_and_virtual_batches(options, faces, text):
    ax = plot.pools((4, 3, 2, 8), **options)
    assert coloured_cells(ax) == faces
    assert caption(ax) == text


def test_captions_count_what_the_functions_pool():
    for shape, axis in (((4, 6, 6, 8), (0, 1, 2)), ((7, 5), 0), ((2, 3, 4, 5, 6), (-1, 1))):
        m = jaxnorm.moments(jnp.ones(shape), axis)
        ax = plot.pools(shape, axis)
        assert caption(ax) == f"{m.mean.size} means, each of {int(m.count)} values"


@pytest.mark.parametrize(
    ("shape", "channel_axis", "names"),
    [
        ((5,), -1, "C"),
        ((5, 4), -1, "NC"),
        ((5, 4), 0, "CL"),
        ((5, 4, 3), -1, "NLC"),
        ((5, 4, 3, 2), -1, "NHWC"),
        ((5, 4, 3, 2), 1, "NCHW"),
        ((5, 4, 3, 2), 0, "CDHW"),
        ((5, 4, 3, 2, 6), 4, "NDHWC"),
    ],
)
def test_axes_have_their_usual_names(shape, channel_axis, names):
    division = _plot_cubes.Division.make(shape, 0, channel_axis=channel_axis)
    assert "".join(division.names) == names
    letters = [t.get_text() for t in plot.pools(shape, 0, channel_axis=channel_axis).texts[:-1]]
    sizes = dict(zip(names, shape, strict=True))
    spatial = [n for n in names if n not in "NC"]
    expected = [f"{n} = {sizes[n]}" for n in "NC" if n in names]
    if spatial:
        # Axis 0 is pooled; if it is stacked, it is the innermost.
        times = " \N{MULTIPLICATION SIGN} "
        stack = [f"{sizes[n]}" for n in spatial]
        expected.append(f"{times.join(spatial)} = {times.join(stack)}")
    assert letters == expected


def test_more_than_six_axes_and_names_of_ones_own():
    division = _plot_cubes.Division.make((2,) * 7, 0)
    assert division.names == ("N", "S1", "S2", "S3", "S4", "S5", "C")
    ax = plot.pools((4, 6), 0, axis_names=("rows", "columns"))
    assert [t.get_text() for t in ax.texts[:-1]] == ["rows = 4", "columns = 6"]


def test_the_pooled_axes_are_stacked_innermost():
    ax = plot.pools((2, 3, 4, 5), (0, 1))
    assert ax.texts[2].get_text() == "W \N{MULTIPLICATION SIGN} H = 4 \N{MULTIPLICATION SIGN} 3"


def test_long_edges_are_cut_and_say_so():
    options = {"axis": (1, 2), "num_groups": 2}
    ax = plot.pools((64, 56, 56, 512), **options)
    assert [t.get_text().split(" (")[-1] for t in ax.texts[:3]] == ["16 drawn)"] * 3
    # Both groups are drawn: half of the channels' cells are coloured.
    assert coloured_cells(ax) == [16, 8 * 16, 8]
    assert caption(ax) == "128 means, each of 802,816 values"


def test_a_default_title_names_the_axes():
    assert plot.pools((2, 3), -1).get_title() == "axis=-1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4, 0), 0), "shape must be one or more positive ints, got (4, 0)."),
        (((), ()), "shape must be one or more positive ints, got ()."),
        (((4, 2.0), 0), "shape must be one or more positive ints, got (4, 2.0)."),
        (
            ((4, 2), 2),
            "axis=2 is out of range for an input of shape (4, 2): each axis must lie in [-2, 1].",
        ),
        (
            ((4, 2), 0, {"num_groups": 3}),
            "num_groups=3 does not divide the 2 channels on axis 1 of the input of shape (4, 2); "
            "choose a divisor of 2.",
        ),
        (
            ((4, 2), 1, {"num_virtual_batches": 2}),
            "num_virtual_batches=2 needs axis 0 among the axes pooled, and must divide it; got "
            "shape (4, 2) and axis=1.",
        ),
        (
            ((4, 2), 0, {"num_virtual_batches": 3}),
            "num_virtual_batches=3 needs axis 0 among the axes pooled, and must divide it; got "
            "shape (4, 2) and axis=0.",
        ),
        (
            ((4, 2), 0, {"axis_names": "N"}),
            "axis_names='N' must hold one name for each axis of shape (4, 2); give 2.",
        ),
    ],
)
def test_wrong_arguments_of_pools(arguments, message):
    shape, axis, *options = arguments
    with pytest.raises(ValueError) as error:
        plot.pools(shape, axis, **(options[0] if options else {}))
    assert str(error.value) == message


def test_norms_draws_the_usual_ones_or_the_given():
    figure = plot.norms((4, 6, 6, 8))
    assert [(ax.get_title(), caption(ax)) for ax in figure.axes] == [
        ("batch norm", "8 means, each of 144 values"),
        ("batch norm of each position", "288 means, each of 4 values"),
        ("layer norm", "4 means, each of 288 values"),
        ("layer norm of each position", "144 means, each of 8 values"),
        ("group norm", "16 means, each of 72 values"),
        ("instance norm", "32 means, each of 36 values"),
    ]
    # Without positions some are the same, and with 7 channels there are no groups.
    assert [ax.get_title() for ax in plot.norms((4, 7)).axes] == ["batch norm", "layer norm"]
    figure = plot.norms((4, 3, 8), {"own": {"axis": 1, "title": "mine"}}, axis_names="abc")
    assert figure.axes[0].get_title() == "mine"
    assert figure.axes[0].texts[0].get_text() == "a = 4"
    with pytest.raises(ValueError) as error:
        plot.norms((1,))
    assert str(error.value) == "there is no normalization of shape (1,) to draw."


def test_cubes_are_readable():
    assert_readable(plot.norms((4, 6, 6, 8)))
    assert_readable(plot.norms((32, 56, 56, 64)))
    assert_readable(plot.pools((8, 16), 0, title="batch norm").figure)


def test_blue_and_grey_differ_in_lightness():
    # Relative luminance (ITU-R BT.709): told apart without any colour vision, on every face.
    def luminance(color, light):
        return float(np.dot(light * np.array(to_rgb(color)), (0.2126, 0.7152, 0.0722)))

    for light in (_plot_cubes.LEFT, _plot_cubes.RIGHT, _plot_cubes.TOP):
        pair = [luminance(c, light) for c in (_plot_cubes.OTHER, _plot_cubes.POOLED)]
        assert pair[0] > 2 * pair[1]


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


def test_the_command_draws_the_usual_ones(tmp_path, capsys):
    out = tmp_path / "new" / "axes.png"
    assert __main__.main(["axes", "--shape", "4,3,3,4", "--out", str(out)]) == 0
    assert capsys.readouterr() == (
        "batch norm: 4 means, each of 36 values\n"
        "batch norm of each position: 36 means, each of 4 values\n"
        "layer norm: 4 means, each of 36 values\n"
        "layer norm of each position: 36 means, each of 4 values\n"
        "group norm: 8 means, each of 18 values\n"
        "instance norm: 16 means, each of 9 values\n"
        f"wrote {out}\n",
        "",
    )
    pixels = plt.imread(out)
    assert pixels.shape[0] > 800 and pixels.shape[1] > 1200


def test_the_command_draws_one(tmp_path, capsys):
    out = tmp_path / "axes.svg"
    line = ["axes", "--shape", "4,8,6,6", "--axis", "2,3", "--channel-axis", "1", "--groups", "2"]
    options = ["--names", "B, F, Y, X", "--title", "my norm", "--out", str(out)]
    assert __main__.main([*line, *options]) == 0
    assert capsys.readouterr().out == f"my norm: 8 means, each of 144 values\nwrote {out}\n"
    assert "<svg" in out.read_text()
    line = ["axes", "--shape=8,2", "--axis=-2", "--virtual-batches=4", "--out", str(out)]
    assert __main__.main(line) == 0
    assert capsys.readouterr().out.startswith("axis=-2: 8 means, each of 2 values\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--shape", "4,x"],
            "argument --shape: expected whole numbers separated by commas, got '4,x' (see python "
            "-m jaxnorm axes --help)",
        ),
        (["--shape", "4,0"], "shape must be one or more positive ints, got (4, 0)."),
        (
            ["--shape", "4,6", "--axis", "0,0"],
            "axis=(0, 0) names an axis of the input of shape (4, 6) more than once; give each axis "
            "once.",
        ),
        (["--shape", "4,6", "--groups", "2"], "--groups needs --axis"),
        (["--shape", "4,6", "--virtual-batches", "2"], "--virtual-batches needs --axis"),
        (
            ["--shape", "4,6", "--names", "N"],
            "axis_names=('N',) must hold one name for each axis of shape (4, 6); give 2.",
        ),
    ],
)
def test_mistakes_of_the_command_are_one_line(tmp_path, capsys, options, message):
    assert __main__.main(["axes", *options, "--out", str(tmp_path / "a.png")]) == 2
    assert capsys.readouterr() == ("", f"jaxnorm: {message}\n")


def test_the_command_checks_the_file_first(tmp_path, capsys):
    out = tmp_path / "axes.doc"
    assert __main__.main(["axes", "--shape", "4,6", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"jaxnorm: cannot write {out}: its suffix must be one of ")
    assert "png" in error and error.count("\n") == 1
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "axes.png"
    assert __main__.main(["axes", "--shape", "4,6", "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"jaxnorm: cannot write to {out.parent}: ")
