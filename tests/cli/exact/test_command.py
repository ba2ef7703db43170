"""`python -m jaxnorm exact`, through the command line and piece by piece."""

import csv

import numpy as np
import pytest

from jaxnorm.__main__ import main
from jaxnorm.cli.exact import command, measure
from jaxnorm.cli.machine import Machine
from jaxnorm.cli.peers import installed
from jaxnorm.cli.peers.case import EPSILON, NORMS, Case, Data
from tests.support import reference

HEADER = (
    "norm,library,error_at_1,error_at_100,error_at_10000,error_at_1e+06,kept_float32,kept_bfloat16,"
    "failure,seed,device,cpu,versions,date"
)
SMALL = {"layer": (8, 32), "rms": (8, 32), "batch": (4, 3, 2, 32)}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(measure, "SHAPES", SMALL)


def test_a_run_prints_a_table_and_writes_csv(tmp_path, capsys, small):
    arguments = ["exact", "--norms", "layer,batch", "--peers", "flax.linen", "--seed", "3"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == f"Done; wrote {tmp_path}/exact.csv."
    lines = printed.out.splitlines()
    assert any(line.startswith("│ layer │ jaxnorm    │") for line in lines)
    assert any(line.startswith("│       │ flax.linen │") for line in lines)
    assert lines[-1].startswith("Measured on ")
    with (tmp_path / "exact.csv").open(newline="") as file:
        assert file.readline().rstrip() == HEADER
        file.seek(0)
        rows = list(csv.DictReader(file))
    assert [(r["norm"], r["library"]) for r in rows] == [
        (norm, library) for norm in ("layer", "batch") for library in ("jaxnorm", "flax.linen")
    ]
    for row in rows:
        errors = [float(row[name]) for name in HEADER.split(",")[2:6]]
        assert row["seed"] == "3" and row["failure"] == ""
        # A nonzero error shows that nothing was compared with itself.
        assert all(error > 0 for error in errors)
        if row["library"] == "jaxnorm":
            # The contract's bound; gamma and beta take the output to about 5.
            assert max(errors) < 4e-6 * 5 / 3
            # Three statistics of each row or channel, and gamma.
            small = 4 * (8 * 3 + 32) if row["norm"] == "layer" else 4 * (32 * 3 + 32)
            kept = (float(row["kept_float32"]), float(row["kept_bfloat16"]))
            size = np.prod(SMALL[row["norm"]])
            assert 1 <= kept[0] <= 1.05 + small / (4 * size)
            assert 1 <= kept[1] <= 1.05 + small / (2 * size)


def test_markdown_is_ready_for_a_readme(tmp_path, capsys, small):
    arguments = "exact --norms rms --peers flax.linen --markdown --out".split()
    assert main([*arguments, str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == [
        "| norm | library | error at 1 | error at 100 | error at 10000 | error at 1e+06 | "
        "kept, float32 | kept, bfloat16 |",
        "| :-- | :-- | --: | --: | --: | --: | --: | --: |",
    ]
    assert lines[4].startswith("| rms | jaxnorm | ")
    assert lines[5].startswith("| rms | flax.linen | ")


class Fake:
    """A library whose result is off by a given amount."""

    version = "1"
    norms = NORMS

    def __init__(self, name, offset=0.0, error=None):
        self.name, self.offset, self.error = name, offset, error

    def evaluate(self, case, data):
        if self.error:
            raise self.error
        y = measure.reference(case.norm, data)
        y.flat[7] += self.offset
        return (y,)

    def kept_bytes(self, case, data):
        return 3 * case.input_bytes


def test_the_largest_error_counts_and_nan_is_one(tmp_path, capsys, small, monkeypatch):
    libraries = [
        Fake("jaxnorm", 0.5),
        Fake("haiku", np.nan),
        Fake("torch", error=TypeError("no\nreason")),
    ]
    monkeypatch.setattr(
        installed, "load", lambda names: (libraries, ["equinox: it is not installed"])
    )
    assert main(["exact", "--norms", "layer", "--markdown", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4:7] == [
        "| layer | jaxnorm | 5e-01 | 5e-01 | 5e-01 | 5e-01 | 3.00 | 3.00 |",
        "| layer | haiku | nan | nan | nan | nan | 3.00 | 3.00 |",
        "| layer | torch | – | – | – | – | – | – |",  # noqa: RUF001
    ]
    assert "torch cannot run layer norm here: TypeError: no" in lines
    assert "Not compared: equinox: it is not installed." in lines


def test_a_failure_of_jaxnorm_is_a_defect(tmp_path, monkeypatch):
    libraries = [Fake("jaxnorm", error=TypeError("a defect"))]
    monkeypatch.setattr(installed, "load", lambda names: (libraries, []))
    with pytest.raises(TypeError, match="a defect"):
        main(["exact", "--norms", "layer", "--out", str(tmp_path)])


def test_an_interrupted_run_keeps_what_was_measured(tmp_path, capsys, small, monkeypatch):
    class Interrupted(Fake):
        def kept_bytes(self, case, data):
            if case.norm == "rms":
                raise KeyboardInterrupt
            return super().kept_bytes(case, data)

    monkeypatch.setattr(installed, "load", lambda names: ([Interrupted("jaxnorm")], []))
    assert main(["exact", "--norms", "layer,rms", "--out", str(tmp_path)]) == 130
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"Interrupted, kept what was measured; wrote {tmp_path}/exact.csv."
    with (tmp_path / "exact.csv").open(newline="") as file:
        assert [r["norm"] for r in csv.DictReader(file)] == ["layer"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            "--peers numpy",
            "argument --peers: unknown 'numpy', expected flax.linen, haiku, equinox, tokamax, "
            "torch, torch.compile (see python -m jaxnorm exact --help)",
        ),
        (
            "--norms layer,layer",
            "argument --norms: 'layer' is given twice (see python -m jaxnorm exact --help)",
        ),
    ],
)
def test_mistakes_are_one_line_and_status_2(capsys, arguments, text):
    assert main(["exact", *arguments.split()]) == 2
    assert capsys.readouterr() == ("", f"jaxnorm: {text}\n")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mean", measure.RATIOS)
def test_the_reference_is_the_papers_formula_in_float64(norm, mean):
    shape = (3, 40) if norm in ("layer", "rms") else (3, 4, 5, 64)
    pools = {
        "batch": reference.pools_over(shape, (0, 1, 2)) if len(shape) == 4 else None,
        "instance": reference.pools_over(shape, (1, 2)) if len(shape) == 4 else None,
        "group": reference.pools_of_groups(shape, 32, -1, (1, 2)) if len(shape) == 4 else None,
    }.get(norm, reference.pools_over(shape, (-1,)))
    data = Data(Case(norm, shape, "float32"), mean=mean)
    gamma, beta = (*data.parameters, None)[:2]
    expected = reference.normalize(
        data.x,
        gamma,
        beta,
        formula=reference.over_rms if norm == "rms" else reference.standardized,
        pools=pools,
        feature_axes=(-1,),
        epsilon=EPSILON,
    )
    # At mean / std 1e6 float64 leaves 1e-10 of the standard deviation; the measured errors
    # start at 1e-7.
    np.testing.assert_allclose(measure.reference(norm, data), expected, rtol=0, atol=1e-9)


def test_the_inputs_have_the_mean_and_deviation_they_are_said_to_have():
    for mean in measure.RATIOS:
        x = Data(Case("layer", (100, 100), "float32"), mean=mean).x.astype(np.float64)
        # Of 10,000 values; float32 at 1e6 has steps of 1/16.
        assert x.mean() == pytest.approx(mean, abs=0.05)
        assert x.std() == pytest.approx(1, abs=0.05)


def test_rows_name_the_machine():
    row = measure.Row("layer", "jaxnorm", (1.0, 2.0, 3.0, 4.0), (1.0, 1.5))
    machine = Machine("cpu", "Some CPU, 2 cores", "jax 1", "2026-01-02")
    (found,) = command.make_rows([row], machine, 5)
    assert ",".join(found) == HEADER
    assert (found["cpu"], found["date"], found["seed"]) == ("Some CPU, 2 cores", "2026-01-02", 5)
