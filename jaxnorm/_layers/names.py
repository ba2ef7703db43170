"""A name for every module, such as "layer" or "group32", for configuration files."""

from __future__ import annotations

import difflib
from types import ModuleType
from typing import Any

NAMES = {
    "adaptive": "AdaptiveNorm",
    "batch": "BatchNorm",
    "batch_channel": "BatchChannelNorm",
    "batch_instance": "BatchInstanceNorm",
    "cumulative": "CumulativeNorm",
    "decorrelated_batch": "DecorrelatedBatchNorm",
    "divisive": "DivisiveNorm",
    "dynamic_erf": "DynamicErf",
    "dynamic_tanh": "DynamicTanh",
    "evo_b0": "EvoNormB0",
    "evo_s0": "EvoNormS0",
    "filter_response": "FilterResponseNorm",
    "gated_rms": "GatedRMSNorm",
    "global_response": "GlobalResponseNorm",
    "graph": "GraphNorm",
    "group": "GroupNorm",
    "input": "InputNorm",
    "instance": "InstanceNorm",
    "layer": "LayerNorm",
    "layer_gru_cell": "LayerNormGRUCell",
    "layer_lstm_cell": "LayerNormLSTMCell",
    "layer_scale": "LayerScale",
    "local_response": "LocalResponseNorm",
    "poly": "PolyNorm",
    "revin": "RevIN",
    "rms": "RMSNorm",
    "scale": "ScaleNorm",
    "spade": "SPADE",
    "spectral": "SpectralNorm",
    "switchable": "SwitchableNorm",
    "weight": "WeightNorm",
    "weight_standardization": "WeightStandardization",
}
# The option that a number behind the name says.
NUMBERS = {
    "batch_channel": "num_groups",
    "evo_s0": "num_groups",
    "graph": "num_segments",
    "group": "num_groups",
    "local_response": "size",
}


def list_names(package: ModuleType) -> list[str]:
    """Returns the names of the modules that a package has."""
    return [name for name, module in NAMES.items() if hasattr(package, module)]


def make_named(package: ModuleType, name: Any, args: tuple, options: dict[str, Any]) -> Any:
    """Returns the module of a package that a name stands for."""
    known = list_names(package)
    base, number = _split(name) if isinstance(name, str) else ("", None)
    if base not in known:
        near = difflib.get_close_matches((base or str(name)).lower(), known, 1, cutoff=0.0)
        raise ValueError(
            f"unknown normalization {name!r}; did you mean {near[0]!r}? {package.__name__} has: "
            f"{', '.join(known)}. A number may follow {', '.join(n for n in NUMBERS if n in known)}"
            ", as in 'group32'."
        )
    if number is not None:
        option = NUMBERS[base]
        if option in options:
            raise ValueError(
                f"{name!r} says {option}={number}, and options say {options[option]!r}; give one."
            )
        options = {option: number, **options}
    return getattr(package, NAMES[base])(*args, **options)


def _split(name: str) -> tuple[str, int | None]:
    """Returns what a name begins with, and the number behind it if one may stand there."""
    for base in NUMBERS:
        rest = name.removeprefix(base).removeprefix("_")
        if name != base and name.startswith(base) and rest.isdecimal():
            return base, int(rest)
    return name, None
