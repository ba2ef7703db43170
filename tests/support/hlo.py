"""What a compiled program communicates between devices."""

import math
import re

import jax

_COLLECTIVE = re.compile(
    r"= (?P<shapes>\S.*?) (?P<kind>all-reduce|all-gather|all-to-all|reduce-scatter"
    r"|collective-permute|collective-broadcast)(-start)?\("
)
_SHAPE = re.compile(r"(f64|f32|bf16|f16|s32|u32|pred)\[([\d,]*)\]")
_BYTES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1}


def collectives(function, *arguments, rare=False):
    """The collectives of the program compiled for `arguments`: a list of (kind, bytes).

    Those inside conditionals, which run where sums are not trusted, are listed if `rare`; the
    others if not.
    """
    text = jax.jit(function).lower(*arguments).compile().as_text()
    conditional = _called(text, _branches(text))
    found, computation = [], ""
    for line in text.splitlines():
        computation = _name(line) or computation
        match = _COLLECTIVE.search(line)
        if match is not None and (computation in conditional) == rare:
            sizes = [
                _BYTES[kind] * math.prod(int(d) for d in dims.split(",") if d)
                for kind, dims in _SHAPE.findall(match["shapes"])
            ]
            found.append((match["kind"], sum(sizes)))
    return found


def _name(line):
    """The name of the computation that begins on a line of a program's text."""
    match = re.match(r"(?:ENTRY )?%([\w.-]+) \(.*\{$", line)
    return match and match[1]


def _branches(text):
    lines = [line for line in text.splitlines() if re.search(r"\bconditional\(", line)]
    return {name for line in lines for name in _references(line.split("conditional(")[1])}


def _references(line):
    """The computations that an instruction names."""
    named = r"\b(?:\w*computations?|calls|to_apply|body|condition)=(?:\{([^}]*)\}|(%[\w.-]+))"
    return [n for pair in re.findall(named, line) for n in re.findall(r"%([\w.-]+)", "".join(pair))]


def _called(text, names):
    """The computations `names` and all that they call."""
    calls, computation = {}, ""
    for line in text.splitlines():
        computation = _name(line) or computation
        calls.setdefault(computation, set()).update(_references(line))
    found, new = set(), set(names)
    while new:
        found |= new
        new = {callee for name in new for callee in calls.get(name, ())} - found
    return found
