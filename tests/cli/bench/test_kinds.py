"""The benchmark's other kinds: growth and models."""

import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm.linen as jnn
from jaxnorm.cli.bench import growth, models, nets
from jaxnorm.cli.errors import UserError
from jaxnorm.cli.peers.case import NORMS, Case
from tests.cli.bench.cells import assert_is_a_picture, make_cell, read_csv, run

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.usefixtures("reused")]


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
    assert growth.describe_growth(cells) == [
        "layer float32 forward: the longest time per byte is 4.00 times the shortest; of the copy "
        "1.00."
    ]


def test_growth_beyond_the_memory_is_refused(monkeypatch):
    sizes = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 1_000_000}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    growth.check_memory(95, 10)
    with pytest.raises(UserError) as caught:
        growth.check_memory(100, 10)
    assert str(caught.value) == (
        "--megabytes 100 needs about 1 GB of memory, this machine has 1 GB; give smaller sizes"
    )


@pytest.fixture
def tiny_nets(monkeypatch):
    monkeypatch.setattr(models, "SHAPES", ((2, 4, 12), (2, 4, 4, 64)))
    monkeypatch.setattr(models, "BLOCKS", 1)


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
    assert float(ours["cpu_seconds"]) > 0
    assert_is_a_picture(tmp_path / "models.png")


@pytest.mark.parametrize("norm", NORMS)
def test_the_models_differ_in_nothing_but_the_library(norm):
    trees = []
    (case,) = nets.list_cases([norm], models.SHAPES, ["float32"])
    for package in (jnn, nn):
        model = nets.make_model(case, package, models.BLOCKS)
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(case.shape))
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
    assert sum(path[2].startswith(name) for path in trees[0] if len(path) > 3) >= 8


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_the_models_train_alike_with_either_library(norm, tiny_nets):
    losses = []
    (case,) = nets.list_cases([norm], models.SHAPES, ["float32"])
    for package in (jnn, nn):
        step, parameters, running, x, labels = models.make_step(case, package)
        step = jax.jit(step)
        losses.append([])
        for _ in range(4):
            parameters, running, loss = step(parameters, running, x, labels)
            losses[-1].append(float(loss))
        assert (norm == "batch") == bool(jax.tree.leaves(running))
    assert losses[0][-1] < 0.9 * losses[0][0]
    # Four steps at a high rate amplify the rounding of float32; another norm errs by 1e-2.
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
