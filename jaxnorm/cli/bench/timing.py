"""How programs are timed: in turn, round after round, so that what disturbs one disturbs all."""

from __future__ import annotations

import ctypes
import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxnorm.cli.peers.case import Case, Data
from jaxnorm.cli.peers.jax_peer import compile_program
from jaxnorm.cli.peers.peer import Program

SAMPLE_SECONDS = 4e-3  # many calls make up a sample of a program that is faster than that
# Calls of a few microseconds take up to twice as long while threads run at odds; how long, is
# drawn anew at each pause. So such programs are sampled many times in a round, and shorter.
SHORT_SAMPLE_SECONDS = 1e-3
SHORT_SAMPLES = 10
FEWEST_SHORT_CALLS = 20
MOST_CALLS = 1000
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # in glibc's malloc.h
PAUSE_SECONDS = 1e-3  # lets the threads of the program before go to sleep


def reuse_pages() -> None:
    """Has glibc's `malloc` keep all memory that it was ever given, for arrays of any size.

    By default arrays of more than 32 MB come in fresh pages, which cost more time than most
    normalizations; whether smaller ones do depends on what ran before. Other allocators stay as
    they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)
    # One arena: those of other threads are of at most 64 MB, and given back.
    mallopt(M_ARENA_MAX, 1)


def copy_program(case: Case, data: Data, backward: bool) -> Program:
    """Returns the floor: a program that reads and writes what any normalization has to.

    Forward it reads x and writes y; with `backward` it reads x and dy and writes y and dx.
    """
    x, dy = data.on_device(False)
    arrays = (x, dy) if backward else (x,)
    return compile_program(lambda *arrays: [touch(a) for a in arrays], *arrays)


def touch(array: jax.Array) -> jax.Array:
    """Returns the array with one bit of each element flipped.

    A plain copy runs on one thread on CPU, and arithmetic in bfloat16 would be more than a copy.
    """
    bits = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
    flipped = jax.lax.bitcast_convert_type(array, bits) ^ jnp.ones((), bits)
    return jax.lax.bitcast_convert_type(flipped, array.dtype)


def fastest(programs: Sequence[Program]) -> Program:
    """Returns the program that runs fastest, of several ways to compute the same."""
    if len(programs) == 1:
        return programs[0]
    times = interleave(programs, 3)
    return programs[times.index(min(times))]


def interleave(
    programs: Sequence[Program],
    rounds: int,
    report: Callable[[float], None] = lambda share: None,
) -> list[float]:
    """Times programs in turn, in another order each round.

    Args:
      programs: all of them are timed in each round, right after each other.
      rounds: samples to take of each program; tens of samples if most of them are short.
      report: called after each round with the share of them that is done.

    Returns:
      The median over the samples of each program's seconds per call.
    """
    shuffle = random.Random(0).shuffle
    seconds = [_estimate(program) for program in programs]
    are_short = statistics.median(seconds) <= SHORT_SAMPLE_SECONDS / FEWEST_SHORT_CALLS
    turns, length = (SHORT_SAMPLES, SHORT_SAMPLE_SECONDS) if are_short else (1, SAMPLE_SECONDS)
    calls = [max(1, min(MOST_CALLS, math.ceil(length / s))) for s in seconds]
    samples: list[list[float]] = [[] for _ in programs]
    order = list(range(len(programs)))
    collects = gc.isenabled()
    for done in range(rounds):
        gc.collect()
        gc.disable()
        try:
            for _ in range(turns):
                shuffle(order)
                for i in order:
                    time.sleep(PAUSE_SECONDS)
                    if calls[i] > 1:
                        _sample(programs[i], 1)
                    samples[i].append(_sample(programs[i], calls[i]))
        finally:
            if collects:
                gc.enable()
        report((done + 1) / rounds)
    return [statistics.median(s) for s in samples]


def _estimate(program: Program) -> float:
    """Returns about the seconds per call, of a program that it also warms up."""
    _sample(program, 2)
    seconds = _sample(program, 1)
    # A single short call is mostly noise.
    return _sample(program, 10) if seconds < SAMPLE_SECONDS / 10 else seconds


def _sample(program: Program, calls: int) -> float:
    """Returns the seconds per call."""
    call, wait = program.call, program.wait
    start = time.perf_counter()
    if program.queues:
        result = None
        for _ in range(calls):
            result = call(result)
        wait(result)
    else:
        for _ in range(calls):
            wait(call())
    return (time.perf_counter() - start) / calls
