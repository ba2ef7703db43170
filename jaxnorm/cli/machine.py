"""What a measurement was made on, to be shown with its numbers."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from jaxnorm.cli.peers.peer import Peer


class Machine(NamedTuple):
    """Device, machine class, versions and date.

    Attributes:
      device: what JAX computes on.
      cpu: the processor's name and the number of cores that the process may use.
      versions: of everything that was measured, and what it runs on.
      date: when, as year-month-day.
    """

    device: str
    cpu: str
    versions: str
    date: str

    @property
    def text(self) -> str:
        """All of it in one line."""
        where = self.cpu if self.device == "cpu" else f"{self.device}; {self.cpu}"
        return f"{where}; {self.versions}; {self.date}"


def describe_machine(peers: Sequence[Peer]) -> Machine:
    """Describes this machine and the libraries."""
    device = jax.devices()[0]
    versions = {peer.name.split(".")[0]: peer.version for peer in peers}
    versions |= {
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "Python": platform.python_version(),
    }
    cores = _count_cores()
    return Machine(
        device="cpu" if device.platform == "cpu" else device.device_kind,
        cpu=f"{_cpu_name()}, {cores} core{'' if cores == 1 else 's'}",
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        date=datetime.date.today().isoformat(),
    )


def _count_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    """Returns the processor's name; Python has it on some systems only."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
