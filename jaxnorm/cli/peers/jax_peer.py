"""How a library in JAX is run: compiled by `jax.jit`, under its own settings."""

from __future__ import annotations

import contextlib
import functools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxnorm.cli.peers.case import NORMS, Case, Data
from jaxnorm.cli.peers.peer import Program

# Programs on CPU with fewer bytes of arguments are queued.
QUEUED_BYTES = 1 << 20
# (x, *parameters), of batch norm with running=(mean, var) too -> result, running statistics.
Normalization = Callable[..., tuple[jax.Array, Any]]


class JaxPeer:
    """A library in JAX.

    Attributes:
      build: returns the normalization of a case.
      channels_first: whether it takes images as (N, C, H, W).
    """

    def __init__(
        self,
        name: str,
        version: str,
        build: Callable[[Case], Normalization],
        norms: Sequence[str] = NORMS,
        channels_first: bool = False,
    ):
        self.name, self.version, self.norms = name, version, norms
        self.build, self.channels_first = build, channels_first
        self._jitted = functools.cache(lambda case: jax.jit(self.function(case, True)))

    def programs(self, case: Case, data: Data, backward: bool) -> list[Program]:
        """Compiles the case; see `Peer`."""
        arguments = self._arguments(case, data, backward)
        keywords = self._keywords(data)
        return [compile_program(self.function(case, backward), *arguments, **keywords)]

    def function(self, case: Case, backward: bool) -> Callable[..., Any]:
        """Returns what is compiled: of (x, *parameters), or of (dy, x, *parameters) if `backward`.

        Keywords go to the normalization.
        """
        normalization = self.build(case)
        if not backward:
            return normalization

        def with_cotangents(dy, x, *parameters, **keywords):
            normalize = functools.partial(normalization, **keywords)
            y, pullback, running = jax.vjp(normalize, x, *parameters, has_aux=True)
            # In a model dy depends on y. Unless it does here, XLA takes the backward pass's sums
            # in the kernel that writes y: a program that no model has.
            y, dy = jax.lax.optimization_barrier((y, dy.astype(y.dtype)))
            return y, pullback(dy), running

        return with_cotangents

    def kept_bytes(self, case: Case, data: Data) -> int:
        """Counts the residuals of `jax.vjp`; see `Peer`."""
        normalization = functools.partial(self.build(case), **self._keywords(data))
        x, *parameters = self._arguments(case, data, False)

        def residuals(x, *parameters):
            return jax.tree.leaves(jax.vjp(normalization, x, *parameters, has_aux=True)[1])

        with foreign_code():
            jaxpr = jax.make_jaxpr(residuals)(x, *parameters).jaxpr
        kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
        return sum(v.aval.size * v.aval.dtype.itemsize for v in kept)  # type: ignore[attr-defined]

    def evaluate(self, case: Case, data: Data) -> tuple[np.ndarray, ...]:
        """Returns y, dx and the parameters' cotangents; see `Peer`."""
        with foreign_code():
            arguments = self._arguments(case, data, True)
            y, (dx, *dparameters), _ = self._jitted(case)(*arguments, **self._keywords(data))
        if self._channels_first(case):
            y, dx = (jnp.moveaxis(a, 1, -1) for a in (y, dx))
        return tuple(np.asarray(a).astype(np.float64) for a in (y, dx, *dparameters))

    def _channels_first(self, case: Case) -> bool:
        return self.channels_first and case.kind in ("batch", "group", "instance")

    def _keywords(self, data: Data) -> dict[str, Any]:
        return {"running": jax.device_put(data.running)} if data.running else {}

    def _arguments(self, case: Case, data: Data, backward: bool) -> tuple[jax.Array, ...]:
        x, dy = data.on_device(self._channels_first(case))
        arguments = (x, *jax.device_put(data.parameters))
        return (dy, *arguments) if backward else arguments


@contextlib.contextmanager
def foreign_code() -> Iterator[None]:
    """Runs other libraries under JAX's default promotion, their warnings unheard."""
    with (
        warnings.catch_warnings(),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        warnings.simplefilter("ignore")
        yield


def compile_program(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Program:
    """Traces and compiles a function, nothing of it remembered from before.

    Where its first result can be its first argument, calls of it can be made to depend on each
    other. Small programs on CPU are then queued: waking the thread that waits for a call takes
    as long as the call, or longer, or nothing if it is not asleep yet.
    """
    jax.clear_caches()
    with foreign_code():
        start, cpu_start = time.perf_counter(), time.process_time()
        lowered = jax.jit(function).lower(*arguments, **keywords)
        compiled = lowered.compile()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    first, result = arguments[0], jax.tree.leaves(lowered.out_info)[0]
    repeats = isinstance(first, jax.Array) and first.shape == result.shape
    repeats = repeats and first.dtype == result.dtype
    on_cpu = jax.default_backend() == "cpu"
    size = sum(a.nbytes for a in jax.tree.leaves((arguments, keywords)))

    def call(last=None):
        if last is None or not repeats:
            return compiled(*arguments, **keywords)
        return compiled(last[0], *arguments[1:], **keywords)

    memory = compiled.memory_analysis()
    return Program(
        call=call,
        wait=jax.block_until_ready,
        queues=not on_cpu or (repeats and size < QUEUED_BYTES),
        compile_seconds=seconds,
        compile_cpu_seconds=cpu_seconds,
        temp_bytes=None if memory is None else memory.temp_size_in_bytes,
    )
