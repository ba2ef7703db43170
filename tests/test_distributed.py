"""Two processes with two devices each train as one process with four."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

WORKER = pathlib.Path(__file__).with_name("distributed_worker.py")
SECONDS = 300


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def run(processes, out):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    port = free_port()
    workers = [
        subprocess.Popen(
            [sys.executable, WORKER, str(i), str(processes), str(port), out],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]
    try:
        outputs = [worker.communicate(timeout=SECONDS)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert all(worker.returncode == 0 for worker in workers), "\n".join(outputs)
    return np.load(out)


def test_two_processes_equal_one(tmp_path):
    """Parameters and statistics after 20 steps, in a sharded jit and in shard_map."""
    one = run(1, tmp_path / "one.npz")
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
