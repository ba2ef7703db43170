"""`python -m jaxnorm bench --norms all`: what is in the catalogue, its tables, its growth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from jaxnorm.cli.bench.cases import CATALOGUE, SEGMENTS, WINDOWS
from jaxnorm.cli.bench.catalogue import by_hand, command, functions, growth, of_flax
from jaxnorm.cli.bench.catalogue.entry import Arrays, Entry, as_normalization
from jaxnorm.cli.bench.catalogue.picture import draw_bars
from jaxnorm.cli.peers.case import Case
from jaxnorm.cli.peers.jax_peer import foreign_code
from tests.cli.bench.cells import assert_is_a_picture, make_cell, read_csv, run
from tests.contract.registry import OTHERS

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.usefixtures("reused")]

ENTRIES = functions.list_entries()
SEE_HELP = "(see python -m jaxnorm bench --help)"


def test_every_function_that_normalizes_is_in_the_catalogue():
    assert set(CATALOGUE) == set(jaxnorm.__all__) - set(OTHERS)
    assert {entry.name for entry in ENTRIES} == set(CATALOGUE)
    labels = [(entry.label, entry.shape) for entry in ENTRIES]
    assert len(set(labels)) == len(labels)


def test_entries_and_what_stands_beside_them_are_called_alike():
    for entry in ENTRIES:
        x, *parameters = (
            jax.ShapeDtypeStruct(shape, "float32") for shape in (entry.shape, *entry.parameters)
        )
        for call in (entry.call, *entry.others.values()):
            with foreign_code():
                y, _ = jax.eval_shape(
                    as_normalization(call), x, *parameters, running=entry.constants
                )
            assert y.shape == entry.shape, entry.label


def assert_alike(ours, theirs, *arrays):
    with foreign_code():
        found, expected = (jax.jit(f)(*arrays) for f in (ours, theirs))
        if isinstance(found, tuple):
            found, expected = found[0], expected[0]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", SEGMENTS)
def test_graphs_by_hand_are_the_same(name, monkeypatch):
    monkeypatch.setattr(functions, "NODES", (60, 4))
    entry = functions.make_segments(name, 5)
    (ids,) = entry.constants
    counts = np.bincount(ids, minlength=5)
    assert len(counts) == 5 and counts.max() > 2 * counts.min()
    data = Arrays(entry, "float32")
    call, hand = (
        lambda *a, f=f: f(*a) if f is not entry.call or name != "segment_batch_norm" else f(*a)[0]
        for f in (entry.call, entry.others["by hand"])
    )
    assert_alike(call, hand, data.x, *data.parameters, ids)


@pytest.mark.parametrize(("name", "size"), [("divisive_norm", 5), ("local_response_norm", 3)])
def test_windows_by_hand_are_the_same(name, size, monkeypatch):
    monkeypatch.setattr(functions, "WINDOWED", (2, 7, 6, 4))
    entry = functions.make_window(name, size)
    data = Arrays(entry, "float32")
    assert_alike(entry.call, entry.others["by hand"], data.x, *data.parameters)


def test_weights_by_hand_and_of_flax_are_the_same(rng):
    w, s, u = (jnp.asarray(rng.standard_normal(n), jnp.float32) for n in ((2, 6, 4), 6, 4))
    axes = (0, 1)
    pairs = [
        (
            lambda w: jaxnorm.weight_standardize(w, u, axis=axes),
            lambda w: by_hand.weight_standardize(w, u, axes, False),
        ),
        (
            lambda w: jaxnorm.scaled_weight_standardize(w, u, axis=axes),
            lambda w: by_hand.weight_standardize(w, u, axes, True),
        ),
        (
            lambda w: jaxnorm.demodulate(w, s, axis=axes),
            lambda w: by_hand.demodulate(w, s, axes),
        ),
        (
            lambda w: jaxnorm.weight_norm(w, u, axis=axes),
            lambda w: of_flax.weight_norm(w, u)[0],
        ),
        # Where u has converged: flax.linen's sigma is of the u before.
        (
            lambda w: jaxnorm.spectral_norm(w, u, n_steps=60)[0],
            lambda w: of_flax.spectral_norm(w, jaxnorm.spectral_norm(w, u, n_steps=60)[1])[0],
        ),
    ]
    for ours, theirs in pairs:
        assert_alike(ours, theirs, w)


@pytest.fixture
def tiny(monkeypatch):
    """A catalogue of a norm that libraries have, one by hand, and one alone; in small shapes."""
    monkeypatch.setattr(functions, "WINDOWED", (2, 5, 4))
    entries = [
        Entry("layer_norm", (4, 8), jaxnorm.layer_norm, ((8,), (8,)), kind="layer"),
        functions.make_window("local_response_norm", 3),
        Entry("lp_norm", (4, 8), jaxnorm.lp_norm, ((8,),)),
    ]
    monkeypatch.setattr(command, "list_entries", lambda: entries)


def test_the_catalogue_has_a_row_for_each_function_and_peer(tmp_path, capsys, tiny, reused):
    status, lines, errors = run(
        capsys, *"--norms all --peers flax.linen --rounds 1 --markdown --out".split(), tmp_path
    )
    assert status == 0
    assert errors[-1] == f"Done; wrote {tmp_path}/catalogue.csv and {tmp_path}/catalogue.png."
    table = [line.split(" | ") for line in lines if line.startswith("| ")]
    assert [(row[0], row[3]) for row in table[2:]] == [
        ("| layer_norm", "jaxnorm"),
        ("| layer_norm", "flax.linen"),
        ("| local_response_norm, window 3", "jaxnorm"),
        ("| local_response_norm, window 3", "by hand"),
        ("| lp_norm", "jaxnorm"),
    ]
    (dearest,) = (line for line in lines if line.startswith("The dearest, in copies: "))
    assert all(name in dearest for name in ("layer_norm (", "window 3 (", "lp_norm ("))
    rows = read_csv(tmp_path / "catalogue.csv")
    assert {row["direction"] for row in rows} == {"forward+backward"}
    for row, shown in zip(rows, table[2:], strict=True):
        # A copy is of x alone, forward and backward read and write dy as well.
        assert float(row["times_copy"]) == pytest.approx(
            float(row["milliseconds"]) / float(row["copy_milliseconds"]), rel=1e-3
        )
        assert float(shown[4]) == pytest.approx(float(row["times_copy"]), rel=1e-2)
        assert float(shown[6]) == pytest.approx(int(row["kept_bytes"]) / 128, abs=0.01) or (
            "window" in shown[0]
        )
    assert reused == [True]
    assert_is_a_picture(tmp_path / "catalogue.png")


def test_functions_are_chosen_by_name(tmp_path, capsys, tiny):
    status, _, _ = run(
        capsys, *"--norms lp_norm --quick --rounds 1 --dtypes bfloat16 --out".split(), tmp_path
    )
    assert status == 0
    (row,) = read_csv(tmp_path / "catalogue.csv")
    assert (row["norm"], row["dtype"], row["input_bytes"]) == ("lp_norm", "bfloat16", "64")


def test_growth_is_over_segments_and_windows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(functions, "WINDOWED", (2, 5, 4))
    monkeypatch.setattr(growth, "SIZES", (3, 5))
    status, lines, errors = run(
        capsys,
        *"--growth --norms local_response_norm --rounds 1 --quick --out".split(),
        tmp_path,
    )
    assert status == 0
    assert errors[-1] == f"Done; wrote {tmp_path}/growth.csv and {tmp_path}/growth.png."
    assert [(row["norm"], row["library"]) for row in read_csv(tmp_path / "growth.csv")] == [
        (f"local_response_norm, window {size}", library)
        for size in (3, 5)
        for library in ("jaxnorm", "by hand")
    ]
    assert any(
        line.startswith("local_response_norm float32: from window 3 to window 5") for line in lines
    )
    assert_is_a_picture(tmp_path / "growth.png")


def test_all_functions_of_segments_and_windows_grow():
    found = {entry.name for entry in growth.list_entries()}
    assert found == {*SEGMENTS, *WINDOWS}
    cells = [
        make_cell(Case(f"pair_norm, {number} segments", (4, 8), "float32"), ours=seconds)
        for number, seconds in ((2, 3), (60, 6), (1000, 4))
    ]
    assert growth.describe(cells) == [
        "pair_norm float32: from 2 segments to 1000 segments the most copies are 2.00 times the "
        "fewest."
    ]
    (axes,) = growth.draw(cells, "title").axes
    assert axes.lines[0].get_xdata().tolist() == [2, 60, 1000]
    assert axes.lines[0].get_ydata().tolist() == [3, 6, 4]


def test_the_dearest_come_first_and_failures_are_told():
    cells = [
        make_cell(Case(name, (4, 8), "float32"), True, copy=2.0, ours=seconds)
        for name, seconds in (("whiten", 8.0), ("divisive_norm, window 15", 90.0))
    ]
    cells[0] = cells[0]._replace(failures=(("torch", "TypeError: no"),))
    assert command.describe_dearest(cells) == (
        "The dearest, in copies: divisive_norm, window 15 (45.0), whiten (4.00)."
    )
    assert command.describe_failures(cells) == ["torch cannot run whiten here: TypeError: no"]
    (axes,) = draw_bars(cells, "title").axes
    assert [bar.get_width() for bar in axes.patches] == [4, 45]
    assert axes.collections[0].get_offsets()[:, 0].tolist() == [1.5, 1.5]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            "--norms divisve_norm",
            "argument --norms: unknown 'divisve_norm', expected layer, layer-pixels, layer-odd, "
            "rms, batch, batch-first, group, instance, all or a function of the catalogue; did you "
            f"mean divisive_norm? {SEE_HELP}",
        ),
        ("--norms all,graph_norm", "--norms: all is the whole catalogue; leave the others out"),
        ("--norms layer,all", "--norms: all is the whole catalogue; leave the others out"),
        (
            "--norms graph_norm,batch-first",
            "--norms: graph_norm is measured in shapes of its own, batch-first in --sizes; give "
            "them in two runs, or batch-first as a function: batch_norm",
        ),
        ("--norms all --sizes small", "--sizes has no effect with --norms all; leave it out"),
        ("--norms whiten --shapes 4x8", "--shapes has no effect with --norms whiten; leave it out"),
        (
            "--norms all --growth --megabytes 4",
            "--megabytes has no effect with --norms all; leave it out",
        ),
        (
            "--norms all --models",
            "--norms all has no effect with --models; give layer, rms, batch, group, instance",
        ),
        (
            "--norms graph_norm --compile-for v5e",
            "--norms graph_norm has no effect with --compile-for; give layer, rms, batch, group, "
            "instance",
        ),
        (
            "--norms pair_norm,whiten --growth",
            "--norms: whiten has neither segments nor windows; with --growth expected "
            "segment_batch_norm, graph_norm, pair_norm, divisive_norm, local_response_norm, all",
        ),
    ],
)
def test_mistakes_are_one_line_and_status_2(tmp_path, capsys, arguments, text):
    status, lines, errors = run(capsys, *arguments.split(), "--out", tmp_path)
    assert (status, lines, errors) == (2, [], [f"jaxnorm: {text}"])
