"""Networks with each norm go to ONNX inside `plain()`, and run there as here."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

NORMS = ("batch", "layer", "rms", "group", "instance")


@pytest.fixture(scope="module")
def exported():
    """What `tests.support.onnx_worker` found."""
    for package in ("jax2onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'jaxnorm[onnx]'")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.onnx_worker"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    if "skip" in result:
        pytest.skip(result["skip"])
    return result


@pytest.mark.parametrize("norm", NORMS)
def test_a_network_runs_as_here(norm, exported):
    assert set(exported["errors"]) == set(NORMS)
    assert exported["errors"][norm] < 1e-5


def test_evaluation_is_one_subtraction_one_product_and_one_sum(exported):
    """Of the array; what is left are computations of 8 numbers. Without `plain()`."""
    assert exported["evaluation"] == ["Sub", "Mul", "Add"]
