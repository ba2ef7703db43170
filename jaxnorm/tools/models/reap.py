"""Running a program for values within it that were given names, those in loops included."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxnorm.tools.models.dataflow import called_jaxpr, open_jaxpr, scan_sizes

Found = dict[str, list[Any]]  # the values of each name, in the order that they were met


def reap(
    closed: Any, prefix: str, *, branches: bool = False
) -> Callable[..., tuple[list[Any], Found]]:
    """Returns a function that gives a jaxpr's results and its named values.

    Values are named by `jax.ad_checkpoint.checkpoint_name`; those in a scan are stacked along the
    first axis. Loops of unknown length are run, but not looked into.

    Args:
      closed: what `jax.make_jaxpr` made.
      prefix: what the names begin with.
      branches: whether to look into the branches of a `cond`: values of those that are not taken
        are 0.
    """

    def run(*args: Any) -> tuple[list[Any], Found]:
        found: Found = {}
        return _Run(prefix, branches).run(closed, args, found), found

    return run


class _Run(NamedTuple):
    prefix: str
    branches: bool

    def run(self, closed: Any, args: Sequence[Any], found: Found) -> list[Any]:
        jaxpr = open_jaxpr(closed)
        known = dict(zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=True))
        known |= dict(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else known[atom]

        for eqn in jaxpr.eqns:
            inputs = [read(atom) for atom in eqn.invars]
            name = str(eqn.params.get("name", "")) if eqn.primitive.name == "name" else ""
            if called_jaxpr(eqn) is not None:
                outputs = self.run(_called(eqn), inputs, found)
            elif eqn.primitive.name == "scan":
                outputs = self.scan(eqn, inputs, found)
            elif eqn.primitive.name == "cond" and self.branches:
                outputs = self.cond(eqn, inputs, found)
            else:
                with eqn.ctx.manager:
                    outputs = eqn.primitive.bind(
                        *inputs, **eqn.primitive.get_bind_params(eqn.params)
                    )
                outputs = outputs if eqn.primitive.multiple_results else [outputs]
            if name.startswith(self.prefix):
                found.setdefault(name, []).append(outputs[0])
            known |= dict(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def scan(self, eqn: Any, inputs: list[Any], found: Found) -> list[Any]:
        constants, carried = scan_sizes(eqn)
        fixed = inputs[:constants]

        def body(carry, xs):
            within: Found = {}
            outputs = self.run(eqn.params["jaxpr"], [*fixed, *carry, *xs], within)
            return outputs[:carried], (outputs[carried:], within)

        start, xs = inputs[constants : constants + carried], inputs[constants + carried :]
        options = {name: eqn.params[name] for name in ("length", "reverse")}
        carry, (ys, stacked) = jax.lax.scan(body, start, xs, **options)
        for name, values in stacked.items():
            found.setdefault(name, []).extend(values)
        return [*carry, *ys]

    def cond(self, eqn: Any, inputs: list[Any], found: Found) -> list[Any]:
        which, *operands = inputs

        def branch(number: int) -> tuple[list[Any], Found]:
            within: Found = {}
            return self.run(eqn.params["branches"][number], operands, within), within

        every = range(len(eqn.params["branches"]))
        shapes = [jax.eval_shape(lambda number=number: branch(number)[1]) for number in every]

        def taken(number: int) -> tuple[list[Any], list[Found]]:
            outputs, within = branch(number)
            others = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
            others[number] = within
            return outputs, others

        branches = [functools.partial(taken, number) for number in every]
        outputs, all_found = jax.lax.switch(which, branches)
        for within in all_found:
            for name, values in within.items():
                found.setdefault(name, []).extend(values)
        return outputs


def _called(eqn: Any) -> Any:
    return next(p for p in eqn.params.values() if hasattr(open_jaxpr(p), "eqns"))
