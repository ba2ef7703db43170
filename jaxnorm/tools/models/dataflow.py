"""What becomes of each value in a program: a jaxpr with all that it calls written out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from jax.extend import core

Value = int | None  # the number of a value; None for a literal

# Functions that are called once, with the arguments that are given.
LOOPS = {"scan", "while", "cond"}
# What hands a value on as it is, but for rounding and where it lies.
SAME = {"name", "convert_element_type", "copy", "sharding_constraint", "reshard"}
# What also keeps its numbers, in another shape.
RESHAPED = SAME | {"reshape", "transpose", "rev", "broadcast_in_dim", "squeeze", "expand_dims"}


class Step(NamedTuple):
    """A primitive operation.

    Attributes:
      name: of the primitive.
      params: of the primitive.
      inputs: what it takes.
      outputs: what it makes.
      within: the innermost function that it belongs to, such as "relu", if that has a name.
    """

    name: str
    params: dict[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[int, ...]
    within: str


@dataclasses.dataclass
class Flow:
    """The steps of a program, those within loops and branches as well.

    Attributes:
      inputs: of the program.
      steps: in the order that they run.
      maker: the step that makes a value.
      users: the steps that take a value.
      outside: of a value that a loop or branch is given, what it is outside.
      inside: the other way round.
      results: what leaves the program, or a loop, or a branch.
      outputs: of the program.
    """

    inputs: list[int] = dataclasses.field(default_factory=list)
    steps: list[Step] = dataclasses.field(default_factory=list)
    maker: dict[int, Step] = dataclasses.field(default_factory=dict)
    users: dict[int, list[Step]] = dataclasses.field(default_factory=dict)
    outside: dict[int, int] = dataclasses.field(default_factory=dict)
    inside: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    results: set[int] = dataclasses.field(default_factory=set)
    outputs: list[Value] = dataclasses.field(default_factory=list)
    _count: int = 0

    @classmethod
    def of(cls, closed: Any) -> Flow:
        """Returns the steps of what `jax.make_jaxpr` made."""
        flow, jaxpr = cls(), open_jaxpr(closed)
        flow.inputs = [flow._new() for _ in jaxpr.invars]
        flow.outputs = flow._write(jaxpr, flow.inputs, "")
        flow._leave(flow.outputs)
        return flow

    def source(self, value: Value, through: Collection[str]) -> Value:
        """Returns what a value was before the operations `through`, also outside of loops."""
        while value is not None:
            step = self.maker.get(value)
            if step is None and value in self.outside:
                value = self.outside[value]
            elif step is not None and step.name in through:
                value = step.inputs[0]
            else:
                break
        return value

    def ends(self, value: int, passes: Callable[[Step], bool]) -> Iterator[Step | None]:
        """Yields the steps that take a value and do not pass it on; None if it leaves a program."""
        if value in self.results:
            yield None
        for inner in self.inside.get(value, ()):
            yield from self.ends(inner, passes)
        for step in self.users.get(value, ()):
            if passes(step):
                yield from self.ends(step.outputs[0], passes)
            elif step.name not in LOOPS or value not in self.inside:
                yield step

    def _leave(self, values: list[Value]) -> None:
        self.results |= {value for value in values if value is not None}

    def _new(self) -> int:
        self._count += 1
        return self._count - 1

    def _write(self, jaxpr: Any, given: Sequence[Value], within: str) -> list[Value]:
        """Writes a jaxpr out; returns its results."""
        known: dict[Any, Value] = dict(zip(jaxpr.invars, given, strict=True))
        known |= {var: self._new() for var in jaxpr.constvars}

        def value(atom) -> Value:
            return None if isinstance(atom, core.Literal) else known[atom]

        for eqn in jaxpr.eqns:
            inputs = tuple(value(atom) for atom in eqn.invars)
            name = eqn.primitive.name
            inner = called_jaxpr(eqn)
            if inner is not None:
                called = str(eqn.params.get("name") or within)
                known |= dict(zip(eqn.outvars, self._write(inner, inputs, called), strict=True))
                continue
            outputs = tuple(self._new() for _ in eqn.outvars)
            known |= dict(zip(eqn.outvars, outputs, strict=True))
            step = Step(name, eqn.params, inputs, outputs, within)
            self.steps.append(step)
            self.maker |= dict.fromkeys(outputs, step)
            for taken in set(inputs):
                if taken is not None:
                    self.users.setdefault(taken, []).append(step)
            for body, entering in _bodies(eqn, inputs):
                enters = [self._new() for _ in body.invars]
                for new, old in zip(enters, entering, strict=True):
                    if old is not None:
                        self.outside[new] = old
                        self.inside.setdefault(old, []).append(new)
                self._leave(self._write(body, enters, within))
        return [value(atom) for atom in jaxpr.outvars]


def open_jaxpr(jaxpr: Any) -> Any:
    """Returns a jaxpr, closed or not, without its constants."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def called_jaxpr(eqn: Any) -> Any:
    """Returns the jaxpr of what is called once with the operation's own arguments, if it is."""
    if eqn.primitive.name in LOOPS:
        return None
    inner = [open_jaxpr(p) for p in eqn.params.values() if hasattr(open_jaxpr(p), "eqns")]
    if len(inner) != 1 or len(inner[0].invars) != len(eqn.invars):
        return None
    fits = zip(inner[0].invars, eqn.invars, strict=True)
    return inner[0] if all(a.aval.shape == b.aval.shape for a, b in fits) else None


def scan_sizes(eqn: Any) -> tuple[int, int]:
    """Returns how many constants a scan has, and how many values it carries."""
    body = open_jaxpr(eqn.params["jaxpr"])

    def same(inner, outer) -> int:
        return sum(
            len(a.aval.shape) == len(b.aval.shape) for a, b in zip(inner, outer, strict=True)
        )

    carried = same(body.outvars, eqn.outvars)
    return same(body.invars, eqn.invars) - carried, carried


def _bodies(eqn: Any, inputs: Sequence[Value]) -> Iterator[tuple[Any, list[Value]]]:
    """Yields what an operation runs, and what of its input enters it unchanged each time."""
    name = eqn.primitive.name
    if name == "scan":
        constants, carried = scan_sizes(eqn)
        fixed = [*inputs[:constants], *[None] * carried, *inputs[constants + carried :]]
        yield open_jaxpr(eqn.params["jaxpr"]), fixed
    elif name == "cond":
        for branch in eqn.params["branches"]:
            yield open_jaxpr(branch), list(inputs[1:])
    else:
        for param in eqn.params.values():
            for one in param if isinstance(param, tuple | list) else (param,):
                body = open_jaxpr(one)
                if hasattr(body, "eqns"):
                    yield body, [None] * len(body.invars)
