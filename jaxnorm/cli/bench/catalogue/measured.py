"""Measures entries of the catalogue: forward and backward, in units of one copy of the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jaxnorm
from jaxnorm.cli.bench.cases import make_data
from jaxnorm.cli.bench.catalogue.entry import Arrays, Entry, as_normalization
from jaxnorm.cli.bench.measure import Cell, measure
from jaxnorm.cli.jobs import Job, Progress
from jaxnorm.cli.peers.jax_peer import JaxPeer
from jaxnorm.cli.peers.peer import Peer
from jaxnorm.cli.peers.torch_peer import TorchPeer

BY_HAND = "by hand"


def list_jobs(
    entries: Sequence[Entry], dtypes: Sequence[str], libraries: Sequence[Peer], rounds: int
) -> list[Job[Cell]]:
    """Returns a job for each entry and dtype.

    Args:
      entries: of the catalogue.
      dtypes: of x.
      libraries: the peers that can be used, without jaxnorm; formulas by hand always can.
      rounds: samples of each program.
    """

    def job(entry: Entry, dtype: str) -> Job[Cell]:
        def run_job(tell: Progress) -> Cell:
            return _measure(entry, dtype, libraries, rounds, tell)

        return Job(f"{entry.label} {entry.case(dtype).shape_text} {dtype}", run_job)

    return [job(entry, dtype) for entry in entries for dtype in dtypes]


def _measure(
    entry: Entry, dtype: str, libraries: Sequence[Peer], rounds: int, tell: Progress
) -> Cell:
    case = entry.case(dtype)
    # Those of an entry have the attributes that peers read of a case's.
    data: Any = make_data(case) if entry.kind else Arrays(entry, dtype)
    peers = [_jax_peer("jaxnorm", jaxnorm.__version__, entry, entry.call)]
    peers += _list_peers(entry, libraries)
    cell = measure(case, data, True, peers, rounds, tell)
    # The copy beside it is one of x and dy; a copy here is one read and one write of x.
    return cell._replace(case=case._replace(norm=entry.label), copy_seconds=cell.copy_seconds / 2)


def _list_peers(entry: Entry, libraries: Sequence[Peer]) -> list[Peer]:
    if entry.kind:
        return list(libraries)
    found: list[Peer] = []
    for peer in libraries:
        if isinstance(peer, TorchPeer) and entry.torch:
            found.append(peer.of(entry.label, entry.torch))
        elif peer.name in entry.others:
            found.append(_jax_peer(peer.name, peer.version, entry, entry.others[peer.name]))
    if BY_HAND in entry.others:
        found.append(_jax_peer(BY_HAND, "", entry, entry.others[BY_HAND]))
    return found


def _jax_peer(name: str, version: str, entry: Entry, call) -> JaxPeer:
    kind = entry.kind or entry.label
    return JaxPeer(name, version, lambda case: as_normalization(call), norms=(kind,))
