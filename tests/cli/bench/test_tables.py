"""What the benchmark shows: means, tables, pictures."""

import io

import pytest
from rich.console import Console

from jaxnorm.cli.bench import norms
from jaxnorm.cli.bench.cases import list_cases
from jaxnorm.cli.bench.picture import draw_cells
from jaxnorm.cli.machine import describe_machine
from jaxnorm.cli.peers.case import NORMS, Case
from jaxnorm.cli.peers.jax_libraries import load_jaxnorm
from jaxnorm.cli.tables import Grid, geometric_mean, make_table, number, to_markdown
from tests.cli.bench.cells import LAYER, make_cell

pytestmark = pytest.mark.quickly_compiled


def test_the_means_are_geometric_and_of_large_inputs():
    large, small = (1000, 2000), (10, 2000)  # 8 MB and 80 kB
    cells = [
        make_cell(Case("layer", large, "float32"), ours=2, theirs=4),
        make_cell(Case("rms", large, "float32"), ours=4, theirs=32),
        make_cell(Case("rms", small, "float32"), ours=4, theirs=1),
        make_cell(Case("rms", large, "bfloat16"), ours=4, theirs=1),  # 4 MB
        make_cell(Case("rms", large, "float32"), backward=True, ours=4, theirs=1),
    ]
    means = norms.make_means(cells)
    assert means.header == ("dtype", "direction", "cases", "jaxnorm / copy", "flax.linen")
    assert means.rows == [
        ("float32", "forward", "2", "2.83", "4.00"),
        ("float32", "forward+backward", "1", "4.00", "0.25"),
    ]
    assert norms.worst_cells(cells) == [
        "Against flax.linen: 5 cells, 3 below 1, 3 below 0.9; the lowest is 0.25: rms 10x2000 "
        "float32 forward."
    ]
    assert norms.compare_compiling(cells) == [
        "Compile time over that of flax.linen: 2.00 in the mean, at most 2.00: layer 1000x2000 "
        "float32 forward."
    ]


def test_the_tables_show_each_cell_and_leave_blanks():
    cells = [
        make_cell(LAYER, backward=True, copy=1e-3, ours=2e-3, theirs=5e-3),
        make_cell(LAYER._replace(norm="batch"), library="torch"),
    ]
    times = norms.make_times(cells)
    assert times.rows == [
        ("layer", "4x8", "float32", "forward+backward", "2.00", "2.00", "2.50", "–"),  # noqa: RUF001
        ("batch", "4x8", "float32", "forward", "2000", "2.00", "–", "1.50"),  # noqa: RUF001
    ]
    costs = norms.make_costs(cells)
    assert costs.header[4:] == tuple(
        f"{name}: {what}"
        for what in ("compile s", "temp MB", "kept")
        for name in ("jaxnorm", "flax.linen")
    )
    assert costs.rows[0][4:] == ("0.50", "0.25", "0.00100", "0.00300", "1.00", "4.00")
    assert costs.rows[1][4:] == ("0.50", "–", "0.00100", "–", "–", "–")  # noqa: RUF001


def test_the_picture_has_a_row_per_size_and_a_bar_per_library():
    small = [(norm, (16, 128)) for norm in ("layer", "rms")] + [("batch", (4, 4, 4, 32))]
    cells = [
        make_cell(Case(norm, shape, dtype), backward, ours=2, theirs=6)
        for norm, shape in [*small, ("layer", (7, 9))]
        for dtype in ("float32", "bfloat16")
        for backward in (False, True)
    ]
    panels = draw_cells(cells, "title").axes
    assert [p.get_title() for p in panels[:4]] == [
        "float32 forward",
        "float32 forward+backward",
        "bfloat16 forward",
        "bfloat16 forward+backward",
    ]
    assert [p.get_ylabel() for p in panels[::4]] == ["small\n16x128\n4x4x4x32", "7x9"]
    names = [[t.get_text() for t in p.get_xticklabels()] for p in panels[::4]]
    assert names == [["layer", "rms", "batch"], ["layer"]]
    heights = [bar.get_height() for bar in panels[0].patches]
    assert heights == [2, 2, 2, 6, 6, 6]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (1234.5, "1234"), (12.345, "12.3"), (0.00012345, "0.000123")],  # noqa: RUF001
)
def test_numbers_have_three_digits_and_no_exponent(value, text):
    assert number(value) == text


def test_the_geometric_mean_of_nothing_is_none():
    assert geometric_mean([]) is None
    assert geometric_mean([2, 8]) == pytest.approx(4)


def test_markdown_aligns_labels_left_and_numbers_right():
    grid = Grid("Title", ("a", "b"), [("x", "1"), ("x", "2")], labels=1)
    assert to_markdown(grid) == "Title:\n\n| a | b |\n| :-- | --: |\n| x | 1 |\n| x | 2 |"


def test_tables_break_names_before_numbers_and_letters_only_where_they_must():
    rows = [("layer", "12.34", "5.678"), ("layer", "9.876", "1.234")]
    grid = Grid("Title", ("norm", "flax.linen / jaxnorm", "jaxnorm ms"), rows, labels=1)

    def lines_of(grid, width):
        console = Console(file=io.StringIO(), width=width)
        console.print(make_table(grid, width))
        return console.file.getvalue().splitlines()

    for width in (80, 30, 25):
        body = [line for line in lines_of(grid, width) if line.startswith("│")]
        cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in body]
        assert cells == [["layer", "12.34", "5.678"], ["", "9.876", "1.234"]]
    # Too narrow: nothing is cut off at the right.
    assert all(line.endswith("│") for line in lines_of(grid, 20) if line.startswith("│"))
    assert len(lines_of(grid._replace(rows=[]), 80)) == 5


@pytest.mark.parametrize("labels", [("layer", "float32"), ("batch-first", "2048x56x56x256")])
def test_no_number_is_cut_at_any_width_from_60(labels):
    header = ("norm", "input", *(f"error at {10**i}, float32" for i in range(9)))
    numbers = [f"{10**i}.5e-07" for i in range(9)]
    grid = Grid("Title", header, [(*labels, *numbers), (*labels, *numbers)], labels=2)
    for width in range(60, 160, 7):
        console = Console(file=io.StringIO(), width=width)
        console.print(make_table(grid, width))
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        cells = [cell.strip() for line in lines for cell in line.split("│")]
        assert all(cells.count(number) == 2 for number in numbers)
        # Each of the tables says what its rows are.
        tables = sum(line.startswith("┏") for line in lines)
        assert all(cells.count(label) == tables for label in labels)


def test_the_machine_is_described_with_versions():
    machine = describe_machine([load_jaxnorm()])
    assert machine.device == "cpu"
    assert machine.cpu.endswith((" core", " cores"))
    for name in ("jaxnorm", "jax", "jaxlib", "Python"):
        assert f"{name} " in machine.versions


def test_cases_are_every_combination_in_order():
    assert list_cases(["layer", "batch"], ["small"], None, ["float32", "bfloat16"]) == [
        Case("layer", (16, 128), "float32"),
        Case("layer", (16, 128), "bfloat16"),
        Case("batch", (4, 4, 4, 32), "float32"),
        Case("batch", (4, 4, 4, 32), "bfloat16"),
    ]
    assert list_cases(["rms"], ["large"], [(3, 5)], ["float32"]) == [Case("rms", (3, 5), "float32")]
    large = list_cases(NORMS, ["large"], None, ["bfloat16"])
    assert all(case.input_bytes >= 8e6 for case in large)


def test_groups_divide_the_channels():
    assert [Case("group", (2, c), "float32").num_groups for c in (64, 48, 7)] == [8, 4, 1]
