"""Whether norms of NNX are called, which has no interceptors as linen has."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

from flax import nnx

from jaxnorm.tools.models.norms import DROP_IN, FLAX, OWN

_NORMS: list[Any] = [
    kind
    for kind in dict.fromkeys((*FLAX, *OWN, *DROP_IN))
    if issubclass(kind, nnx.Module) and ("__call__" in vars(kind) or kind in OWN)
]
_lock = threading.Lock()
_blocks = 0  # of `watching`, in all threads
_watchers = threading.local()


@contextlib.contextmanager
def watching() -> Iterator[list[str]]:
    """Yields the names of the norms of NNX that are called inside, in this thread, as they are."""
    global _blocks
    names: list[str] = []
    stack = _watchers.stack = [*getattr(_watchers, "stack", ()), names]
    with _lock:
        _blocks += 1
        if _blocks == 1:
            for kind in _NORMS:
                kind.__call__ = _watched(kind.__call__)
    try:
        yield names
    finally:
        _watchers.stack = stack[:-1]
        with _lock:
            _blocks -= 1
            if _blocks == 0:
                for kind in _NORMS:
                    call = kind.__call__.__wrapped__
                    del kind.__call__
                    if kind.__call__ is not call:  # else it is that of a base
                        kind.__call__ = call


def _watched(call: Any) -> Any:
    @functools.wraps(call)
    def watched(self, *args, **kwargs):
        for names in getattr(_watchers, "stack", ()):
            names.append(type(self).__name__)
        return call(self, *args, **kwargs)

    return watched
