"""Pictures of arrays as cubes: what is coloured, and what the labels say."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgb

import jaxnorm
from jaxnorm import plot
from jaxnorm.plot import _cubes
from jaxnorm.plot._division import Division
from tests.plot.readable import assert_readable

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.usefixtures("close_figures")]


def caption(ax) -> str:
    return ax.texts[-1].get_text()


def coloured_cells(ax) -> list[int]:
    """Returns the number of coloured cells on the left, right and top faces."""
    cells = ax.collections[0]
    hue = np.array(to_rgb(_cubes.POOLED))
    faces = {}
    for light in (_cubes.LEFT, _cubes.RIGHT, _cubes.TOP):
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
    division = Division.make(shape, 0, channel_axis=channel_axis)
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
    division = Division.make((2,) * 7, 0)
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

    for light in (_cubes.LEFT, _cubes.RIGHT, _cubes.TOP):
        pair = [luminance(c, light) for c in (_cubes.OTHER, _cubes.POOLED)]
        assert pair[0] > 2 * pair[1]
