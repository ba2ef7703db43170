"""Strict settings for every test: no silent promotion of dtypes or ranks."""

import gc
import os

# Eight CPU devices, for the tests of sharding; set before jax starts its backend.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Several workers compile for TPU at once; no chip is opened.
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

# Processes that tests start compile without LLVM's passes, as tests marked quickly_compiled do;
# this one, which may be such a process itself, decides by the test.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import hypothesis
import jax
import numpy as np
import pytest

# JAX makes many small objects that live on: looking for garbage as often as by default costs
# a twentieth of the time.
gc.set_threshold(50_000, 20, 100)

jax.config.update("jax_disable_most_optimizations", False)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples on every run, and no deadline: the first call of an example compiles.
hypothesis.settings.register_profile(
    "jaxnorm", derandomize=True, deadline=None, database=None, max_examples=10
)
hypothesis.settings.load_profile("jaxnorm")


def pytest_configure(config):
    # Of modules whose subject is what programs are made of, print, draw or learn, not how exactly
    # compiled ones compute: LLVM's passes take a quarter to a half of the time.
    config.addinivalue_line("markers", "quickly_compiled: compiled without LLVM's passes")


def pytest_itemcollected(item):
    """Tests that share programs, of one entry of the registry or of one file, run in one worker."""
    norm = getattr(item, "callspec", None) and item.callspec.params.get("norm")
    module = item.module.__name__
    if module != "tests.test_notebooks":
        item.add_marker(pytest.mark.xdist_group(getattr(norm, "name", module)))


@pytest.fixture(autouse=True, scope="module")
def compiled_as_needed(request):
    """Leaves LLVM's passes out where they are not needed; neighbouring modules share programs."""
    quickly = request.node.get_closest_marker("quickly_compiled") is not None
    if quickly != jax.config.read("jax_disable_most_optimizations"):
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", quickly)


@pytest.fixture
def rng():
    """A random generator with the same stream in every test."""
    return np.random.default_rng(0)


@pytest.fixture
def reused(monkeypatch):
    """Leaves the allocator of the process as it is for the other tests; holds what is asked for."""
    from jaxnorm.cli.bench import timing

    asked = []
    monkeypatch.setattr(timing, "reuse_pages", lambda: asked.append(True))
    return asked


@pytest.fixture(scope="session")
def images_file(tmp_path_factory):
    """The images that the comparison of normalizations is tested with."""
    from tests.cli.compare.rows import make_images

    path = tmp_path_factory.mktemp("data") / "squares.npz"
    x, y = make_images()
    np.savez(path, x=x, y=y + 5, more=np.zeros(3))  # labels need not start at 0
    return path


@pytest.fixture
def close_figures():
    """Draws without a window, and closes what the test leaves open."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    yield
    plt.close("all")
