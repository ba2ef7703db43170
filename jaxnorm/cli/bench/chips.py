"""Chips that `bench --compile-for` compiles for, which need not be there."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxnorm.cli.bench.hlo import Program
from jaxnorm.cli.errors import UserError, require
from jaxnorm.cli.peers.jax_peer import foreign_code

# Names of topologies with 4 and with 8 chips, and what libtpu calls the machine.
TPUS = {
    "v5e": ("v5e:2x2", "v5e:2x4", "v5litepod-4"),
    "v5p": ("v5p:2x2x1", "v5p:2x2x2", "v5p-8"),
    "v6e": ("v6e:2x2", "v6e:2x4", "v6e-4"),
}
# As XLA describes the GPU that it finds: numbers of an H100 with 80 GB.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: 3352320000000
  device_memory_size: 84929347584
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 7 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Compiled(NamedTuple):
    """What is known of a compiled program.

    Attributes:
      cost: estimated cycles, for a GPU bytes read and written.
      temp_bytes: memory besides arguments and results, of each chip.
      collectives: how often arrays pass between chips.
      seconds: of tracing and compiling.
    """

    cost: int
    temp_bytes: int
    collectives: int
    seconds: float


class Target(NamedTuple):
    """Chips of one kind, in a mesh of one axis."""

    chip: str
    mesh: Mesh

    @property
    def is_explicit(self) -> bool:
        """Whether the types of arrays say how they are divided."""
        return AxisType.Explicit in self.mesh.axis_types

    def array(self, shape: tuple[int, ...], dtype: Any, divided: bool = False) -> Any:
        """Describes an argument: an array whose first axis is divided over the chips, or not."""
        spec = PartitionSpec(*self.mesh.axis_names) if divided else PartitionSpec()
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, spec))

    def compile(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Compiled:
        """Traces and compiles a function of described arguments, nothing remembered of others."""
        jax.clear_caches()
        around = jax.set_mesh(self.mesh) if self.is_explicit else contextlib.nullcontext()
        with foreign_code(), around:
            start = time.perf_counter()
            compiled = jax.jit(function).lower(*arguments, **keywords).compile()
            seconds = time.perf_counter() - start
        program = Program(compiled.as_text() or "")
        cost = program.count_cycles() if self.chip in TPUS else program.count_bytes()
        memory = compiled.memory_analysis()
        temp = 0 if memory is None else memory.temp_size_in_bytes
        return Compiled(cost, temp, program.count_collectives(), seconds)


def make_target(chip: str, devices: int, explicit: bool) -> Target:
    """Prepares the compiler of a chip; has to come before JAX's first computation.

    Args:
      chip: of `cases.CHIPS`.
      devices: how many of it.
      explicit: whether the types of arrays say how they are divided.

    Raises:
      UserError: the compiler is not installed, or another process has it.
    """
    # What happens to be attached here must not be waited for.
    jax.config.update("jax_platforms", "cpu")
    found = _find_tpus(chip, devices) if chip in TPUS else _find_gpus(chip, devices)
    kind = AxisType.Explicit if explicit else AxisType.Auto
    return Target(chip, Mesh(np.array(found[:devices]), ("data",), axis_types=(kind,)))


def describe_compiler(chip: str) -> str:
    """Returns the package that compiles for a chip, and its version."""
    for name in ("libtpu",) if chip in TPUS else ("jax-cuda12-plugin", "jax-cuda13-plugin"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    return "compiler unknown"


def _find_tpus(chip: str, devices: int) -> list[Any]:
    require("libtpu", extra="tpu")
    few, many, machine = TPUS[chip]
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", machine)
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        name = few if devices <= 4 else many
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" not in str(error) and "in use" not in str(error):
            raise
        raise UserError(
            "libtpu serves one process at a time, and another one has it: wait for that to end, or "
            "set ALLOW_MULTIPLE_LIBTPU_LOAD=1"
        ) from error


def _find_gpus(chip: str, devices: int) -> list[Any]:
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        require("jax_cuda12_plugin", extra="gpu")
    # There need not be a GPU whose driver could be checked.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    return topologies.get_topology_desc(
        topology_name=chip, platform="cuda", target_config=H100, topology=f"1x1x{devices}"
    ).devices
