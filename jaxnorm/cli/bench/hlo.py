"""What a compiled program costs, read from XLA's text of it: cycles, bytes, collectives."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.-]+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_COLLECTIVE = re.compile(
    "(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast"
    ")(-start)?"
)
# These move no bytes; of a pair, start and done, the first counts.
_FREE = re.compile(
    "parameter|constant|tuple|get-tuple-element|bitcast|after-all|partition-id|replica-id|.*-done"
)


class Instruction(NamedTuple):
    """A line of a program; `text` is what follows its opcode: operands and attributes."""

    name: str
    shape: str
    opcode: str
    text: str

    @property
    def operands(self) -> list[str]:
        """The names of its operands."""
        return _NAME.findall(self.text.partition("), ")[0])

    @property
    def size(self) -> int:
        """The bytes of its result."""
        if self.opcode == "custom-call":
            # A library's kernel also returns the memory that it worked in.
            return _count_bytes(re.sub(r"\bs8\[", "token[", self.shape))
        return _count_bytes(self.shape)

    def called(self, *keys: str) -> list[str]:
        """Returns the computations that are named under the keys, such as `calls`."""
        found = re.findall(rf"\b(?:{'|'.join(keys)})=(\{{.*?\}}|%?[\w.-]+)", self.text)
        return [name for names in found for name in re.findall(r"[\w.-]+", names)]


class Computation(dict[str, Instruction]):
    """Instructions by name, in order; `root` is the name of the result."""

    root = ""

    def written(self, name: str) -> int:
        """Returns the bytes that a kernel writes for one of its results."""
        line = self[name]
        if line.opcode in ("tuple", "bitcast"):
            return sum(self.written(operand) for operand in line.operands)
        if line.opcode == "dynamic-update-slice":
            return self[line.operands[1]].size
        return line.size

    def read(self, name: str) -> int:
        """Returns the bytes that a kernel reads of an array: of one only sliced, the slices'."""
        total = 0
        for line in self.values():
            operands = line.operands
            if name not in operands:
                continue
            if line.opcode in ("slice", "dynamic-slice", "gather") and operands[0] == name:
                total += line.size
            elif line.opcode == "bitcast":
                total += self.read(line.name)
            elif line.opcode != "dynamic-update-slice" or operands[0] != name:
                total += self[name].size
        return min(total, self[name].size)


Weigh = Callable[[Instruction, Computation], int]


class Program:
    """A compiled program.

    Attributes:
      computations: by name.
      entry: the name of the one that is run.
    """

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry, current = "", Computation()
        for line in text.splitlines():
            if head := _HEAD.match(line):
                current = self.computations[head[2]] = Computation()
                self.entry = head[2] if head[1] else self.entry
            elif found := _LINE.match(line):
                root, name, *others = found.groups()
                current[name] = Instruction(name, *others)
                current.root = name if root else current.root

    def count_cycles(self) -> int:
        """Returns XLA's own estimate, which it makes for TPU only."""
        return self._total(_cycles)

    def count_bytes(self) -> int:
        """Returns what the kernels of a GPU read and write."""
        return self._total(self._bytes)

    def count_collectives(self) -> int:
        """Returns how often arrays, of more than one number, pass between devices."""
        count = 0
        for line, _, times in self._run(self.entry, _cycles):
            inside = [line]
            for name in line.called("calls"):
                inside += self.computations[name].values()
            found = [each for each in inside if _COLLECTIVE.fullmatch(each.opcode)]
            count += times * sum(_largest(each.shape) > 1 for each in found)
        return count

    def _total(self, weigh: Weigh) -> int:
        run = self._run(self.entry, weigh)
        return sum(times * weigh(line, around) for line, around, times in run)

    def _run(
        self, name: str, weigh: Weigh, times: int = 1
    ) -> Iterator[tuple[Instruction, Computation, int]]:
        """Yields what is run, with the computation around it and how many times.

        Of a conditional it is the branch that costs least, the one for ordinary data.
        """
        around = self.computations[name]
        for line in around.values():
            if line.opcode == "conditional":
                names = line.called("branch_computations", "true_computation", "false_computation")
                branches = [[*self._run(branch, weigh, times)] for branch in names]
                yield from min(branches, key=lambda run: sum(t * weigh(i, a) for i, a, t in run))
            elif line.opcode == "while":
                (body,) = line.called("body")
                yield from self._run(body, weigh, times * self._trips(line))
            elif line.opcode in ("call", "async-start"):
                for called in line.called("to_apply", "calls"):
                    yield from self._run(called, weigh, times)
            else:
                yield line, around, times

    def _trips(self, line: Instruction) -> int:
        """Returns how often a loop runs: as XLA says, or the constant that it counts up to."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line.text):
            return int(known[1])
        (condition,) = line.called("condition")
        constants = [i for i in self.computations[condition].values() if i.opcode == "constant"]
        found = [re.match(r"\d+", constant.text) for constant in constants]
        return max((int(number[0]) for number in found if number), default=1)

    def _bytes(self, line: Instruction, around: Computation) -> int:
        """Returns what a kernel reads and writes."""
        if _FREE.fullmatch(line.opcode):
            return 0
        operands = dict.fromkeys(line.operands)
        if called := line.called("calls"):
            kernel = self.computations[called[0]]
            names = [each.name for each in kernel.values() if each.opcode == "parameter"]
        elif line.opcode.endswith("-start"):
            return 2 * sum(around[name].size for name in operands)
        else:
            inputs = {n: Instruction(n, around[n].shape, "parameter", "") for n in operands}
            kernel = Computation(inputs | {line.name: line})
            kernel.root, names = line.name, list(operands)
        return kernel.written(kernel.root) + sum(map(kernel.read, names))


def _cycles(line: Instruction, _: Computation) -> int:
    found = _CYCLES.search(line.text)
    return int(found[1]) if found else 0


def _arrays(shape: str) -> list[tuple[int, int]]:
    """Returns the elements and the bits of an element, of each array of a shape."""
    return [
        (
            math.prod(map(int, filter(None, dims.split(",")))),
            8 if kind == "pred" else int(bits or 0),
        )
        for kind, bits, dims in _SHAPE.findall(shape)
    ]


def _largest(shape: str) -> int:
    return max((elements for elements, _ in _arrays(shape)), default=0)


def _count_bytes(shape: str) -> int:
    return sum(-(-elements * bits // 8) for elements, bits in _arrays(shape))
