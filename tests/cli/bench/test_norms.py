"""`python -m jaxnorm bench` through the command line."""

import jax
import pytest

from jaxnorm.cli.bench import measure
from tests.cli.bench.cells import assert_is_a_picture, make_cell, read_csv, run

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.usefixtures("reused")]

HEADER = (
    "norm,shape,dtype,direction,library,milliseconds,times_jaxnorm,times_copy,copy_milliseconds,"
    "input_bytes,compile_seconds,cpu_seconds,temp_bytes,kept_bytes,rounds,pages,device,cpu,versions,date"
)


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

    monkeypatch.setattr(measure, "measure", interrupt_second)
    arguments = ("--norms", "layer", "--shapes", "2x4", "--out", tmp_path, "--peers", "flax.linen")
    status, _, errors = run(capsys, *arguments)
    assert status == 130
    assert errors[-1].startswith("Interrupted, kept what was measured; wrote ")
    assert [r["direction"] for r in read_csv(tmp_path / "bench.csv")] == ["forward", "forward"]


def test_a_run_interrupted_at_once_writes_nothing(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure", interrupt)
    status, lines, _ = run(capsys, "--shapes", "2x3x4", "--peers", "flax.linen", "--out", tmp_path)
    assert status == 130
    assert lines == ["Interrupted before the first case was measured; nothing was written."]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            "--norms layer,power",
            "argument --norms: unknown 'power', expected layer, layer-pixels, layer-odd, rms, "
            "batch, batch-first, group, instance, all or a function of the catalogue "
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
        (
            "--models --norms batch-first",
            "--norms: batch-first is a matter of data; with --models it is batch",
        ),
        (
            "--compile-for v5e --norms layer,batch-first",
            "--norms: batch-first is a matter of data; with --compile-for it is batch",
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
