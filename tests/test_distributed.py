"""Two processes with two devices each train as one process with four."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import nbformat
import numpy as np
import pytest

from tests.support import distributed_worker

pytestmark = pytest.mark.quickly_compiled

WORKER = pathlib.Path(distributed_worker.__file__)
NOTEBOOK = WORKER.parents[2] / "notebooks" / "06_exact_lean_fast.ipynb"
SECONDS = 300


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def run_all(commands):
    """Runs (arguments, additional environment) side by side; returns what each has printed."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    workers = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=environment | additional,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for arguments, additional in commands
    ]
    try:
        outputs = [worker.communicate(timeout=SECONDS)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert all(worker.returncode == 0 for worker in workers), "\n".join(outputs)
    return outputs


def run(processes, out):
    port = free_port()
    run_all([([WORKER, str(i), str(processes), str(port), out], {}) for i in range(processes)])
    return np.load(out)


def test_two_processes_equal_one(tmp_path):
    """Parameters and statistics after 20 steps, in a sharded jit and in shard_map."""
    one = distributed_worker.train_both_ways(0, 1)
    two = run(2, tmp_path / "two.npz")
    # Two ways, with 6 + 4 parameters and 4 statistics.
    assert len(one) == 28
    assert set(one) == set(two)
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=1e-5, rtol=1e-5, err_msg=name)
        # The two ways are the same batch norm.
        other = name.replace("None", "data")
        np.testing.assert_allclose(one[other], one[name], atol=1e-5, rtol=1e-5, err_msg=name)
    # Training has moved them.
    assert np.abs(one["None ['batch_stats']['BatchNorm_0']['mean']"]).max() > 0.1


def test_the_script_of_the_notebook_in_two_processes(tmp_path):
    """Both print the same running mean, which is that of the whole batch."""
    text = "\n".join(cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells)
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    script = tmp_path / "script.py"
    script.write_text(code, encoding="utf-8")
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "COORDINATOR": f"localhost:{free_port()}",
        "PROCESSES": "2",
    }
    printed = run_all([([script], environment | {"PROCESS": str(i)}) for i in range(2)])
    means = [np.fromstring(re.findall(r"\[(.*)\]", text)[-1], sep=" ") for text in printed]
    parts = [np.random.default_rng(i).normal(size=(16, 3)) for i in range(2)]
    # From zeros at momentum 0.99; eight digits are printed.
    expected = 0.01 * np.concatenate(parts).mean(0)
    for mean in means:
        np.testing.assert_allclose(mean, expected, rtol=1e-5)
