"""`python -m jaxnorm bench`, through the command line and piece by piece. Nothing depends on how
long anything takes."""

import csv
import itertools
import os
import platform
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

import jaxnorm.linen as jnn
from jaxnorm.__main__ import main
from jaxnorm.cli import bench_growth, bench_nets, bench_norms, bench_timing, peers
from jaxnorm.cli.bench_cases import list_cases
from jaxnorm.cli.bench_machine import describe
from jaxnorm.cli.bench_measure import Cell, Measurement, measure
from jaxnorm.cli.bench_picture import draw_cells
from jaxnorm.cli.bench_tables import Grid, geometric_mean, number, to_markdown
from jaxnorm.cli.errors import UserError
from jaxnorm.cli.peers import Case, Data, Program, Unavailable
from jaxnorm.cli.peers_jax import JaxPeer, import_peer, load_jaxnorm
from tests import reference

HEADER = (
    "norm,shape,dtype,direction,library,milliseconds,times_jaxnorm,times_copy,copy_milliseconds,"
    "input_bytes,compile_seconds,temp_bytes,kept_bytes,rounds,pages,device,cpu,versions,date"
)


@pytest.fixture(autouse=True)
def reused(monkeypatch):
    """Leaves the allocator of the process as it is for the other tests; holds what is asked for."""
    asked = []
    monkeypatch.setattr(bench_timing, "reuse_pages", lambda: asked.append(True))
    return asked


def run(capsys, *arguments):
    """Runs the command line: exit status, lines printed, lines of errors."""
    status = main(["bench", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out.splitlines(), printed.err.splitlines()


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_is_a_picture(path):
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[0] > 200 and pixels.shape[1] > 600
    assert np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0).shape[0] > 20


# The whole command


def test_a_run_prints_tables_and_writes_csv_and_picture(tmp_path, capsys, reused):
    status, lines, errors = run(
        capsys,
        *"--norms instance --shapes 2x4x4x8 --dtypes bfloat16 --peers flax.linen".split(),
        *("--rounds", 2, "--pages", "reused", "--out", tmp_path),
    )
    assert status == 0
    assert errors[-1] == f"Done; wrote {tmp_path}/bench.csv and {tmp_path}/bench.png."
    table = "\n".join(lines)
    assert "│ instance │ 2x4x4x8 │ bfloat16 │ forward          │" in table
    assert "│          │         │          │ forward+backward │" in table
    assert lines[-1].startswith("Measured on ") and lines[-1].endswith(
        "; median of 2; reused pages."
    )
    assert f"jax {jax.__version__}" in lines[-1]
    assert_is_a_picture(tmp_path / "bench.png")
    assert reused == [True]

    assert (tmp_path / "bench.csv").read_text().splitlines()[0] == HEADER
    rows = read_csv(tmp_path / "bench.csv")
    assert [(r["library"], r["direction"]) for r in rows] == [
        (library, direction)
        for direction in ("forward", "forward+backward")
        for library in ("jaxnorm", "flax.linen")
    ]
    for ours, theirs in (rows[:2], rows[2:]):
        assert ours["copy_milliseconds"] == theirs["copy_milliseconds"]
        for row in (ours, theirs):
            assert (row["norm"], row["shape"], row["dtype"]) == ("instance", "2x4x4x8", "bfloat16")
            assert row["input_bytes"] == "512" and row["rounds"] == "2"
            assert row["pages"] == "reused"
            assert int(row["temp_bytes"]) >= 0 and float(row["compile_seconds"]) > 0
            # Four digits are written of a ratio.
            quotients = (row["milliseconds"], ours["milliseconds"], row["copy_milliseconds"])
            own, jaxnorms, copys = map(float, quotients)
            assert float(row["times_jaxnorm"]) == pytest.approx(own / jaxnorms, rel=1e-3)
            assert float(row["times_copy"]) == pytest.approx(own / copys, rel=1e-3)
    assert [row["kept_bytes"] == "" for row in rows] == [True, True, False, False]
    # x and gamma, and the statistics of 2 x 8 instances, three values each: no array more.
    assert 512 <= int(rows[2]["kept_bytes"]) <= 512 + 4 * 8 + 3 * 4 * 16


def test_markdown_holds_the_same_tables_without_frames(tmp_path, capsys, reused):
    status, lines, _ = run(
        capsys,
        *"--norms rms --shapes 4x8 --dtypes float32 --peers flax.linen --rounds 1".split(),
        *("--markdown", "--out", tmp_path),
    )
    assert status == 0
    header = next(i for i, line in enumerate(lines) if line.startswith("| norm | shape |"))
    assert lines[header] == (
        "| norm | shape | dtype | direction | jaxnorm ms | jaxnorm / copy | flax.linen |"
    )
    assert lines[header + 1] == "| :-- | :-- | :-- | :-- | --: | --: | --: |"
    assert lines[header + 2].startswith("| rms | 4x8 | float32 | forward | ")
    assert lines[header + 3].startswith("| rms | 4x8 | float32 | forward+backward | ")
    assert not any("│" in line for line in lines)
    assert lines[-1].endswith("; stock pages.") and reused == []


def test_an_interrupted_run_keeps_what_was_measured(tmp_path, capsys, monkeypatch):
    def interrupt_second(case, data, backward, *rest):
        if backward:
            raise KeyboardInterrupt
        return make_cell(case)

    monkeypatch.setattr(bench_norms, "measure", interrupt_second)
    arguments = ("--norms", "layer", "--shapes", "2x4", "--out", tmp_path, "--peers", "flax.linen")
    status, _, errors = run(capsys, *arguments)
    assert status == 130
    assert errors[-1].startswith("Interrupted, kept what was measured; wrote ")
    assert [r["direction"] for r in read_csv(tmp_path / "bench.csv")] == ["forward", "forward"]


def test_a_run_interrupted_at_once_writes_nothing(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_norms, "measure", interrupt)
    status, lines, _ = run(capsys, "--shapes", "2x3x4", "--peers", "flax.linen", "--out", tmp_path)
    assert status == 130
    assert lines == ["Interrupted before the first case was measured; nothing was written."]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            "--norms layer,power",
            "argument --norms: unknown 'power', expected layer, rms, batch, group, instance "
            "(see python -m jaxnorm bench --help)",
        ),
        (
            "--shapes 8x0",
            "argument --shapes: expected two or more positive sizes, such as 128x64, got '8x0' "
            "(see python -m jaxnorm bench --help)",
        ),
        (
            "--shapes 8",
            "argument --shapes: expected two or more positive sizes, such as 128x64, got '8' "
            "(see python -m jaxnorm bench --help)",
        ),
        (
            "--shapes 16x8",
            "instance norm needs a shape of 3 or more sizes, batch first and channels last, got "
            "16x8; see --norms",
        ),
        (
            "--rounds 0",
            "argument --rounds: expected a positive whole number, got '0' "
            "(see python -m jaxnorm bench --help)",
        ),
        (
            "--pages new",
            "argument --pages: unknown 'new', expected stock, reused "
            "(see python -m jaxnorm bench --help)",
        ),
        ("--models --sizes small", "--sizes has no effect with --models; leave it out"),
        ("--growth --shapes 8x8", "--shapes has no effect with --growth; leave it out"),
        ("--megabytes 8", "--megabytes has no effect without --growth; leave it out"),
    ],
)
def test_mistakes_are_one_line_and_status_2(tmp_path, capsys, arguments, text):
    status, lines, errors = run(capsys, *arguments.split(), "--out", tmp_path)
    assert (status, lines, errors) == (2, [], [f"jaxnorm: {text}"])


def test_a_folder_that_cannot_be_made_is_told_before_any_work(tmp_path, capsys):
    (tmp_path / "file").touch()
    status, _, errors = run(capsys, "--quick", "--out", tmp_path / "file")
    assert (status, errors) == (2, [f"jaxnorm: cannot write to {tmp_path}/file: File exists"])


# Which libraries


def make_unavailable(monkeypatch, *names):
    def fail(name):
        if name in names:
            raise Unavailable("it is not installed")
        return load_jaxnorm()

    monkeypatch.setattr(peers, "_load", fail)


def test_a_peer_that_is_asked_for_must_be_there(monkeypatch):
    make_unavailable(monkeypatch, "haiku")
    with pytest.raises(UserError) as caught:
        peers.load(("flax.linen", "haiku"))
    assert str(caught.value) == (
        "cannot compare with haiku: it is not installed; leave it out of --peers"
    )


def test_a_library_that_is_not_installed_says_how_to_get_it():
    with pytest.raises(Unavailable) as caught:
        import_peer("no_such_library", "its-distribution")
    assert str(caught.value) == "it is not installed (pip install its-distribution)"


def test_a_library_that_does_not_fit_says_why(tmp_path, monkeypatch):
    (tmp_path / "misfit.py").write_text("raise AttributeError('jax has no old')")
    (tmp_path / "needy.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)
    for name, reason in (
        ("misfit", "jax has no old"),
        ("needy", "No module named 'no_such_library'"),
    ):
        with pytest.raises(Unavailable) as caught:
            import_peer(name, name)
        assert str(caught.value) == f"its import failed ({reason})"


def test_peers_that_are_not_there_are_named_when_none_is_asked_for(monkeypatch):
    make_unavailable(monkeypatch, "haiku", "torch")
    loaded, missing = peers.load(None)
    assert len(loaded) == 1 + len(peers.PEERS) - 2
    assert missing == ["haiku: it is not installed", "torch: it is not installed"]


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_is_loaded_or_says_why_not(name):
    try:
        ((_, peer), _) = peers.load((name,))
    except UserError as error:
        assert str(error).startswith(f"cannot compare with {name}: it")
    else:
        assert peer.name == name and peer.version[0].isdigit()


SHAPES = {"layer": (6, 64), "rms": (6, 64)}
POOLS = {
    "layer": lambda shape: reference.pools_over(shape, (-1,)),
    "rms": lambda shape: reference.pools_over(shape, (-1,)),
    "batch": lambda shape: reference.pools_over(shape, (0, 1, 2)),
    "group": lambda shape: reference.pools_of_groups(shape, 32, -1, (1, 2)),
    "instance": lambda shape: reference.pools_over(shape, (1, 2)),
}


@pytest.mark.parametrize("name", ("jaxnorm", *peers.PEERS))
def test_every_library_computes_the_same_thing(name):
    try:
        libraries, _ = peers.load(() if name == "jaxnorm" else (name,))
    except UserError as error:
        pytest.skip(str(error))
    library = libraries[-1]
    for norm in library.norms:
        case = Case(norm, SHAPES.get(norm, (3, 4, 2, 64)), "float32")
        data = Data(case)
        gamma, beta = (*data.parameters, None)[:2]
        kind = {"pools": POOLS[norm](case.shape), "feature_axes": (-1,), "epsilon": peers.EPSILON}
        kind["formula"] = reference.over_rms if norm == "rms" else reference.standardized
        vjp = reference.over_rms_vjp if norm == "rms" else reference.standardized_vjp
        y = reference.normalize(data.x, gamma, beta, **kind)
        dx, *dparameters = reference.normalize_vjp(
            data.x, gamma, beta, None, data.dy, vjp=vjp, **kind
        )
        found = library.evaluate(case, data)
        expected = [y, dx, *(d for d in dparameters if d is not None)]
        # Float32, one-pass variances among them; instances of 8 elements make for small
        # variances. A wrong axis, layout, epsilon or parameter errs by 1e-2 and more.
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=2e-4, err_msg=norm)
        assert library.kept_bytes(case, data) >= case.input_bytes


# What is measured


def make_peer(function, name="jaxnorm", norms=peers.NORMS):
    return JaxPeer(name, "1", lambda case: function, norms)


LAYER = Case("layer", (4, 8), "float32")


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (lambda x, gamma, beta: (x * 2 + beta[None], ()), 0),
        # x, used twice, counts once.
        (lambda x, gamma, beta: (x * x * x, ()), 4 * 32 * 2),
        (lambda x, gamma, beta: (jnp.sin(x), ()), 4 * 32),
        # In bfloat16 half of that.
        (lambda x, gamma, beta: (jnp.sin(x.astype(jnp.bfloat16)), ()), 2 * 32),
        # x and gamma.
        (lambda x, gamma, beta: (x * gamma[None], ()), 4 * 32 + 4 * 8),
        # What is not differentiated is not kept.
        (lambda x, gamma, beta: (x, jnp.sin(x)), 0),
    ],
)
def test_kept_bytes_are_the_arrays_that_the_backward_pass_needs(function, kept):
    assert make_peer(function).kept_bytes(LAYER, Data(LAYER)) == kept


def test_the_copy_reads_and_writes_every_byte_and_computes_nothing():
    for dtype in ("float32", "bfloat16"):
        case = LAYER._replace(dtype=dtype)
        data = Data(case)
        for backward, arrays in ((False, [data.x]), (True, [data.x, data.dy])):
            program = bench_timing.copy_program(case, data, backward)
            results = program.wait(program.call())
            assert [(r.shape, r.dtype) for r in results] == [(a.shape, a.dtype) for a in arrays]
            for result, array in zip(results, arrays, strict=True):
                # The last bit differs, and no other.
                bits = f"uint{8 * array.dtype.itemsize}"
                flipped = np.asarray(result).view(bits) ^ array.view(bits)
                assert (flipped == 1).all()


def test_a_library_that_fails_is_left_out_and_named():
    def fail(*_):
        raise RuntimeError("no such kernel\nand a long story")

    libraries = [
        load_jaxnorm(),
        make_peer(fail, "flax.linen"),
        make_peer(fail, "tokamax", norms=("rms",)),
    ]
    cell = measure(LAYER, Data(LAYER), True, libraries, 1)
    assert [m.library for m in cell.measurements] == ["jaxnorm"]
    assert bench_norms.describe_failures([cell]) == [
        "flax.linen cannot run layer norm here: RuntimeError: no such kernel"
    ]


def test_a_failure_of_jaxnorm_is_a_defect():
    def fail(*_):
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        measure(LAYER, Data(LAYER), False, [make_peer(fail)], 1)


class Clock:
    """Time that passes only while the programs below run, and while the clock is told to sleep."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(bench_timing.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(bench_timing.time, "sleep", self.sleep)
        self.log = []

    def sleep(self, seconds):
        self.now += seconds

    def program(self, name, times):
        """A program whose calls take the given times, again and again, and waiting for each 1."""
        times = itertools.cycle(times)

        def call():
            self.log.append(name)
            self.now += next(times)
            return name

        def wait(result):
            assert result == name
            self.now += 1

        return Program(call, wait)


def test_programs_take_turns_and_medians_are_taken(monkeypatch):
    clock = Clock(monkeypatch)
    # The first three calls of each warm up; an outlier among the five rounds does no harm.
    steady, noisy = (
        clock.program("a", [9, 9, 9, 2, 2, 2, 2, 2]),
        clock.program("b", [9, 9, 9, 3, 3, 700, 3, 3]),
    )
    reports = []
    times = bench_timing.interleave([steady, noisy], 5, lambda: reports.append(len(clock.log)))
    assert times == [3, 4]  # with the 1 of waiting
    assert clock.log[:6] == ["a"] * 3 + ["b"] * 3
    assert reports == [8, 10, 12, 14, 16]
    rounds = [tuple(clock.log[i : i + 2]) for i in range(6, 16, 2)]
    assert set(rounds) == {("a", "b"), ("b", "a")}  # both, but not always in the same order


def test_short_programs_are_called_many_times_for_a_sample(monkeypatch):
    clock = Clock(monkeypatch)

    def program(name, seconds):
        return clock.program(name, [seconds])._replace(wait=lambda result: None)

    short, long = program("short", 1e-4), program("long", 0.05)
    times = bench_timing.interleave([short, long], 1)
    assert times == pytest.approx([1e-4, 0.05])
    # 2 + 1 to warm up and look, 10 to look closer, 1 before the sample of 4 ms.
    assert clock.log.count("short") == 13 + 1 + 40
    assert clock.log.count("long") == 3 + 1


def test_queued_calls_are_waited_for_once(monkeypatch):
    clock = Clock(monkeypatch)
    program = clock.program("a", [1e-3])._replace(queues=True)
    monkeypatch.setattr(bench_timing, "SAMPLE_SECONDS", 5.0)
    # Looking: (1e-3 + 1) s for a call; so five calls to the sample, and one wait.
    assert bench_timing.interleave([program], 1) == pytest.approx([1e-3 + 1 / 5])


def test_the_fastest_of_several_ways_counts(monkeypatch):
    clock = Clock(monkeypatch)
    slow, quick = clock.program("slow", [3]), clock.program("quick", [2])
    assert bench_timing.fastest([slow, quick]) is quick
    assert bench_timing.fastest([slow]) is slow


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_reused_pages_cost_no_page_faults():
    code = (
        "import resource, threading, numpy as np\n"
        "from jaxnorm.cli.bench_timing import reuse_pages\n"
        "reuse_pages()\n"
        "def count(megabytes):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    np.ones(megabytes * 2**20, np.uint8)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
        "for megabytes in (100, 1, 8, 100):\n"
        "    count(megabytes)\n"
        "    thread = threading.Thread(target=count, args=(megabytes,))\n"
        "    thread.start(); thread.join()\n"
    )
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    first, *others = (int(line) for line in printed.split())
    # A thread needs some pages of its own; 1 MB are 256 pages, or one huge page and a few.
    assert first > 0 and max(others[1:]) < 64
    assert others[5] == 0  # the main thread has none to add


# What is shown


def make_cell(case, backward=False, copy=1.0, ours=2.0, theirs=3.0, library="flax.linen"):
    kept = case.input_bytes if backward else None
    return Cell(
        case,
        backward,
        copy,
        (
            Measurement("jaxnorm", ours, 0.5, 1000, kept),
            Measurement(library, theirs, 0.25, 3000, kept and 4 * kept),
        ),
    )


def test_the_means_are_geometric_and_of_large_inputs():
    large, small = (1000, 2000), (10, 2000)  # 8 MB and 80 kB
    cells = [
        make_cell(Case("layer", large, "float32"), ours=2, theirs=4),
        make_cell(Case("rms", large, "float32"), ours=4, theirs=32),
        make_cell(Case("rms", small, "float32"), ours=4, theirs=1),
        make_cell(Case("rms", large, "bfloat16"), ours=4, theirs=1),  # 4 MB
        make_cell(Case("rms", large, "float32"), backward=True, ours=4, theirs=1),
    ]
    means = bench_norms.make_means(cells)
    assert means.header == ("dtype", "direction", "cases", "jaxnorm / copy", "flax.linen")
    assert means.rows == [
        ("float32", "forward", "2", "2.83", "4.00"),
        ("float32", "forward+backward", "1", "4.00", "0.25"),
    ]
    assert bench_norms.worst_cells(cells) == [
        "Against flax.linen: 5 cells, 3 below 1, 3 below 0.9; the lowest is 0.25: rms 10x2000 "
        "float32 forward."
    ]
    assert bench_norms.compare_compiling(cells) == [
        "Compile time over that of flax.linen: 2.00 in the mean, at most 2.00: layer 1000x2000 "
        "float32 forward."
    ]


def test_the_tables_show_each_cell_and_leave_blanks():
    cells = [
        make_cell(LAYER, backward=True, copy=1e-3, ours=2e-3, theirs=5e-3),
        make_cell(LAYER._replace(norm="batch"), library="torch"),
    ]
    times = bench_norms.make_times(cells)
    assert times.rows == [
        ("layer", "4x8", "float32", "forward+backward", "2.00", "2.00", "2.50", "–"),  # noqa: RUF001
        ("batch", "4x8", "float32", "forward", "2000", "2.00", "–", "1.50"),  # noqa: RUF001
    ]
    costs = bench_norms.make_costs(cells)
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


def test_the_machine_is_described_with_versions():
    machine = describe([load_jaxnorm()])
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
    large = list_cases(peers.NORMS, ["large"], None, ["bfloat16"])
    assert all(case.input_bytes >= 8e6 for case in large)


def test_groups_divide_the_channels():
    assert [Case("group", (2, c), "float32").num_groups for c in (64, 48, 7)] == [32, 16, 1]


# The other kinds


def test_growth_gives_times_per_byte(tmp_path, capsys, reused):
    status, lines, errors = run(
        capsys,
        *"--growth --megabytes 2,1 --norms layer --dtypes bfloat16 --rounds 1".split(),
        *("--peers", "flax.linen", "--out", tmp_path),
    )
    assert status == 0
    assert errors[-1] == f"Done; wrote {tmp_path}/growth.csv and {tmp_path}/growth.png."
    rows = read_csv(tmp_path / "growth.csv")
    assert len(rows) == 2 * 2 * 2
    assert reused == [True] and {row["pages"] for row in rows} == {"reused"}
    # Sizes in rising order, to the nearest row of 768 features of 2 bytes.
    assert [int(r["shape"].split("x")[0]) for r in rows[::4]] == [683, 1365]
    row = next(line for line in lines if "│ layer │ bfloat16 │ forward   " in line)
    *_, copy, ours, _, _ = (cell.strip() for cell in row.split("│"))
    nanoseconds = 1e6 * float(rows[0]["milliseconds"]) / int(rows[0]["input_bytes"])
    assert float(ours) == pytest.approx(nanoseconds, rel=1e-2)
    nanoseconds = 1e6 * float(rows[0]["copy_milliseconds"]) / int(rows[0]["input_bytes"])
    assert float(copy) == pytest.approx(nanoseconds, rel=1e-2)
    assert_is_a_picture(tmp_path / "growth.png")


def test_growth_compares_the_times_per_byte_of_a_curve():
    cells = [
        make_cell(Case("layer", (rows, 8), "float32"), ours=seconds, copy=rows)
        for rows, seconds in ((10, 2), (20, 8), (40, 4))
    ]
    assert bench_growth.describe_growth(cells) == [
        "layer float32 forward: the longest time per byte is 4.00 times the shortest; of the copy "
        "1.00."
    ]


def test_growth_beyond_the_memory_is_refused(monkeypatch):
    sizes = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 1_000_000}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    bench_growth.check_memory(95, 10)
    with pytest.raises(UserError) as caught:
        bench_growth.check_memory(100, 10)
    assert str(caught.value) == (
        "--megabytes 100 needs about 1 GB of memory, this machine has 1 GB; give smaller sizes"
    )


@pytest.fixture
def tiny_nets(monkeypatch):
    for name, value in {
        "IMAGES": (2, 8, 8, 3),
        "WIDTHS": (32,),
        "BLOCKS": 1,
        "TOKENS": (2, 4),
        "LAYERS": 1,
        "WIDTH": 8,
        "HEADS": 2,
    }.items():
        monkeypatch.setattr(bench_nets, name, value)


def test_models_compare_a_training_step(tmp_path, capsys, tiny_nets):
    status, lines, errors = run(
        capsys, *"--models --norms layer --dtypes bfloat16 --rounds 1 --out".split(), tmp_path
    )
    assert status == 0
    assert errors[-1] == f"Done; wrote {tmp_path}/models.csv and {tmp_path}/models.png."
    assert any(line.startswith("│ transformer, layer norm │ bfloat16 │ ") for line in lines)
    ours, theirs = read_csv(tmp_path / "models.csv")
    assert (ours["library"], theirs["library"]) == ("jaxnorm", "flax.linen")
    assert ours["model"] == theirs["model"] == "transformer, layer norm"
    ratio = float(theirs["milliseconds"]) / float(ours["milliseconds"])
    assert float(theirs["times_jaxnorm"]) == pytest.approx(ratio, rel=1e-3)
    assert int(ours["temp_bytes"]) > 0 and float(ours["compile_seconds"]) > 0
    assert_is_a_picture(tmp_path / "models.png")


@pytest.mark.parametrize("norm", peers.NORMS)
def test_the_models_differ_in_nothing_but_the_library(norm):
    trees = []
    for package in (jnn, nn):
        model, x = bench_nets.make_model(norm, "float32", package)
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        paths = jax.tree_util.tree_flatten_with_path(variables)[0]
        names = {"gamma": "scale", "beta": "bias"}
        trees.append(
            {
                tuple(names.get(key.key, key.key) for key in path): (leaf.shape, leaf.dtype)
                for path, leaf in paths
            }
        )
    assert trees[0] == trees[1]
    name = {"rms": "RMSNorm"}.get(norm, f"{norm.title()}Norm")
    assert sum(path[1].startswith(name) for path in trees[0]) >= 7


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_the_models_train_alike_with_either_library(norm, tiny_nets):
    losses = []
    for package in (jnn, nn):
        step, parameters, running, x, labels = bench_nets.make_step(norm, "float32", package)
        step = jax.jit(step)
        losses.append([])
        for _ in range(4):
            parameters, running, loss = step(parameters, running, x, labels)
            losses[-1].append(float(loss))
        assert (norm == "batch") == bool(jax.tree.leaves(running))
    assert losses[0][-1] < 0.9 * losses[0][0]
    # Four steps at a high rate amplify the rounding of float32; another norm errs by 1e-2.
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
