"""Every code block of the README runs; the lines that install are run by `.ci/run`."""

import doctest
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from jaxnorm.__main__ import main

README = pathlib.Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def blocks(language):
    return [code for name, code in BLOCKS if name == language]


def test_blocks_are_of_known_languages():
    assert {name for name, _ in BLOCKS} <= {"python", "bash"}


def test_examples_give_the_results_shown():
    results = doctest.testfile(str(README), module_relative=False, encoding="utf-8")
    assert results.attempted > 10
    assert results.failed == 0


def test_scripts_run(tmp_path):
    for code in blocks("python"):
        if ">>>" in code:
            continue  # Run by the test above.
        script = tmp_path / "script.py"
        script.write_text(code, encoding="utf-8")
        done = subprocess.run([sys.executable, script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def commands():
    for block in blocks("bash"):
        for line in block.splitlines():
            for part in re.split(r"&&|#", line)[: line.count("&&") + 1]:
                yield shlex.split(part)


@pytest.mark.parametrize("command", [c for c in commands() if "jaxnorm" in c], ids=" ".join)
def test_commands_of_the_package_exist(command, capsys):
    arguments = command[command.index("jaxnorm") + 1 :]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--help"])
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_tools_of_the_development_line_are_in_the_dev_extra():
    extra = re.search(
        r"^dev = \[(.*?)^\]", (README.parent / "pyproject.toml").read_text(), re.M | re.S
    )
    used = {"ruff", "pyright", "pytest"}
    assert used <= set(re.findall(r'"([\w-]+)', extra[1]))
    assert {pathlib.Path(c[0]).name for c in commands()} <= used | {"python3", "python"}
