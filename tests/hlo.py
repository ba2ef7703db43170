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


def collectives(function, *arguments):
    """The collectives of the program compiled for `arguments`: a list of (kind, bytes)."""
    found = []
    for line in jax.jit(function).lower(*arguments).compile().as_text().splitlines():
        match = _COLLECTIVE.search(line)
        if match is not None:
            sizes = [
                _BYTES[kind] * math.prod(int(d) for d in dims.split(",") if d)
                for kind, dims in _SHAPE.findall(match["shapes"])
            ]
            found.append((match["kind"], sum(sizes)))
    return found
