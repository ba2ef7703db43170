"""Whole training steps, and norms on four chips, as libtpu compiles them for TPU v5e."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.support import tpu_worker

SECONDS = 900


@pytest.fixture(scope="module")
def compiled():
    """What became of each program, by name; skips where the compiler cannot be had."""
    left_out = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {k: v for k, v in os.environ.items() if k not in left_out}
    worker = subprocess.run(
        [sys.executable, "-m", "tests.support.tpu_worker"],
        cwd=pathlib.Path(__file__).parents[1],
        env=environment | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    lines = worker.stdout.splitlines()
    if lines and lines[0].startswith('{"unavailable"'):
        pytest.skip(json.loads(lines[0])["unavailable"])
    # A name without a result is the program that the process died of.
    results = dict.fromkeys(lines[::2]) | dict(
        zip(lines[::2], map(json.loads, lines[1::2]), strict=False)
    )
    return results, f"status {worker.returncode}\n{worker.stderr[-3000:]}"


def result_of(compiled, name):
    results, end = compiled
    if name not in results:
        pytest.fail(f"the worker died before, at {list(results)[-1:]}: {end}")
    if results[name] is None:
        pytest.fail(f"the compiler died of {name}: {end}")
    return results[name]


@pytest.mark.parametrize("name", tpu_worker.list_programs(None))
def test_training_steps_compile(compiled, name):
    (step,) = result_of(compiled, name)
    # Programs that run on a chip have a cost.
    assert step["cost"] > 0


@pytest.mark.parametrize("name", tpu_worker.list_divided())
def test_no_more_arrays_pass_between_chips_than_with_flax(compiled, name):
    ours, theirs = result_of(compiled, name)
    assert ours["collectives"] <= theirs["collectives"]
    # The count tells one from the other: batch norm pools over chips, layer norm does not.
    assert bool(theirs["collectives"]) == name.startswith("batch")
