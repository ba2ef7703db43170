"""The frame of the command line: dispatch, exit statuses, errors in one line."""

import argparse
import importlib.util
import subprocess
import sys

import pytest

import jaxnorm
from jaxnorm import __main__
from jaxnorm.cli import arguments, outputs
from jaxnorm.cli.errors import UserError, require

pytestmark = pytest.mark.quickly_compiled


def make_command(action):
    """A command named `act` that does `action`."""

    class Command:
        @staticmethod
        def add_parser(subparsers):
            subparsers.add_parser("act").set_defaults(run=action)

    return Command


def run_main(monkeypatch, action) -> int:
    monkeypatch.setattr(__main__, "COMMANDS", (make_command(action),))
    return __main__.main(["act"])


def test_the_exit_status_of_a_command_is_returned(monkeypatch):
    assert run_main(monkeypatch, lambda args: 7) == 7


def test_a_user_error_is_one_line_and_status_2(monkeypatch, capsys):
    def fail(args):
        raise UserError("what to mend")

    assert run_main(monkeypatch, fail) == 2
    assert capsys.readouterr() == ("", "jaxnorm: what to mend\n")


def test_an_interrupted_command_ends_with_status_130(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    assert run_main(monkeypatch, interrupt) == 130
    assert capsys.readouterr() == ("", "jaxnorm: interrupted\n")


def test_a_defect_keeps_its_traceback(monkeypatch):
    def fail(args):
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        run_main(monkeypatch, fail)


def test_a_missing_command_is_an_error(capsys):
    assert __main__.main([]) == 2
    assert capsys.readouterr().err == (
        "jaxnorm: the following arguments are required: command (see python -m jaxnorm --help)\n"
    )


def test_an_unknown_command_is_an_error(capsys):
    assert __main__.main(["compete"]) == 2
    # The list of choices that follows is worded differently by each Python.
    error = capsys.readouterr().err
    assert error.startswith("jaxnorm: argument command: invalid choice: 'compete' (choose from ")
    assert error.count("\n") == 1


def test_python_m_jaxnorm_runs_the_command_line():
    result = subprocess.run(
        [sys.executable, "-m", "jaxnorm", "--version"], capture_output=True, text=True, check=True
    )
    assert (result.stdout, result.stderr) == (f"jaxnorm {jaxnorm.__version__}\n", "")


def test_help_lists_every_command_and_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from jaxnorm import __main__\n"
        "try:\n"
        "    __main__.main(['--help'])\n"
        "except SystemExit as end:\n"
        "    heavy = {'flax', 'matplotlib', 'rich', 'sklearn'}\n"
        "    print(end.code, sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.endswith("0 []\n")
    for name in LIST_OPTIONS:
        assert f"\n    {name} " in result.stdout
    assert len(LIST_OPTIONS) == len(__main__.COMMANDS)


@pytest.mark.parametrize(
    ("missing", "named"), [(("rich",), "rich"), (("rich", "sklearn"), "rich and sklearn")]
)
def test_missing_packages_name_the_extra(monkeypatch, missing, named):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    with pytest.raises(UserError) as caught:
        require("rich", "matplotlib", "sklearn")
    assert str(caught.value) == (
        f'this command needs {named}, not installed here: pip install "jaxnorm[demo]"'
    )


def test_packages_that_are_there_are_enough():
    require("rich", "matplotlib", "sklearn")


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (arguments.positive_int, "3", 3),
        (arguments.whole_number, "0", 0),
        (arguments.whole_number, "4294967295", 4294967295),
        (arguments.positive_float, "1e-3", 0.001),
        (arguments.share, "1", 1.0),
        (arguments.one_of("a", "b"), "b", "b"),
        (arguments.integer, "-2", -2),
    ],
)
def test_arguments_are_read(read, text, value):
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (arguments.positive_int, "0", "expected a positive whole number, got '0'"),
        (arguments.positive_int, "2.5", "expected a positive whole number, got '2.5'"),
        (arguments.whole_number, "-1", "expected a whole number from 0 to 4294967295, got '-1'"),
        (
            arguments.whole_number,
            "4294967296",
            "expected a whole number from 0 to 4294967295, got '4294967296'",
        ),
        (arguments.positive_float, "-0.1", "expected a positive number, got '-0.1'"),
        (arguments.positive_float, "inf", "expected a positive number, got 'inf'"),
        (arguments.positive_float, "nan", "expected a positive number, got 'nan'"),
        (arguments.positive_float, "fast", "expected a positive number, got 'fast'"),
        (arguments.share, "0", "expected a number above 0 and up to 1, got '0'"),
        (arguments.share, "95", "expected a number above 0 and up to 1, got '95'"),
        (arguments.one_of("a", "b"), "c", "unknown 'c', expected a, b"),
    ],
)
def test_wrong_arguments_say_what_was_expected(read, text, message):
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        read(text)
    assert str(caught.value) == message


def read_list(*typed, **options):
    parser = arguments.Parser(prog="test")
    arguments.add_list(parser, "--sizes", arguments.integer, "sizes", **options)
    return parser.parse_args(typed).sizes


@pytest.mark.parametrize("typed", ["4,2,1", "4 2 1", "4,2 1", "4, 2, 1", "4 ,2,1,"])
def test_lists_are_typed_with_commas_or_spaces(typed):
    assert read_list("--sizes", *typed.split()) == (4, 2, 1)


def test_lists_that_begin_with_a_minus_sign_need_spaces_or_an_equals_sign():
    assert read_list("--sizes", "-1", "-2") == read_list("--sizes=-1,-2") == (-1, -2)


def test_the_default_of_a_list_is_read_as_it_would_be_typed():
    assert read_list(default="4,2") == (4, 2)
    assert read_list() is None


def test_a_list_holds_a_value_twice_only_if_it_may():
    with pytest.raises(UserError, match=r"^argument --sizes: 2 is given twice "):
        read_list("--sizes", "2,4", "2")
    assert read_list("--sizes", "2", "2,4", repeats=True) == (2, 2, 4)


@pytest.mark.parametrize("typed", ["2,,4", ",", "2;4"])
def test_a_wrong_value_of_a_list_is_named(typed):
    with pytest.raises(UserError, match=r"^argument --sizes: expected a whole number, got "):
        read_list("--sizes", typed)


LIST_OPTIONS = {
    "compare": {
        "--norms": "layer rms",
        "--batch-sizes": "8 32",
        "--learning-rates": "0.1 1",
        "--seeds": "0 1",
    },
    "bench": {
        "--norms": "layer rms",
        "--sizes": "small large",
        "--shapes": "4x8 8x8",
        "--dtypes": "float32 bfloat16",
        "--peers": "haiku torch",
        "--megabytes": "8 32",
    },
    "exact": {"--norms": "layer rms", "--peers": "haiku torch"},
    "axes": {"--shape": "4 6", "--axis": "0 1", "--names": "N C"},
}


@pytest.mark.parametrize("command", LIST_OPTIONS)
def test_every_list_of_every_command_is_typed_with_commas_or_spaces(command, monkeypatch):
    seen = []
    for module in __main__.COMMANDS:
        monkeypatch.setattr(module, "run", lambda args: seen.append(vars(args)) or 0)
    options = LIST_OPTIONS[command]
    for line in (options, {name: text.replace(" ", ",") for name, text in options.items()}):
        words = [word for name, text in line.items() for word in (name, *text.split())]
        assert __main__.main([command, *words]) == 0
    with_spaces, with_commas = seen
    assert with_spaces == with_commas
    for name, text in options.items():
        assert len(with_spaces[name[2:].replace("-", "_")]) == len(text.split())


def test_the_output_folder_is_made(tmp_path):
    outputs.prepare_folder(tmp_path / "a" / "b", "result.csv")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_an_output_folder_below_a_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        outputs.prepare_folder(tmp_path / "file" / "out")
    assert str(caught.value) == f"cannot write to {tmp_path}/file/out: Not a directory"


def test_an_output_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        outputs.prepare_folder(tmp_path / "file")
    assert str(caught.value) == f"cannot write to {tmp_path}/file: File exists"


def test_an_output_file_that_is_a_folder_is_an_error(tmp_path):
    (tmp_path / "result.csv").mkdir()
    with pytest.raises(UserError) as caught:
        outputs.prepare_folder(tmp_path, "result.csv")
    assert str(caught.value) == f"cannot write to {tmp_path}/result.csv: Is a directory"


def test_an_output_file_that_is_there_is_left_as_it_is(tmp_path):
    (tmp_path / "result.csv").write_text("old")
    outputs.prepare_folder(tmp_path, "result.csv")
    assert (tmp_path / "result.csv").read_text() == "old"


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("compare --seedz 3", "unrecognized arguments: --seedz; did you mean --seeds?"),
        ("axes --shpae 3 4", "unrecognized arguments: --shpae; did you mean --shape?"),
        ("exact --markdwn", "unrecognized arguments: --markdwn; did you mean --markdown?"),
        ("axes --zzz=1", "unrecognized arguments: --zzz (see"),
        ("bench --norms bach", "a function of the catalogue; did you mean batch?"),
    ],
)
def test_what_was_meant_by_a_misspelt_option(line, meant, capsys):
    assert __main__.main(line.split()) == 2
    error = capsys.readouterr().err
    assert meant in error
    assert error.count("\n") == 1
