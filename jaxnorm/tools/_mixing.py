"""Which layers of a model let one example reach another."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, overload

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from jaxnorm._core.plain import plain
from jaxnorm.tools._dataflow import called_jaxpr, open_jaxpr, scan_sizes
from jaxnorm.tools._label_rules import carry_on
from jaxnorm.tools._labels import Joined, Labels, everything
from jaxnorm.tools._programs import Call, take_model

_TAG = "jaxnorm mixing "
_KNOWN = 1_000_000  # elements that are worth computing to know which index they are
_TURNS = 64  # of a loop without end in sight, until nothing new comes


@overload
def find_mixing(
    model: nn.Module,
    variables: Any,
    x: Any,
    /,
    *,
    call: Call | None = ...,
    rngs: Any = ...,
) -> list[str]: ...
@overload
def find_mixing(model: nnx.Module, x: Any, /, *, call: Call | None = ...) -> list[str]: ...
def find_mixing(
    model: Any, /, *given: Any, call: Call | None = None, rngs: Any = None
) -> list[str]:
    """Finds the layers of a model through which an example's output depends on other examples.

    Where there is none, the Jacobian of the outputs with respect to the inputs is zero between
    different examples, whatever the parameters: gradients can be clipped per example (DP-SGD), and
    what is served does not depend on what else is in the batch. It is read from the operations of
    the model's program, each of which is followed by which example its elements depend on; numbers
    play no part. What is not known is taken to mix: an index that data decide, an operation that
    is not JAX's own, a loop whose end data decide.

    What to take instead of batch norm: `GroupNorm`, which sees one example at a time, with a number
    of groups that divides the channels (32, or for C channels `math.gcd(C, 32)`); `RMSNorm` or
    `LayerNorm` over the channels; or batch norm that rests (`jaxnorm.tools.freeze`).

    Args:
      model: a linen module; or an NNX model, in the mode that it is in.
      *given: of a linen module its variables; then x, an array of at least two examples along
        axis 0, or a tree of such arrays. Only shapes and dtypes matter.
      call: (model, x) -> output: calls the bound model, in training or evaluation as you ask.
        Default: `model(x)`.
      rngs: passed to `apply` of a linen module.

    Returns:
      The paths of the layers, in the order that they run; of each the innermost module that mixes
      by itself. "" is the model's own code. Empty if no example reaches another.

    Raises:
      ValueError: x holds less than two examples, or variables are those of another model.
      TypeError: it is no model of flax, has no variables, or cannot be called with x.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> from jaxnorm import tools
      >>> x = jnp.ones((4, 8))
      >>> for norm in jnn.BatchNorm(use_running_average=False), jnn.GroupNorm(num_groups=4):
      ...     model = nn.Sequential([nn.Dense(8), norm, nn.relu])
      ...     tools.find_mixing(model, model.init(jax.random.key(0), x), x)
      ['layers_1']
      []

    References: Abadi et al. 2016, Deep Learning with Differential Privacy, arXiv:1607.00133; De et
    al. 2022, Unlocking High-Accuracy Differentially Private Image Classification through Scale
    (group norm instead of batch norm), arXiv:2204.13650.
    """
    program, rest = take_model("find_mixing", model, given, call, rngs, evaluate=False)
    if len(rest) != 1:
        raise TypeError(
            f"find_mixing takes one x after the model"
            f"{'' if isinstance(model, nnx.Module) else ' and its variables'}, got {len(rest)} "
            "more arguments; what else the model is called with is said by call=lambda net, x: "
            "net(x, train=True)."
        )
    (x,) = rest
    arrays = [leaf for leaf in jax.tree.leaves(x) if hasattr(leaf, "dtype")]
    sizes = {leaf.shape[0] if leaf.shape else 0 for leaf in arrays}
    if len(sizes) != 1 or min(sizes) < 2:
        raise ValueError(
            "x must hold arrays of two examples or more along axis 0, the same number in all, got "
            f"shapes {[leaf.shape for leaf in arrays]}."
        )
    paths: list[str] = []

    def look(visit, run, args, kwargs):
        number = len(paths)
        paths.append(visit.name)
        # What is computed in a module, but not in those that it calls, has its number last.
        with jax.named_scope(f"{_TAG}{number}"):
            one = args[:1] if args and hasattr(args[0], "shape") else ()
            args = (*(checkpoint_name(a, f"{_TAG}{number} in") for a in one), *args[len(one) :])
            y = run(*args, **kwargs)
            alike = one and getattr(y, "shape", None) == one[0].shape
        return checkpoint_name(y, f"{_TAG}{number} out") if alike else y

    with plain():
        closed = program.trace(look, rest)
    states = [_no_labels(leaf) for leaf in jax.tree.leaves(program.state)]
    search = _Search()
    unknown = [None] * (len(states) + len(arrays))
    results, _ = search.run(closed, [*states, *map(_number_examples, arrays)], unknown)
    (size,) = sizes
    for result in results:
        # Examples that only change places reach each other as well.
        if result.ndim and len(result) == size:
            if ((result > 0) & (result != _number_examples(result))).any():
                search.blamed.add(-1)
    return list(dict.fromkeys(paths[n] if n >= 0 else "" for n in sorted(search.blamed)))


def _no_labels(like: Any) -> Labels:
    return np.broadcast_to(np.int32(0), np.shape(like))


def _number_examples(leaf: Any) -> Labels:
    numbers = np.arange(1, leaf.shape[0] + 1, dtype=np.int32)
    return np.broadcast_to(numbers.reshape(-1, *(1,) * (len(leaf.shape) - 1)), leaf.shape)


@dataclasses.dataclass
class _Search:
    """Follows labels through a program.

    Attributes:
      blamed: the numbers of the modules that mix; -1 is what belongs to none.
      entered: the labels of what each module was given.
    """

    blamed: set[int] = dataclasses.field(default_factory=set)
    entered: dict[int, Labels] = dataclasses.field(default_factory=dict)

    def run(
        self, closed: Any, labels: Sequence[Labels], known: Sequence[Any], module: int = -1
    ) -> tuple[list[Labels], list[Any]]:
        """Returns the labels of a jaxpr's results, and their values where they are known."""
        jaxpr = open_jaxpr(closed)
        own: dict[Any, Labels] = dict(zip(jaxpr.invars, labels, strict=True))
        values: dict[Any, Any] = dict(zip(jaxpr.invars, known, strict=True))
        for var, value in zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=True):
            own[var], values[var] = _no_labels(value), value

        def read(atom) -> tuple[Labels, Any]:
            if isinstance(atom, core.Literal):
                return _no_labels(atom.val), atom.val
            return own[atom], values[atom]

        for eqn in _live(jaxpr):
            inputs = [read(atom) for atom in eqn.invars]
            inner = _module_of(eqn, module)
            results, found = self.step(eqn, [i[0] for i in inputs], [i[1] for i in inputs], inner)
            own |= dict(zip(eqn.outvars, results, strict=True))
            values |= dict(zip(eqn.outvars, found, strict=True))
        outputs = [read(atom) for atom in jaxpr.outvars]
        return [o[0] for o in outputs], [o[1] for o in outputs]

    def step(self, eqn, labels, known, module) -> tuple[list[Labels], list[Any]]:
        """Returns the labels and values of what an operation makes."""
        name = eqn.primitive.name
        if called_jaxpr(eqn) is not None:
            body = next(p for p in eqn.params.values() if hasattr(open_jaxpr(p), "eqns"))
            return self.run(body, labels, known, module)
        if name == "scan":
            return self.scan(eqn, labels, known, module)
        if name == "name" and str(eqn.params["name"]).startswith(_TAG):
            return [self.mark(eqn.params["name"], labels[0])], [None]
        if name == "custom_linear_solve":
            return self.solve(eqn, labels, known, module)
        values = _compute(eqn, known)
        if not any(label.any() for label in labels):
            return [_no_labels(var.aval) for var in eqn.outvars], values
        if name == "cond":
            return self.branches(eqn, labels, known, module), values
        if name == "while":
            return self.loop(eqn, labels, known, module), values
        results = [self.settle(each, module) for each in carry_on(eqn, labels, known)]
        return results, values

    def mark(self, name: str, labels: Labels) -> Labels:
        """Remembers what a module is given; restores it behind one that mixes."""
        number, end = name.removeprefix(_TAG).split()
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

    def scan(self, eqn, labels, known, module) -> tuple[list[Labels], list[Any]]:
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
            outputs, found = self.run(eqn.params["jaxpr"], *given, module)
            carry, values = outputs[:carried], found[:carried]
            ys[turn] = outputs[carried:]
        stacked = [
            np.stack([ys[turn][i] for turn in range(length)]) if length else _no_labels(var.aval)
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
    numbers = re.findall(rf"{_TAG}(\d+)", str(eqn.source_info.name_stack))
    return int(numbers[-1]) if numbers else outer


def _live(jaxpr: Any) -> Iterable[Any]:
    """Returns the operations that a result depends on."""
    needed = {atom for atom in jaxpr.outvars if not isinstance(atom, core.Literal)}
    live = []
    for eqn in reversed(jaxpr.eqns):
        if needed & set(eqn.outvars):
            live.append(eqn)
            needed |= {atom for atom in eqn.invars if not isinstance(atom, core.Literal)}
    return reversed(live)


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
