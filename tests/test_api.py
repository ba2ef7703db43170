"""What holds for the whole public interface."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Primitive

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx
from tests.contract import registry
from tests.contract.norm import POINTS
from tests.techniques import registry as techniques

pytestmark = pytest.mark.quickly_compiled

FUNCTIONS = {n: f for n, f in vars(jaxnorm).items() if isinstance(f, types.FunctionType)}
MODULES = {
    f"{library.__name__}.{name}": module
    for library in (jaxnorm.linen, jaxnorm.nnx)
    for name, module in vars(library).items()
    if isinstance(module, type)
}

# Positional arguments: arrays, and what stands for one.
ARRAYS = {"x", "v", "w", "u", "g", "gain", "gamma", "beta", "moments", "running", "batch"}
ARRAYS |= {"segment_ids", "whitening", "y", "first", "second"}
ARRAYS |= {
    "alpha",
    "bias",
    "gate",
    "mean_weights",
    "rho",
    "shift",
    "style",
    "var_weights",
    "weights",
}
# Required, and not arrays.
AS_IN_NUMPY = {("moments", "axis"), ("init_running", "shape")}


def test_everything_public_is_listed_and_nothing_else():
    for module in (jaxnorm, jaxnorm.linen, jaxnorm.nnx):
        public = {
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and not isinstance(value, types.ModuleType)
        }
        assert public == set(module.__all__)
        # As ruff sorts: what is all in capitals first.
        assert list(module.__all__) == sorted(module.__all__, key=lambda n: (not n.isupper(), n))


def test_every_normalization_is_in_the_registry():
    registered = {norm.public for norm in registry.NORMS}
    assert registered <= set(FUNCTIONS)
    assert not registered & set(registry.OTHERS)
    assert not techniques.PUBLIC & set(registry.OTHERS)
    tested = registered | techniques.PUBLIC
    assert tested | set(registry.OTHERS) == set(jaxnorm.__all__)


def test_exemptions_name_a_point_and_give_a_reason():
    names = {norm.name for norm in registry.NORMS}
    assert len(names) == len(registry.NORMS)
    assert names > registry.CORE
    for norm in registry.NORMS:
        assert set(norm.exempt) <= set(POINTS)
        assert all(len(reason.split()) > 3 for reason in norm.exempt.values())
        assert {"plain", "five", "many", "large"} <= set(norm.shapes)
        assert len(norm.exempt) <= 8


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arrays_come_first_and_options_are_keywords(name):
    for parameter in inspect.signature(FUNCTIONS[name]).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            assert parameter.name in ARRAYS or (name, parameter.name) in AS_IN_NUMPY
        else:
            kinds = (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
            assert parameter.kind in kinds


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_documented_and_keyword_only(name):
    module = MODULES[name]
    doc = inspect.getdoc(module)
    assert doc is not None
    for section in ("Attributes:", "Example:", ">>> ", "Reference"):
        assert section in doc, section
    fields = [f for f in module.__dataclass_fields__.values() if f.init]
    positional = [f.name for f in fields if not f.kw_only]
    # A wrapper takes the module that it wraps, a recurrent cell its sizes, as flax's do.
    linen = ([], ["layer"], ["norm"], ["features"])
    nnx = ([], ["num_features"], ["layer"], ["norm", "in_features"], ["in_features", "features"])
    assert positional in (linen if "linen" in name else nnx)
    # No field is called axis: in flax.linen.BatchNorm that is the axis kept, elsewhere reduced.
    assert "axis" not in {f.name for f in fields}
    # Each says all of its options itself, and sends nobody to the other framework.
    for option in set(inspect.signature(module.__init__).parameters) - {"self", "parent", "name"}:
        assert f"\n  {option}: " in doc, option
    other = "jaxnorm.nnx" if "linen" in name else "jaxnorm.linen"
    assert other not in doc.replace("jaxnorm.linen as jnn", "") and "twin" not in doc


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - {"plain"} | {"Moments"}))
def test_functions_are_documented(name):
    doc = inspect.getdoc(getattr(jaxnorm, name))
    assert doc is not None
    sections = ["Attributes:"] if name == "Moments" else ["Args:", "Returns:", "Raises:", ">>> "]
    for section in sections:
        assert section in doc, section
    if name not in registry.OTHERS:
        assert "arXiv:" in doc or name == "standardize"
    if name in FUNCTIONS:
        described = doc.split("Args:")[1].split("Returns:")[0]
        for parameter in inspect.signature(FUNCTIONS[name]).parameters:
            assert re.search(rf"  \*?{parameter}: ", described), parameter


def test_the_pure_functions_and_layers_import_jax_alone():
    code = (
        "import importlib, pkgutil, sys, jaxnorm.drop_in, jaxnorm._layers as layers; "
        "names = [m.name for m in pkgutil.iter_modules(layers.__path__)]; "
        "[importlib.import_module(f'jaxnorm._layers.{name}') for name in names]; "
        "heavy = {'flax', 'optax', 'chex', 'matplotlib', 'rich', 'sklearn'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_nothing_is_computed_at_import():
    # A backend started at import would fix the number of devices, before the user can.
    code = (
        "import jaxnorm, jaxnorm.linen, jaxnorm.nnx, jax; "
        "import jaxnorm.drop_in.linen, jaxnorm.drop_in.nnx; "
        "jax.config.update('jax_num_cpu_devices', 3); "
        "import sys; sys.exit(jax.device_count() != 3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stderr


def test_every_module_has_a_docstring():
    for info in pkgutil.walk_packages(jaxnorm.__path__, "jaxnorm."):
        if not info.name.endswith("__main__"):
            assert inspect.getdoc(importlib.import_module(info.name)), info.name


ARITHMETIC = {"add", "sub", "mul", "div", "reduce_sum", "integer_pow", "square", "rsqrt"}
# Of a shape of its own each: what is compiled already runs without any frame.
CALLS = {
    "linen": lambda: jaxnorm.linen.LayerNorm().apply({"params": AFFINE}, jnp.ones((3, 53))),
    "nnx": lambda: jaxnorm.nnx.LayerNorm(53)(jnp.ones((5, 53))),
}
AFFINE = {"gamma": jnp.ones(53), "beta": jnp.zeros(53)}


@pytest.mark.parametrize("library", CALLS)
def test_a_call_is_short(library, monkeypatch):
    """From the call to the first arithmetic on the input there are at most 11 frames of ours."""
    root, bind, found = str(Path(jaxnorm.__file__).parent), Primitive.bind, []

    def look(self, *args, **params):
        if self.name in ARITHMETIC and any(jnp.ndim(value) > 1 for value in args):
            frame, names = sys._getframe(1), []
            while frame is not None:
                if frame.f_code.co_filename.startswith(root):
                    names.append(f"{frame.f_code.co_filename}: {frame.f_code.co_name}")
                frame = frame.f_back
            found.append(names)
        return bind(self, *args, **params)

    call = CALLS[library]
    monkeypatch.setattr(Primitive, "bind", look)
    jax.block_until_ready(call())
    (first, *_) = (names for names in found if names)
    assert 3 < len(first) <= 11, "\n".join(first)
