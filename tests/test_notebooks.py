"""The notebooks: what each must hold, what is saved in them, and that they run."""

import os
import re
import tomllib
from pathlib import Path

import jax
import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [
    "01_quickstart",
    "02_axes",
    "03_batch_statistics",
    "04_sequences",
    "05_why_it_trains_faster",
    "06_exact_lean_fast",
    "07_gallery",
    "08_your_model",
    "09_from_elsewhere",
]
PYPROJECT = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY = PYPROJECT["project"]["urls"]["Repository"]
OWNED = REPOSITORY.removeprefix("https://github.com/")
COLAB = f"https://colab.research.google.com/github/{OWNED}/blob/main/notebooks"
INSTALL = f"""\
# Installs jaxnorm where it is missing, as on Colab; does nothing elsewhere.
import importlib.util

if importlib.util.find_spec("jaxnorm") is None:
    %pip install --quiet "jaxnorm[demo] @ git+{REPOSITORY}\""""

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell) -> list[str]:
    """Returns what kinds of output a cell has."""
    found = {
        "picture" if "image/png" in output.get("data", {}) else output.output_type
        for output in cell.outputs
    }
    return sorted(found)


def test_the_notebooks_are_these():
    assert [path.stem for path in NOTEBOOKS] == NAMES


@every_notebook
def test_a_notebook_begins_with_badge_and_guarded_install(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    first, second = notebook.cells[:2]
    badge = "https://colab.research.google.com/assets/colab-badge.svg"
    assert f"[![Open In Colab]({badge})]({COLAB}/{path.name})" in first.source
    assert first.source.startswith(f"# {path.stem[:2]} ")
    assert second.source == INSTALL


@every_notebook
def test_all_addresses_are_of_the_repository_in_pyproject(path):
    text = "".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    hosts = r"(?:github\.com|githubusercontent\.com|research\.google\.com/github)/([\w.-]+/[\w.-]+)"
    assert set(re.findall(hosts, text)) == {OWNED}


@every_notebook
def test_a_notebook_is_saved_with_its_outputs(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    found = {kind for cell in cells for kind in kinds(cell)}
    assert "picture" in found and "error" not in found
    assert not [o.text for cell in cells for o in cell.outputs if o.get("name") == "stderr"]
    assert not [cell for cell in cells if "execution" in cell.metadata]  # times of a run


@every_notebook
def test_links_between_notebooks_lead_somewhere(path):
    text = "".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    for name in NAMES:
        if f"({name[:2]}_" in text:
            assert f"({name}.ipynb)" in text


@every_notebook
def test_a_notebook_ends_with_where_to_go_next(path):
    cells = nbformat.read(path, as_version=4).cells
    end = [cell.source for cell in cells if cell.cell_type == "markdown"][-1]
    named = set(re.findall(r"\((\d\d_\w+)\.ipynb\)", end))
    assert named
    if path.stem == NAMES[0]:
        assert named == set(NAMES[1:])


@every_notebook
@pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="notebooks are for recent versions, as Colab has them"
)
def test_a_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    saved = [kinds(cell) for cell in code_cells(notebook)]
    # The notebooks are for one device; conftest asks for eight.
    flags = [f for f in os.environ["XLA_FLAGS"].split() if "host_platform_device_count" not in f]
    # And for this checkout, whichever one is installed.
    environment = os.environ | {"XLA_FLAGS": " ".join(flags), "PYTHONPATH": str(FOLDER.parent)}
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute(env=environment)
    assert [kinds(cell) for cell in code_cells(notebook)] == saved
