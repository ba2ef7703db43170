"""`python -m jaxnorm axes` through the command line."""

import matplotlib.pyplot as plt
import pytest

from jaxnorm import __main__

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.usefixtures("close_figures")]


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
            "argument --shape: expected a whole number, got 'x' "
            "(see python -m jaxnorm axes --help)",
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
