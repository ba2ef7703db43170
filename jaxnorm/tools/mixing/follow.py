"""Following labels through a program: which of its modules join two examples."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core

from jaxnorm.tools.mixing.labels import Joined, Labels, everything, no_labels
from jaxnorm.tools.mixing.rules import carry_on
from jaxnorm.tools.models.dataflow import called_jaxpr, open_jaxpr, scan_sizes

TAG = "jaxnorm mixing "  # with a number: a module's own operations, or what goes in and comes out
_KNOWN = 1_000_000  # elements that are worth computing to know which index they are
_TURNS = 64  # of a loop without end in sight, until nothing new comes


@dataclasses.dataclass
class Follower:
    """Follows labels through a program.

    Attributes:
      blamed: the numbers of the modules that mix; -1 is what belongs to none.
      entered: the labels of what each module was given.
    """

    blamed: set[int] = dataclasses.field(default_factory=set)
    entered: dict[int, Labels] = dataclasses.field(default_factory=dict)

    def run(
        self,
        closed: Any,
        labels: Sequence[Labels],
        known: Sequence[Any],
        module: int = -1,
        wanted: Sequence[bool] | None = None,
    ) -> tuple[list[Labels], list[Any]]:
        """Returns the labels of a jaxpr's results, and their values where they are known.

        Results that are not wanted have no labels.
        """
        jaxpr = open_jaxpr(closed)
        wanted = [True] * len(jaxpr.outvars) if wanted is None else wanted
        own: dict[Any, Labels] = dict(zip(jaxpr.invars, labels, strict=True))
        values: dict[Any, Any] = dict(zip(jaxpr.invars, known, strict=True))
        for var, value in zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=True):
            own[var], values[var] = no_labels(value), value

        def read(atom) -> tuple[Labels, Any]:
            if isinstance(atom, core.Literal):
                return no_labels(atom.val), atom.val
            return own.get(atom, no_labels(atom.aval)), values.get(atom)

        steps, _ = live_steps(jaxpr, wanted)
        for eqn, used in steps:
            inputs = [read(atom) for atom in eqn.invars]
            given = [i[0] for i in inputs], [i[1] for i in inputs]
            results, found = self.step(eqn, *given, _module_of(eqn, module), used)
            own |= dict(zip(eqn.outvars, results, strict=True))
            values |= dict(zip(eqn.outvars, found, strict=True))
        outputs = [read(atom) for atom in jaxpr.outvars]
        return [o[0] for o in outputs], [o[1] for o in outputs]

    def step(self, eqn, labels, known, module, used) -> tuple[list[Labels], list[Any]]:
        """Returns the labels and values of what an operation makes."""
        name = eqn.primitive.name
        if called_jaxpr(eqn) is not None:
            body = next(p for p in eqn.params.values() if hasattr(open_jaxpr(p), "eqns"))
            return self.run(body, labels, known, module, used)
        if name == "scan":
            return self.scan(eqn, labels, known, module, used)
        if name == "name" and str(eqn.params["name"]).startswith(TAG):
            return [self.mark(eqn.params["name"], labels[0])], [None]
        if name == "custom_linear_solve":
            return self.solve(eqn, labels, known, module)
        values = _compute(eqn, known)
        if not any(label.any() for label in labels):
            return [no_labels(var.aval) for var in eqn.outvars], values
        if name == "cond":
            return self.branches(eqn, labels, known, module), values
        if name == "while":
            return self.loop(eqn, labels, known, module), values
        results = [self.settle(each, module) for each in carry_on(eqn, labels, known)]
        return results, values

    def mark(self, name: str, labels: Labels) -> Labels:
        """Remembers what a module is given; restores it behind one that mixes."""
        number, end = name.removeprefix(TAG).split()
        if end == "in":
            self.entered[int(number)] = labels
        elif int(number) in self.blamed:
            # Each place is its own example's again for what comes behind.
            return self.entered.get(int(number), labels)
        return labels

    def solve(self, eqn, labels, known, module) -> tuple[list[Labels], list[Any]]:
        lengths = eqn.params["const_lengths"]
        start, end = lengths.matvec + lengths.vecmat, sum(lengths)
        own = slice(start, start + lengths.solve)
        given = [[*each[own], *each[end:]] for each in (labels, known)]
        return self.run(eqn.params["jaxprs"].solve, given[0], given[1], module)

    def settle(self, joined: Joined, module: int) -> Labels:
        result, mixed = joined.result()
        if mixed:
            self.blamed.add(module)
        return result.astype(np.int32)

    def scan(self, eqn, labels, known, module, used) -> tuple[list[Labels], list[Any]]:
        constants, carried = scan_sizes(eqn)
        split = constants + carried
        fixed, carry, xs = labels[:constants], labels[constants:split], labels[split:]
        values, known_xs = known[constants:split], known[split:]
        length = eqn.params["length"]
        turns = range(length - 1, -1, -1) if eqn.params["reverse"] else range(length)
        ys: dict[int, list[Labels]] = {}
        for turn in turns:
            taken = [x[turn] for x in xs]
            seen = [None if x is None else x[turn] for x in known_xs]
            given = [*fixed, *carry, *taken], [*known[:constants], *values, *seen]
            wanted = [True] * carried + list(used[carried:])
            outputs, found = self.run(eqn.params["jaxpr"], *given, module, wanted)
            carry, values = outputs[:carried], found[:carried]
            ys[turn] = outputs[carried:]
        stacked = [
            np.stack([ys[turn][i] for turn in range(length)]) if length else no_labels(var.aval)
            for i, var in enumerate(eqn.outvars[carried:])
        ]
        return [*carry, *stacked], [*values, *[None] * len(stacked)]

    def branches(self, eqn, labels, known, module) -> list[Labels]:
        every, which = eqn.params["branches"], known[0]
        if which is not None:
            every = [every[int(np.clip(which, 0, len(every) - 1))]]
        runs = [self.run(branch, labels[1:], known[1:], module)[0] for branch in every]
        shapes = [tuple(var.aval.shape) for var in eqn.outvars]
        results = []
        for *parts, joined in zip(*runs, everything(labels[:1], shapes), strict=True):
            for part in parts:
                joined |= Joined.of(part)
            results.append(self.settle(joined, module))
        return results

    def loop(self, eqn, labels, known, module) -> list[Labels]:
        """Goes round until no label is new; how often data decide, so that all depends on that."""
        first, second = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        consts = labels[:first], labels[first : first + second]
        carry = labels[first + second :]
        unknown = [None] * len(carry)
        for _ in range(_TURNS):
            (end,), _ = self.run(
                eqn.params["cond_jaxpr"], [*consts[0], *carry], [*known[:first], *unknown], module
            )
            body = eqn.params["body_jaxpr"]
            values = [*known[first : first + second], *unknown]
            outputs, _ = self.run(body, [*consts[1], *carry], values, module)
            new = [
                self.settle(Joined.of(a) | Joined.of(b) | everything([end], [a.shape])[0], module)
                for a, b in zip(carry, outputs, strict=True)
            ]
            if all(map(np.array_equal, new, carry)):
                break
            carry = new
        return carry


def _module_of(eqn: Any, outer: int) -> int:
    """Returns the number of the innermost module that an operation belongs to."""
    numbers = re.findall(rf"{TAG}(\d+)", str(eqn.source_info.name_stack))
    return int(numbers[-1]) if numbers else outer


def live_steps(jaxpr: Any, wanted: Sequence[bool]) -> tuple[list[Any], list[bool]]:
    """Returns the operations that wanted results depend on, and the inputs that these need.

    With each comes which of its own results are needed.
    """
    needed = {
        atom
        for atom, want in zip(jaxpr.outvars, wanted, strict=True)
        if want and not isinstance(atom, core.Literal)
    }
    steps = []
    for eqn in reversed(jaxpr.eqns):
        used = [var in needed for var in eqn.outvars]
        if not any(used):
            continue
        steps.append((eqn, used))
        inner = called_jaxpr(eqn)
        takes = [True] * len(eqn.invars) if inner is None else live_steps(inner, used)[1]
        pairs = zip(eqn.invars, takes, strict=True)
        needed |= {atom for atom, take in pairs if take and not isinstance(atom, core.Literal)}
    return steps[::-1], [var in needed for var in jaxpr.invars]


def _compute(eqn: Any, known: list[Any]) -> list[Any]:
    """Returns the values of what an operation makes of values that are known, where it is short."""
    nothing = [None] * len(eqn.outvars)
    if eqn.primitive.name == "concatenate" and any(value is not None for value in known):
        parts = [
            np.ma.masked_all(atom.aval.shape, atom.aval.dtype) if value is None else value
            for atom, value in zip(eqn.invars, known, strict=True)
        ]
        joined = np.ma.concatenate(parts, eqn.params["dimension"])
        return [joined if np.ma.is_masked(joined) else np.ma.getdata(joined)]
    size = sum(np.prod(atom.aval.shape) for atom in (*eqn.invars, *eqn.outvars))
    whole = all(value is not None and not np.ma.is_masked(value) for value in known)
    constant = bool(eqn.invars) or eqn.primitive.name == "iota"
    if not whole or not constant or size > _KNOWN or eqn.effects:
        return nothing
    results = eqn.primitive.bind(*known, **eqn.primitive.get_bind_params(eqn.params))
    return list(results) if eqn.primitive.multiple_results else [results]
