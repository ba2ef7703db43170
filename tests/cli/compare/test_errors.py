"""Mistakes of the user of `python -m jaxnorm compare`: one line, status 2."""

import importlib.util
import io

import numpy as np
import pytest

from jaxnorm.__main__ import main
from jaxnorm.cli.compare import command
from jaxnorm.cli.compare.norms import NORMS
from tests.cli.compare.rows import X, Y

pytestmark = pytest.mark.quickly_compiled


def assert_fails(capsys, arguments, message):
    assert main(["compare", *arguments]) == 2
    assert capsys.readouterr() == ("", f"jaxnorm: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--norms batch,weights",
            f"argument --norms: unknown 'weights', expected {', '.join(NORMS)}, all; "
            "did you mean weight?",
        ),
        ("--norms rms,rms", "argument --norms: 'rms' is given twice"),
        ("--batch-sizes 0", "argument --batch-sizes: expected a positive whole number, got '0'"),
        (
            "--learning-rates 0.1,-1",
            "argument --learning-rates: expected a positive number, got '-1'",
        ),
        ("--epochs 1.5", "argument --epochs: expected a positive whole number, got '1.5'"),
        ("--target 95", "argument --target: expected a number above 0 and up to 1, got '95'"),
        (
            "--seeds x",
            "argument --seeds: expected a whole number from 0 to 4294967295, got 'x'",
        ),
    ],
)
def test_a_wrong_argument_is_one_line(capsys, arguments, message):
    assert_fails(capsys, arguments.split(), f"{message} (see python -m jaxnorm compare --help)")


def test_a_missing_package_is_one_line(capsys, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sklearn" else find(name)
    )
    assert_fails(
        capsys,
        ["--out", str(tmp_path)],
        'this command needs sklearn, not installed here: pip install "jaxnorm[demo]"',
    )


def test_an_unwritable_output_is_found_before_training(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "list_jobs", lambda *_: pytest.fail("trained"))
    (tmp_path / "file").touch()
    assert_fails(
        capsys,
        ["--out", str(tmp_path / "file")],
        f"cannot write to {tmp_path}/file: File exists",
    )


def test_hidden_units_that_groups_do_not_divide_are_one_line(capsys):
    assert_fails(
        capsys,
        ["--hidden", "30"],
        "--hidden must be a multiple of 4, the groups of group norm, got 30",
    )


def test_batch_norm_of_single_values_is_one_line(capsys):
    assert_fails(
        capsys,
        ["--batch-sizes", "1,2"],
        "batch norm cannot train with batch size 1: the hidden dense layer would normalize single "
        "values; leave out one of the two, or pass --hidden 0",
    )


def test_a_batch_larger_than_the_data_is_one_line(capsys, images_file, tmp_path):
    assert_fails(
        capsys,
        f"--data {images_file} --out {tmp_path} --batch-sizes 2,37".split(),
        "too few examples: a batch of 37 needs as many training examples, squares leaves 36 of 48",
    )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "{path} has no array y: expected x and y, found x"),
        ({"images": X, "y": Y}, "{path} has no array x: expected x and y, found images, y"),
        ({}, "{path} has no array x: expected x and y, found nothing"),
        (
            {"x": X[..., 0], "y": Y},
            "{path}: x must have the shape (N, H, W, C), got (48, 8, 6)",
        ),
        (
            {"x": X[:, :4], "y": Y},
            "{path}: the images of x must be at least 5 x 5 pixels with 1 channel, got the shape "
            "(48, 4, 6, 1)",
        ),
        (
            {"x": X[..., :0], "y": Y},
            "{path}: the images of x must be at least 5 x 5 pixels with 1 channel, got the shape "
            "(48, 8, 6, 0)",
        ),
        ({"x": X.astype(str), "y": Y}, "{path}: x must hold real numbers, got dtype <U32"),
        ({"x": X + 0j, "y": Y}, "{path}: x must hold real numbers, got dtype complex128"),
        (
            {"x": np.where(np.arange(48)[:, None, None, None] == 5, np.nan, X), "y": Y},
            "{path}: x holds values that are not finite in float32",
        ),
        ({"x": X * 1e39, "y": Y}, "{path}: x holds values that are not finite in float32"),
        ({"x": X, "y": Y[:40]}, "{path}: y must have the shape (N,) = (48,) of x, got (40,)"),
        ({"x": X, "y": Y / 2}, "{path}: y must hold whole numbers, got dtype float64"),
        ({"x": X, "y": Y * 0}, "{path}: y must hold at least 2 classes, got 1"),
        (
            {"x": X[:0], "y": Y[:0]},
            "{path}: y must hold at least 2 classes, got 0",
        ),
        (
            {"x": X, "y": np.where(np.arange(48) < 3, 7, 0)},
            "{path}: too few examples: a class needs at least 4 to be split into training and "
            "test, class 7 has 3",
        ),
        ({"x": X.astype(object), "y": Y}, "{path} is not an .npz file of plain arrays"),
    ],
)
def test_wrong_arrays_are_one_line(capsys, tmp_path, arrays, message):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    assert_fails(capsys, ["--data", str(path), "--out", str(tmp_path)], message.format(path=path))


def test_a_missing_file_is_one_line(capsys, tmp_path):
    path = tmp_path / "missing.npz"
    assert_fails(
        capsys,
        ["--data", str(path), "--out", str(tmp_path)],
        f"cannot read {path}: No such file or directory",
    )


def test_a_folder_as_data_is_one_line(capsys, tmp_path):
    assert_fails(
        capsys,
        ["--data", str(tmp_path), "--out", str(tmp_path)],
        f"cannot read {tmp_path}: Is a directory",
    )


@pytest.mark.parametrize("kind", ["text", "empty", "array", "broken"])
def test_a_file_of_another_format_is_one_line(capsys, tmp_path, kind):
    path = tmp_path / "data.npz"
    buffer = io.BytesIO()
    np.save(buffer, X)
    path.write_bytes(
        {"text": b"x,y\n", "empty": b"", "array": buffer.getvalue(), "broken": b"PK\x03\x04"}[kind]
    )
    assert_fails(
        capsys,
        ["--data", str(path), "--out", str(tmp_path)],
        f"{path} is not an .npz file of plain arrays",
    )
