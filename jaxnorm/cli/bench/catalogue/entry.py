"""A function of the catalogue in one shape, and the arrays that it is given."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.cli.peers.case import Case
from jaxnorm.cli.peers.jax_peer import Normalization

Shape = tuple[int, ...]
# (x, *parameters, *constants) -> the result, or a tuple that it opens.
Call = Callable[..., Any]


class Entry(NamedTuple):
    """A function in one shape, and the same by hand or from a library.

    Attributes:
      name: of the function in `jaxnorm`.
      shape: of its first argument.
      call: what is measured.
      parameters: the shapes of arrays that cotangents are computed for too.
      constants: arrays without cotangents: segments, running statistics.
      detail: tells the entries of a function from each other: "60 segments".
      kind: the norm of `bench` that it is, which other libraries have.
      others: the same of another library, or by hand, under its name.
      torch: the same of (torch, x), x of (N, C, ...).
    """

    name: str
    shape: Shape
    call: Call
    parameters: tuple[Shape, ...] = ()
    constants: tuple[np.ndarray, ...] = ()
    detail: str = ""
    kind: str = ""
    others: Mapping[str, Call] = {}
    torch: Call | None = None

    @property
    def label(self) -> str:
        """The name and the detail."""
        return f"{self.name}, {self.detail}" if self.detail else self.name

    def case(self, dtype: str) -> Case:
        """Returns what is measured, as peers know it."""
        return Case(self.kind or self.label, self.shape, dtype)


class Arrays:
    """The arrays of an entry, as `jaxnorm.cli.peers.case.Data` has those of a norm.

    Attributes:
      x: input, channels last, in the case's dtype.
      dy: cotangent of the result, like `x`.
      parameters: near 1, as gains, scales and widths are; float32.
      running: the constants.
    """

    def __init__(self, entry: Entry, dtype: str):
        rng = np.random.default_rng(0)
        self.x, self.dy = (
            rng.standard_normal(entry.shape, np.float32).astype(jnp.dtype(dtype)) for _ in range(2)
        )
        self.parameters = tuple(
            np.asarray(1 + 0.1 * rng.standard_normal(shape), np.float32)
            for shape in entry.parameters
        )
        self.running = entry.constants
        self.on_device = functools.cache(self._on_device)

    def _on_device(self, channels_first: bool) -> tuple[jax.Array, jax.Array]:
        assert not channels_first, "of peers that have them so, `Data` holds the arrays"
        return jax.device_put(self.x), jax.device_put(self.dy)


def as_normalization(call: Call) -> Normalization:
    """Returns the call as peers have it: constants by name, statistics beside the result."""

    def apply(x, *parameters, running=()):
        y = call(x, *parameters, *running)
        return (y[0], y[1:]) if isinstance(y, tuple) else (y, ())

    return apply
