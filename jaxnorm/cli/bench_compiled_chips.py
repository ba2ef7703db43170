"""Chips that `bench --compile-for` compiles for, which need not be there."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxnorm.cli.bench_compiled_hlo import Program
from jaxnorm.cli.errors import UserError, require
from jaxnorm.cli.peers_jax import foreign_code

# Names of topologies with 4 and with 8 chips, and what libtpu calls the machine.
TPUS = {
    "v5e": ("v5e:2x2", "v5e:2x4", "v5litepod-4"),
    "v5p": ("v5p:2x2x1", "v5p:2x2x2", "v5p-8"),
    "v6e": ("v6e:2x2", "v6e:2x4", "v6e-4"),
}


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

    def array(self, shape: tuple[int, ...], dtype: Any, divided: bool = False) -> Any:
        """Describes an argument: an array whose first axis is divided over the chips, or not."""
        spec = PartitionSpec(*self.mesh.axis_names) if divided else PartitionSpec()
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, spec))

    def compile(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Compiled:
        """Traces and compiles a function of described arguments, nothing remembered of others."""
        jax.clear_caches()
        explicit = AxisType.Explicit in self.mesh.axis_types
        with foreign_code(), jax.set_mesh(self.mesh) if explicit else contextlib.nullcontext():
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
      chip: of `bench_cases.CHIPS`.
      devices: how many of it.
      explicit: whether the types of arrays say how they are divided.

    Raises:
      UserError: the compiler is not installed, or another process has it.
    """
    # What happens to be attached here must not be waited for.
    jax.config.update("jax_platforms", "cpu")
    found = _find_tpus(chip, devices)
    kind = AxisType.Explicit if explicit else AxisType.Auto
    return Target(chip, Mesh(np.array(found[:devices]), ("data",), axis_types=(kind,)))


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
