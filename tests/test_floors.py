"""The house: every folder imports only what stands below it, and nothing goes in circles."""

import ast
import graphlib
from pathlib import Path

import pytest

import jaxnorm

# From the ground up. Folders of one floor do not import each other; "" is `import jaxnorm` itself.
FLOORS = (
    {"_core"},
    {"functional"},
    {"_layers"},
    {""},
    {"linen", "nnx", "drop_in"},
    {"tools"},
    {"plot"},
    {"cli"},
    {"__main__"},
)
# Modules hold variables: what is computed with them, and what they decide, is a layer's.
ABOVE_LAYERS = {("linen", "functional"), ("nnx", "functional")}
# The lowest floor that may import a package of others; who wants pure functions needs none.
FROM = {"flax": "linen", "optax": "tools", "rich": "tools", "matplotlib": "plot", "sklearn": "cli"}


def read_modules(root):
    """Returns all that each module of a package imports, also inside functions, by dotted name."""
    modules = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        package = parts[:-1]
        name = ".".join(package if parts[-1] == "__init__" else parts)
        modules[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else ()
                base = ".".join([*base, *filter(None, [node.module])])
                # Whether it is a module that is taken from there, is known when all are read.
                modules[name] |= {f"{base}.{alias.name}" for alias in node.names}
    known = set(modules)

    def resolve(name):
        """The module that a name belongs to; of other packages the package."""
        while name not in known and "." in name:
            name = name.rpartition(".")[0]
        return name

    return {name: set(map(resolve, found)) for name, found in modules.items()}


def floor_of(module):
    folder = (*module.split("."), "")[1]
    found = [floor for floor, folders in enumerate(FLOORS) if folder in folders]
    assert found, f"{module} stands on no floor: add {folder!r} to FLOORS"
    return folder, found[0]


def list_breaches(root):
    """Returns a line for each import that breaks a rule of the house."""
    modules, breaches = read_modules(root), []
    for name, imported in sorted(modules.items()):
        folder, floor = floor_of(name)
        for other in sorted(imported):
            if other in modules:
                other_folder, other_floor = floor_of(other)
                wrong = other_folder != folder and other_floor >= floor
                wrong = wrong or (folder, other_folder) in ABOVE_LAYERS
            else:
                wrong = other in FROM and floor < floor_of(f"{root.name}.{FROM[other]}")[1]
            if wrong:
                breaches.append(f"{name} imports {other}")
    try:
        graphlib.TopologicalSorter(
            {name: imported & set(modules) for name, imported in modules.items()}
        ).prepare()
    except graphlib.CycleError as error:
        breaches.append(f"circle: {' <- '.join(sorted(set(error.args[1])))}")
    return breaches


def test_the_house_stands_on_its_floors():
    assert list_breaches(Path(jaxnorm.__file__).parent) == []


def test_each_folder_says_what_belongs_there():
    for path in Path(jaxnorm.__file__).parent.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def build(folder, files):
    """Writes a small house, of names of files and their source."""
    root = folder / "jaxnorm"
    for name, source in {"__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


def test_a_house_in_order_has_no_breaches(tmp_path):
    files = {
        "__init__.py": "from jaxnorm.functional.feature import layer_norm as layer_norm",
        "_core/axes.py": "import jax",
        "_core/pool.py": "from jaxnorm._core import axes\nfrom jaxnorm._core.axes import Axes",
        "functional/feature.py": "from .._core.pool import sums",
        "functional/__init__.py": "",
        "_layers/batch.py": "from jaxnorm.functional import feature",
        "linen/__init__.py": "from jaxnorm.linen.batch import BatchNorm as BatchNorm",
        "linen/batch.py": "import flax.linen as nn\nfrom jaxnorm._layers.batch import step",
        "tools/bake.py": "def f():\n  import optax\n  import jaxnorm.linen as jnn",
        "plot/__init__.py": "def f():\n  import matplotlib.pyplot as plt\n  import jaxnorm",
        "cli/axes.py": "from jaxnorm import plot\nfrom matplotlib.figure import Figure",
        "__main__.py": "from jaxnorm.cli import axes",
    }
    assert list_breaches(build(tmp_path, files)) == []


@pytest.mark.parametrize(
    ("files", "breach"),
    [
        (
            {"_core/a.py": "from jaxnorm.functional.b import c", "functional/b.py": ""},
            "jaxnorm._core.a imports jaxnorm.functional.b",
        ),
        # Inside a function, of a module, and with dots.
        (
            {"functional/a.py": "def f():\n  from jaxnorm import linen", "linen/__init__.py": ""},
            "jaxnorm.functional.a imports jaxnorm.linen",
        ),
        (
            {"functional/a.py": "from ..linen.b import c", "linen/b.py": ""},
            "jaxnorm.functional.a imports jaxnorm.linen.b",
        ),
        ({"_core/a.py": "import jaxnorm"}, "jaxnorm._core.a imports jaxnorm"),
        (
            {"nnx/a.py": "from jaxnorm.linen.b import c", "linen/b.py": ""},
            "jaxnorm.nnx.a imports jaxnorm.linen.b",
        ),
        (
            {"linen/a.py": "import jaxnorm.tools.b", "tools/b.py": ""},
            "jaxnorm.linen.a imports jaxnorm.tools.b",
        ),
        (
            {"plot/a.py": "from jaxnorm.cli.b import c", "cli/b.py": ""},
            "jaxnorm.plot.a imports jaxnorm.cli.b",
        ),
        (
            {"nnx/a.py": "from jaxnorm.functional.b import c", "functional/b.py": ""},
            "jaxnorm.nnx.a imports jaxnorm.functional.b",
        ),
        ({"__init__.py": "import flax.linen as nn"}, "jaxnorm imports flax"),
        ({"__init__.py": "def f():\n  import optax"}, "jaxnorm imports optax"),
        ({"_layers/a.py": "from flax import nnx"}, "jaxnorm._layers.a imports flax"),
        (
            {"tools/a.py": "def f():\n  import matplotlib.pyplot as plt"},
            "jaxnorm.tools.a imports matplotlib",
        ),
        (
            {
                "cli/a.py": "from jaxnorm.cli.b import x",
                "cli/b.py": "def f():\n  from jaxnorm.cli import c",
                "cli/c.py": "from .a import y",
            },
            "circle: jaxnorm.cli.a <- jaxnorm.cli.b <- jaxnorm.cli.c",
        ),
        # A module that takes its neighbour from the face of their folder.
        (
            {
                "linen/__init__.py": "from jaxnorm.linen.a import A",
                "linen/a.py": "from jaxnorm.linen import B",
            },
            "circle: jaxnorm.linen <- jaxnorm.linen.a",
        ),
    ],
)
def test_a_breach_is_found(tmp_path, files, breach):
    assert list_breaches(build(tmp_path, files)) == [breach]


def test_a_folder_without_a_floor_is_found(tmp_path):
    with pytest.raises(AssertionError, match="add 'attic' to FLOORS"):
        list_breaches(build(tmp_path, {"attic/a.py": ""}))
