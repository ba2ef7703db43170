"""Strict settings for every test: no silent promotion of dtypes or ranks."""

import os

# Eight CPU devices, for the tests of sharding; set before jax starts its backend.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import hypothesis
import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples on every run, and no deadline: the first call of an example compiles.
hypothesis.settings.register_profile(
    "jaxnorm", derandomize=True, deadline=None, database=None, max_examples=10
)
hypothesis.settings.load_profile("jaxnorm")


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
