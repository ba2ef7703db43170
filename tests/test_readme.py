"""Every code block of the README runs; the lines that install are run by `.ci/run`."""

import doctest
import itertools
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

import jaxnorm
import jaxnorm.drop_in.linen
import jaxnorm.drop_in.nnx
import jaxnorm.linen
import jaxnorm.nnx
import jaxnorm.plot
import jaxnorm.tools
from jaxnorm.__main__ import main

pytestmark = pytest.mark.quickly_compiled

README = pathlib.Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
PROJECT = tomllib.loads((README.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
TABLE = re.search(r"^\| technique \|.*\n(?:\|.*\n)+", TEXT, re.MULTILINE)[0].splitlines(True)


def blocks(language):
    return [code for name, code in BLOCKS if name == language]


def test_blocks_are_of_known_languages():
    assert {name for name, _ in BLOCKS} <= {"python", "bash"}


def test_examples_give_the_results_shown():
    results = doctest.testfile(str(README), module_relative=False, encoding="utf-8")
    assert results.attempted > 10
    assert results.failed == 0


def test_python_is_shown_as_examples_that_run():
    assert all(code.startswith(">>> ") for code in blocks("python"))


def test_it_is_read_in_two_minutes():
    """At most 1,300 words before the table of techniques, which comes last."""
    before, _, table = TEXT.partition("## The techniques")
    assert len(before.split()) <= 1300
    assert table.rstrip().endswith(TABLE[-1].rstrip())


def commands():
    for block in blocks("bash"):
        for line in block.splitlines():
            for part in re.split(r"&&|#", line)[: line.count("&&") + 1]:
                yield shlex.split(part)


def modules_in(command):
    """What a command runs by `python -m`."""
    return [name for flag, name in itertools.pairwise(command) if flag == "-m"]


def test_it_is_installed_from_the_repository():
    (command,) = (c for c in commands() if c[0] == "pip")
    assert command == ["pip", "install", f"git+{PROJECT['urls']['Repository']}"]


@pytest.mark.parametrize("command", [c for c in commands() if "pip" in c[1:]], ids=" ".join)
def test_what_is_installed_is_an_extra(command):
    (extra,) = re.findall(r"\.\[(\w+)\]", " ".join(command))
    assert extra in PROJECT["optional-dependencies"]


@pytest.mark.parametrize("command", [c for c in commands() if modules_in(c) == ["jaxnorm"]])
def test_commands_of_the_package_exist(command, capsys):
    arguments = command[command.index("jaxnorm") + 1 :]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--help"])
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_tools_of_the_development_lines_are_in_the_dev_extra():
    dev = {re.match(r"[\w-]+", r)[0] for r in PROJECT["optional-dependencies"]["dev"]}
    programs = {pathlib.Path(c[0]).name for c in commands()} - {"python3", "python", "pip"}
    modules = {m for c in commands() for m in modules_in(c)} - {"venv", "pip", "jaxnorm"}
    assert programs | modules == {"ruff", "pyright", "pytest", "pdoc"} <= dev


def test_the_documentation_has_everything_public(tmp_path):
    (command,) = (c for c in commands() if "pdoc" in c)
    command = [sys.executable, *command[1:], "--output-directory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    documented = {
        package: package.__all__
        for package in (jaxnorm, jaxnorm.linen, jaxnorm.nnx, jaxnorm.tools, jaxnorm.plot)
    }
    norms = {"BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"}
    documented[jaxnorm.drop_in.linen] = {*norms, "everywhere"}
    documented[jaxnorm.drop_in.nnx] = {*norms, "replace"}
    for package, names in documented.items():
        page = tmp_path.joinpath(*package.__name__.split(".")).with_suffix(".html")
        anchors = set(re.findall(r'id="([^"]+)"', page.read_text(encoding="utf-8")))
        assert set(names) <= anchors
