"""What the comparison shows: the summary over seeds, the CSV, the table, the picture."""

import io
import itertools

import matplotlib.text
import numpy as np
import pytest
from rich.console import Console

from jaxnorm.cli.compare.norms import CLASSICAL, NORMS
from jaxnorm.cli.compare.picture import REST_STYLE, STYLES, draw
from jaxnorm.cli.compare.results import (
    Point,
    Result,
    make_grid,
    make_rows,
    summarize,
)
from jaxnorm.cli.compare.settings import Setting
from jaxnorm.cli.outputs import write_csv
from jaxnorm.cli.tables import make_table
from tests.cli.compare.rows import HEADER, make_result

pytestmark = pytest.mark.quickly_compiled


def test_the_classical_norms_have_styles_of_their_own():
    assert list(STYLES)[: len(CLASSICAL)] == list(CLASSICAL)


def test_the_target_is_counted_from_its_first_appearance():
    assert make_result("none", 2, 1.0, curve=(0.7, 0.8, 0.6)).steps_to_target == 20
    assert make_result("none", 2, 1.0, curve=(0.7, 0.79)).steps_to_target is None


def test_the_summary_over_seeds():
    results = [
        make_result("rms", 2, 0.1, 0, curve=(0.5, 0.9), ms=1.0),
        make_result("none", 2, 0.1, 0, curve=(0.2, 0.4)),
        make_result("rms", 2, 0.1, 1, curve=(0.8, 0.8), ms=2.0),
        make_result("rms", 2, 0.1, 2, curve=(0.5, 0.7), ms=9.0),
        make_result("none", 2, 0.2, 0, curve=(0.2, 0.8)),
    ]
    rms, none, other = summarize(results)
    assert (rms.norm, rms.batch_size, rms.learning_rate) == ("rms", 2, 0.1)
    assert rms.mean_accuracy == pytest.approx(0.8)
    # The sample deviation of 0.9, 0.8, 0.7; the median of 20 and 10.
    assert (rms.accuracy_text, rms.steps_text) == ("0.800 ± 0.100", "15 (2 of 3)")
    assert rms.ms_per_step == 2.0
    assert (none.accuracy_text, none.steps_text) == ("0.400", "never")
    assert (other.accuracy_text, other.steps_text) == ("0.800", "20")


def test_the_csv_of_results(tmp_path):
    diverged = Result(Setting("none", 2, 1.0, 3), (Point(7, 0.1, float("nan")),), 0.95, 0.25)
    reached = make_result("rms", 32, 0.03, curve=(0.5, 0.91234567))
    write_csv(tmp_path / "a.csv", make_rows([diverged, reached]))
    assert (tmp_path / "a.csv").read_text().splitlines() == [
        ",".join(HEADER),
        "none,2,1.0,3,7,0.1000,nan,0.95,,0.2500",
        "rms,32,0.03,0,20,0.9123,1,0.8,20,1.0000",
    ]


def test_the_table_groups_by_batch_size_and_learning_rate():
    results = [
        make_result(norm, batch_size, rate, curve=(0.5, accuracy))
        for (batch_size, rate, norm), accuracy in {
            (2, 0.1, "none"): 0.8,
            (2, 0.1, "batch"): 0.9,
            (2, 1.0, "none"): 0.1,
            (32, 0.1, "none"): 0.7,
        }.items()
    ]
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(make_table(make_grid(results, "data [of] mine"), 80))
    lines = console.file.getvalue().splitlines()
    assert lines[0].strip() == "data [of] mine"
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert cells == [
        ["2", "0.1", "none", "0.800", "20", "1.00"],
        ["", "", "batch", "0.900", "20", "1.00"],
        ["", "1", "none", "0.100", "never", "1.00"],
        ["32", "0.1", "none", "0.700", "never", "1.00"],
    ]
    # 80 columns hold the widest cells uncut.
    wide = [make_result("instance", 128, 0.003, s, curve=(0.1 * s, 0.9)) for s in range(9)]
    wide.append(make_result("instance", 128, 0.003, 9, curve=(0.1,)))
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(make_table(make_grid(wide, ""), 80))
    assert "0.820 ± 0.253 │ 20 (9 of 10) │" in console.file.getvalue()


def make_results(norms, batch_sizes, rates):
    rng = np.random.default_rng(0)
    return [
        make_result(norm, batch_size, rate, curve=tuple(np.sort(rng.uniform(0.1, 1, 20))))
        for norm in norms
        for batch_size in batch_sizes
        for rate in rates
    ]


def drawn_texts(figure):
    """The texts that are really drawn (ticks beyond the limits are not), and their boxes."""
    drawn = {}
    draw_text = matplotlib.text.Text.draw

    def record(text, renderer):
        draw_text(text, renderer)
        if text.get_visible() and text.get_text():
            drawn[text] = text.get_window_extent(renderer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.text.Text, "draw", record)
        figure.savefig(io.BytesIO(), dpi=figure.dpi)
    return [(text.get_text(), box) for text, box in drawn.items()]


@pytest.mark.parametrize(
    ("norms", "batch_sizes", "rates"),
    [
        (CLASSICAL, (2, 8, 32), (0.03, 0.1, 0.3, 1.0)),
        (NORMS, (32, 2), (0.1, 1.0)),
        (("none",), (2,), (0.1,)),
        (("layer", "instance"), (1, 2, 4, 8, 16, 1024), (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 3.0)),
    ],
)
def test_no_two_texts_of_the_picture_overlap(norms, batch_sizes, rates):
    title = "digits: 1347 training and 450 test examples, 6 epochs, 10 seeds"
    figure = draw(make_results(norms, batch_sizes, rates), title)
    texts = drawn_texts(figure)
    assert len(texts) > len(norms) * len(batch_sizes) * len(rates)
    for text, box in texts:
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
    for (one, box), (two, other) in itertools.combinations(texts, 2):
        # Shrunk by two pixels: a text's box is larger than its letters.
        assert not box.padded(-2).overlaps(other.padded(-2)), (one, two)


def test_the_picture_shows_the_numbers_that_were_measured():
    results = make_results(("none", "batch"), (2, 8), (0.1, 1.0))
    figure = draw(results, "costs [$1] and $2$")
    texts = [text for text, _ in drawn_texts(figure)]
    assert "costs [$1] and $2$" in texts
    for result in results:
        assert texts.count(f"{100 * result.test_accuracy:.1f}") >= 1
    tables, curves = figure.axes[::3], [a for i, a in enumerate(figure.axes) if i % 3]
    assert [len(axes.texts) for axes in tables] == [4, 4]
    for axes in curves:
        drawn = [line for line in axes.lines if len(line.get_xdata()) == 20]
        assert [line.get_color() for line in drawn] == [STYLES[n][0] for n in ("none", "batch")]
    first = figure.axes[1].lines[0].get_ydata()
    accuracies = np.array([point.test_accuracy for point in results[0].curve])
    np.testing.assert_allclose(1 / (1 + np.exp(-np.asarray(first))), accuracies, rtol=1e-12)


def test_the_columns_of_the_picture_share_their_steps():
    results = [
        make_result("none", 2, 0.1, curve=(0.1,) * 20),
        make_result("none", 2, 1.0, curve=(0.1,)),  # diverged, or interrupted
        make_result("none", 8, 0.1, curve=(0.1,) * 5),
    ]
    figure = draw(results, "")
    first, second = figure.axes[1:3], figure.axes[4:6]
    for column in (first, second):
        assert column[0].get_xlim() == column[1].get_xlim()
        assert [a.xaxis.get_tick_params()["labelbottom"] for a in column] == [False, True]
    assert first[0].get_xlim()[1] > second[0].get_xlim()[1]


def test_of_many_norms_the_best_and_none_are_in_colour():
    curves = {norm: (0.5, 0.6 + i / 100) for i, norm in enumerate(NORMS)}
    figure = draw([make_result(norm, 2, 0.1, curve=curve) for norm, curve in curves.items()], "")
    lines = dict(zip(NORMS, figure.axes[1].lines, strict=False))
    grey = [norm for norm, line in lines.items() if line.get_color() == REST_STYLE["color"]]
    assert grey == list(NORMS)[1 : 1 - len(STYLES)]  # the accuracies rise
    colours = {lines[norm].get_color() for norm in set(NORMS) - set(grey)}
    assert colours == {color for color, *_ in STYLES.values()}
    assert lines["none"].get_color() == STYLES["none"][0]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [*(n for n in NORMS if n not in grey), "target 0.8", "the rest"]


def test_the_picture_of_extreme_accuracies_and_unequal_curves():
    results = [
        make_result("none", 2, 0.1, 0, curve=(0.0, 0.0)),
        make_result("none", 2, 0.1, 1, curve=(0.5,)),  # diverged: stays where it was
        make_result("batch", 2, 0.1, 0, curve=(1.0, 1.0)),
    ]
    figure = draw(results, "")
    lines = figure.axes[1].lines
    assert np.isfinite(lines[1].get_ydata()).all()
    np.testing.assert_allclose(1 / (1 + np.exp(-np.asarray(lines[0].get_ydata()))), [0.25, 0.25])
