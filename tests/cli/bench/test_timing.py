"""How the benchmark times programs. Nothing depends on how long anything takes."""

import itertools
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxnorm.cli.bench import timing
from jaxnorm.cli.peers import jax_peer
from jaxnorm.cli.peers.jax_peer import compile_program
from jaxnorm.cli.peers.peer import Program

pytestmark = pytest.mark.quickly_compiled


class Clock:
    """Time that passes only while the programs below run, and while the clock is told to sleep."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(timing.time, "sleep", self.sleep)
        # A collection takes a tenth of a second where all of jax is loaded.
        monkeypatch.setattr(timing.gc, "collect", lambda: 0)
        self.log = []

    def sleep(self, seconds):
        self.now += seconds

    def program(self, name, times):
        """A program whose calls take the given times, again and again, and waiting for each 1."""
        times = itertools.cycle(times)

        def call(last=None):
            assert last in (None, name)
            self.log.append(name)
            self.now += next(times)
            return name

        def wait(result):
            assert result == name
            self.now += 1

        return Program(call, wait)


def test_programs_take_turns_and_medians_are_taken(monkeypatch):
    clock = Clock(monkeypatch)
    # The first three calls of each warm up; an outlier among the five rounds does no harm.
    steady, noisy = (
        clock.program("a", [9, 9, 9, 2, 2, 2, 2, 2]),
        clock.program("b", [9, 9, 9, 3, 3, 700, 3, 3]),
    )
    reports = []
    times = timing.interleave(
        [steady, noisy], 5, lambda share: reports.append((share, len(clock.log)))
    )
    assert times == [3, 4]  # with the 1 of waiting
    assert clock.log[:6] == ["a"] * 3 + ["b"] * 3
    assert reports == [(0.2, 8), (0.4, 10), (0.6, 12), (0.8, 14), (1.0, 16)]
    rounds = [tuple(clock.log[i : i + 2]) for i in range(6, 16, 2)]
    assert set(rounds) == {("a", "b"), ("b", "a")}  # both, but not always in the same order


def test_short_programs_are_called_many_times_for_a_sample(monkeypatch):
    clock = Clock(monkeypatch)

    def program(name, seconds):
        return clock.program(name, [seconds])._replace(wait=lambda result: None)

    short, long = program("short", 1e-4), program("long", 0.05)
    times = timing.interleave([short, long], 1)
    assert times == pytest.approx([1e-4, 0.05])
    # 2 + 1 to warm up and look, 10 to look closer, 1 before the sample of 4 ms.
    assert clock.log.count("short") == 13 + 1 + 40
    assert clock.log.count("long") == 3 + 1


def test_very_short_programs_are_sampled_many_times_in_a_round(monkeypatch):
    clock = Clock(monkeypatch)
    programs = [
        clock.program(name, [1e-5])._replace(wait=lambda result: None, queues=True)
        for name in ("a", "b")
    ]
    assert timing.interleave(programs, 3) == pytest.approx([1e-5, 1e-5])
    looking, pause = 13, 1
    assert clock.log.count("a") == clock.log.count("b") == looking + 3 * 10 * (pause + 100)
    turns = clock.log[2 * looking :: pause + 100]
    assert len(turns) == 2 * 3 * 10
    assert {tuple(turns[i : i + 2]) for i in range(0, 60, 2)} == {("a", "b"), ("b", "a")}


def test_queued_calls_are_waited_for_once(monkeypatch):
    clock = Clock(monkeypatch)
    program = clock.program("a", [1e-3])._replace(queues=True)
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 5.0)
    # Looking: (1e-3 + 1) s for a call; so five calls to the sample, and one wait.
    assert timing.interleave([program], 1) == pytest.approx([1e-3 + 1 / 5])


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere all programs queue")
def test_small_programs_on_cpu_are_queued_each_call_on_the_last_ones_result(monkeypatch):
    x = jnp.zeros(8)
    double = compile_program(lambda x, step: (2 * x + step, x.sum()), x, jnp.float32(1))
    assert double.queues
    assert double.wait(double.call())[0].tolist() == [1] * 8
    assert double.wait(double.call(double.call()))[0].tolist() == [3] * 8
    # Large ones would fill the memory with results, as others would run beside each other.
    monkeypatch.setattr(jax_peer, "QUEUED_BYTES", 32)
    assert not compile_program(lambda x: (2 * x,), x).queues
    monkeypatch.undo()
    for other in (lambda x: (x.astype(jnp.int32),), lambda x: (x[:4],)):
        program = compile_program(other, x)
        assert not program.queues
        program.wait(program.call(program.call()))


def test_the_fastest_of_several_ways_counts(monkeypatch):
    clock = Clock(monkeypatch)
    slow, quick = clock.program("slow", [3]), clock.program("quick", [2])
    assert timing.fastest([slow, quick]) is quick
    assert timing.fastest([slow]) is slow


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_reused_pages_cost_no_page_faults():
    code = (
        "import resource, threading, numpy as np\n"
        "from jaxnorm.cli.bench.timing import reuse_pages\n"
        "reuse_pages()\n"
        "def count(megabytes):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    np.ones(megabytes * 2**20, np.uint8)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
        "for megabytes in (100, 1, 8, 100):\n"
        "    count(megabytes)\n"
        "    thread = threading.Thread(target=count, args=(megabytes,))\n"
        "    thread.start(); thread.join()\n"
    )
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    first, *others = (int(line) for line in printed.split())
    # A thread needs some pages of its own; 1 MB are 256 pages, or one huge page and a few.
    assert first > 0 and max(others[1:]) < 64
    assert others[5] == 0  # the main thread has none to add
