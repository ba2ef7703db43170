"""Running a program for values within it that were given names, those in loops included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

from jaxnorm.tools.models.dataflow import called_jaxpr, open_jaxpr, scan_sizes

Found = dict[str, list[Any]]  # the values of each name, in the order that they were met


def reap(closed: Any, prefix: str) -> Callable[..., tuple[list[Any], Found]]:
    """Returns a function that gives a jaxpr's results and its named values.

    Values are named by `jax.ad_checkpoint.checkpoint_name`; those in a scan are stacked along the
    first axis. Branches of a `cond` and loops of unknown length are run, but not looked into.

    Args:
      closed: what `jax.make_jaxpr` made.
      prefix: what the names begin with.
    """

    def run(*args: Any) -> tuple[list[Any], Found]:
        found: Found = {}
        return _run(closed, args, prefix, found), found

    return run


def _run(closed: Any, args: Sequence[Any], prefix: str, found: Found) -> list[Any]:
    jaxpr = open_jaxpr(closed)
    known = dict(zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=True))
    known |= dict(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        name = str(eqn.params.get("name", "")) if eqn.primitive.name == "name" else ""
        if called_jaxpr(eqn) is not None:
            outputs = _run(_called(eqn), inputs, prefix, found)
        elif eqn.primitive.name == "scan":
            outputs = _run_scan(eqn, inputs, prefix, found)
        else:
            with eqn.ctx.manager:
                outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
            outputs = outputs if eqn.primitive.multiple_results else [outputs]
        if name.startswith(prefix):
            found.setdefault(name, []).append(outputs[0])
        known |= dict(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _called(eqn: Any) -> Any:
    return next(p for p in eqn.params.values() if hasattr(open_jaxpr(p), "eqns"))


def _run_scan(eqn: Any, inputs: list[Any], prefix: str, found: Found) -> list[Any]:
    constants, carried = scan_sizes(eqn)
    fixed = inputs[:constants]

    def body(carry, xs):
        within: Found = {}
        outputs = _run(eqn.params["jaxpr"], [*fixed, *carry, *xs], prefix, within)
        return outputs[:carried], (outputs[carried:], within)

    start, xs = inputs[constants : constants + carried], inputs[constants + carried :]
    options = {name: eqn.params[name] for name in ("length", "reverse")}
    carry, (ys, stacked) = jax.lax.scan(body, start, xs, **options)
    for name, values in stacked.items():
        found.setdefault(name, []).extend(values)
    return [*carry, *ys]
