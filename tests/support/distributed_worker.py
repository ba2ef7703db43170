"""One of several processes that train a model with synchronised batch norm.

Run as `python distributed_worker.py PROCESS PROCESSES PORT OUT`; PROCESS 0 writes what it ends with
to OUT. Four devices in all, whatever the number of processes.
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxnorm.linen as jnn

P = PartitionSpec
DEVICES, STEPS, BATCH = 4, 20, 32


class Net(nn.Module):
    axis_name: str | None

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.Dense(8)(x)
            norm = jnn.BatchNorm(momentum=0.9, axis_name=self.axis_name)
            x = nn.relu(norm(x, use_running_average=False))
        return nn.Dense(1)(x)


def step(net, variables, x, y):
    def loss(params):
        out, new = net.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        error = ((out - y) ** 2).mean()
        return error if net.axis_name is None else jax.lax.pmean(error, net.axis_name), new

    grads, new = jax.grad(loss, has_aux=True)(variables["params"])
    params = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], grads)
    return {"params": params, **new}


def data(number):
    """The whole batch of a step; unequal spread, so that each device's statistics differ."""
    rng = np.random.default_rng(number)
    x = rng.normal(size=(BATCH, 5)) * np.linspace(0.2, 3, BATCH)[:, None] + 1
    return x.astype(np.float32), np.sin(x.sum(1, keepdims=True)).astype(np.float32)


def train(axis_name, process, processes):
    devices = jax.devices()[:DEVICES]
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    replicated, sharded = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    net = Net(axis_name)
    variables = jax.jit(net.init, out_shardings=replicated)(jax.random.key(0), jnp.ones((2, 5)))
    update = lambda v, x, y: step(net, v, x, y)  # noqa: E731
    if axis_name is not None:
        specs = {"in_specs": (P(), P("data"), P("data")), "out_specs": P()}
        update = jax.shard_map(update, mesh=mesh, **specs)
    update = jax.jit(update)
    mine = slice(process * BATCH // processes, (process + 1) * BATCH // processes)
    for number in range(STEPS):
        batch = [
            jax.make_array_from_process_local_data(sharded, part[mine]) for part in data(number)
        ]
        variables = update(variables, *batch)
    return jax.tree.map(np.asarray, variables)


def train_both_ways(process, processes):
    """Returns what both ways end with, by name."""
    results = {}
    for axis_name in (None, "data"):
        leaves = jax.tree_util.tree_leaves_with_path(train(axis_name, process, processes))
        for path, value in leaves:
            results[f"{axis_name} {jax.tree_util.keystr(path)}"] = value
    return results


def main(process, processes, port, out):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES // processes)
    jax.distributed.initialize(f"localhost:{port}", processes, process)
    assert jax.device_count() == DEVICES
    results = train_both_ways(process, processes)
    if process == 0:
        np.savez(out, **results)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4])
