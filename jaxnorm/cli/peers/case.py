"""The libraries that `bench` and `exact` run side by side, all on the same arrays."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.cli.errors import UserError

NORMS = ("layer", "rms", "batch", "group", "instance")
DTYPES = ("float32", "bfloat16", "float16")
EPSILON = 1e-5  # in every library, so that results can be compared
MOMENTUM = 0.9  # decay of batch norm's running statistics; no effect on what is measured


class Case(NamedTuple):
    """A normalization of an array; the last axis holds the features or channels."""

    norm: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def kind(self) -> str:
        """The norm, whatever its running statistics."""
        return self.norm.removesuffix("-first")

    @property
    def input_bytes(self) -> int:
        """Size of the array."""
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize

    @property
    def num_groups(self) -> int:
        """Groups for group norm: 32, or as many as divide both 32 and the channels."""
        return math.gcd(32, self.shape[-1])

    @property
    def shape_text(self) -> str:
        """The shape as one types it: 32x56x56x64."""
        return "x".join(map(str, self.shape))


class Data:
    """Input, cotangent and parameters of a case, on the host and on JAX's device.

    Attributes:
      x: input, channels last, in the case's dtype.
      dy: cotangent of the result, like `x`.
      parameters: gamma and, unless the norm has none, beta; float32.
      running: mean and variance of batch norm, at the start of training or in `steady` state; else
        nothing.

    Args:
      case: what they are for.
      seed: of the random numbers.
      mean: of the input, whose deviation is 1.
      spread: deviation of the channels' own means. With some, beta is these means: short programs
        are given their last results for x, which should be like the first one.
      steady: whether batch norm's running mean is within 0.1 deviations of the batch's.
    """

    def __init__(
        self,
        case: Case,
        seed: int = 0,
        mean: float = 0.0,
        spread: float = 0.0,
        steady: bool = False,
    ):
        rng = np.random.default_rng(seed)

        def draw(shape: tuple[int, ...], mean, std: float, dtype) -> np.ndarray:
            values = rng.standard_normal(shape, np.float32)
            values *= np.float32(std)
            values += np.asarray(mean, np.float32)
            return values.astype(dtype, copy=False)

        means = draw(case.shape[-1:], mean, spread, np.float32) if spread else mean
        self.x = draw(case.shape, means, 1, jnp.dtype(case.dtype))
        self.dy = draw(case.shape, 0, 1, jnp.dtype(case.dtype))
        gamma, beta = (draw(case.shape[-1:], value, 0.1, np.float32) for value in (1, 0))
        near, var = np.zeros_like(beta), np.ones_like(beta)
        if spread:
            pooled = self.x.reshape(-1, case.shape[-1]).astype(np.float32)
            beta = pooled.mean(0)
            if steady:
                var = pooled.var(0)
                near = beta + np.sqrt(var) * rng.uniform(-0.1, 0.1, var.shape).astype(np.float32)
        self.parameters = (gamma,) if case.norm == "rms" else (gamma, beta)
        self.running = (near, var) if case.kind == "batch" else ()
        self.on_device = functools.cache(self._on_device)

    def _on_device(self, channels_first: bool) -> tuple[jax.Array, jax.Array]:
        """Returns `x` and `dy` as arrays of JAX."""
        x, dy = self.x, self.dy
        if channels_first:
            x, dy = (np.ascontiguousarray(np.moveaxis(a, -1, 1)) for a in (x, dy))
        return jax.device_put(x), jax.device_put(dy)


class Program(NamedTuple):
    """A computation with its arguments, ready to be run again and again.

    Attributes:
      call: starts it and returns its results; may be given the last call's results.
      wait: waits for results.
      queues: whether calls may follow each other without waiting, if each is given the last
        one's results; else they could run at the same time, or fill the memory.
      compile_seconds: what tracing and compiling took, where there was any.
      temp_bytes: memory that the compiled program needs besides arguments and results.
    """

    call: Callable[..., Any]
    wait: Callable[[Any], Any]
    queues: bool = False
    compile_seconds: float | None = None
    temp_bytes: int | None = None


class Peer(Protocol):
    """A library's normalizations."""

    name: str
    version: str
    norms: Sequence[str]

    def programs(self, case: Case, data: Data, backward: bool) -> list[Program]:
        """Returns the ways to compute a case, of which the fastest counts.

        The result is y, with `backward` also the cotangents of x and of all parameters.
        """
        ...

    def kept_bytes(self, case: Case, data: Data) -> int:
        """Returns the bytes kept from the forward for the backward pass, each array once."""
        ...

    def evaluate(self, case: Case, data: Data) -> tuple[np.ndarray, ...]:
        """Returns y and the cotangents of x and the parameters, channels last, in float64."""
        ...


class Unavailable(Exception):
    """A peer that cannot be used here; the text says why."""


def load(names: Sequence[str] | None) -> tuple[list[Peer], list[str]]:
    """Imports jaxnorm and its peers.

    Args:
      names: peers, of `PEERS`; None for all that can be used here.

    Returns:
      jaxnorm and the peers, and a line for each that cannot be used here.

    Raises:
      UserError: one of the named peers cannot be used here.
    """
    from jaxnorm.cli import peers_jax

    loaded: list[Peer] = [peers_jax.load_jaxnorm()]
    missing = []
    for name in PEERS if names is None else names:
        try:
            loaded.append(_load(name))
        except Unavailable as error:
            if names is not None:
                raise UserError(
                    f"cannot compare with {name}: {error}; leave it out of --peers"
                ) from error
            missing.append(f"{name}: {error}")
    return loaded, missing


def _load(name: str) -> Peer:
    from jaxnorm.cli import peers_jax, peers_torch

    loaders = {
        "flax.linen": peers_jax.load_flax,
        "haiku": peers_jax.load_haiku,
        "equinox": peers_jax.load_equinox,
        "tokamax": peers_jax.load_tokamax,
        "torch": peers_torch.load_eager,
        "torch.compile": peers_torch.load_compiled,
    }
    return loaders[name]()


PEERS = ("flax.linen", "haiku", "equinox", "tokamax", "torch", "torch.compile")
