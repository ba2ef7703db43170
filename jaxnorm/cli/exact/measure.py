"""How exact a normalization of a library is, and what it keeps: measurements and the reference."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxnorm.cli.jobs import Job, Progress
from jaxnorm.cli.peers.case import EPSILON, Case, Data
from jaxnorm.cli.peers.peer import Peer, first_line

RATIOS = (1.0, 1e2, 1e4, 1e6)
MEMORY_DTYPES = ("float32", "bfloat16")
SHAPES = {"layer": (512, 768), "rms": (512, 768)}
IMAGES = (16, 16, 16, 64)


class Row(NamedTuple):
    """What was found of one normalization of one library.

    Attributes:
      errors: the largest |output - reference| for each of `RATIOS`; NaN if the output has one.
      kept: bytes kept for the backward pass over the input's bytes, for each of `MEMORY_DTYPES`.
      failure: why it could not be run, if it could not.
    """

    norm: str
    library: str
    errors: tuple[float, ...] = ()
    kept: tuple[float, ...] = ()
    failure: str = ""


def list_jobs(
    norms: Sequence[str], libraries: Sequence[Peer], seed: int = 0
) -> list[Job[list[Row]]]:
    """Returns a job for each normalization, whose result is a list of `Row`, one per library."""
    return [
        Job(f"{norm} norm", functools.partial(_measure_norm, norm, libraries, seed))
        for norm in norms
    ]


def _measure_norm(norm: str, libraries: Sequence[Peer], seed: int, tell: Progress) -> list[Row]:
    # The libraries share the inputs and the reference.
    make_data = functools.cache(functools.partial(Data, seed=seed))
    refer = functools.cache(lambda mean: reference(norm, make_data(case, mean=mean)))
    case = Case(norm, SHAPES.get(norm, IMAGES), "float32")
    used = [library for library in libraries if norm in library.norms]
    rows = []
    for done, library in enumerate(used):
        tell(done / len(used), library.name)
        try:
            rows.append(_measure(library, case, make_data, refer))
        except Exception as error:
            # Other libraries fail on some versions and devices; jaxnorm must not.
            if library is libraries[0]:
                raise
            rows.append(Row(norm, library.name, failure=first_line(error)))
    return rows


def _measure(library: Peer, case: Case, make_data, refer) -> Row:
    errors = [
        float(np.max(np.abs(library.evaluate(case, make_data(case, mean=mean))[0] - refer(mean))))
        for mean in RATIOS
    ]
    kept = []
    for dtype in MEMORY_DTYPES:
        typed = case._replace(dtype=dtype)
        kept.append(library.kept_bytes(typed, make_data(typed)) / typed.input_bytes)
    return Row(case.norm, library.name, tuple(errors), tuple(kept))


def reference(norm: str, data: Data) -> np.ndarray:
    """Returns the result in float64, from the formula."""
    x = data.x.astype(np.float64)
    gamma, beta = (*(p.astype(np.float64) for p in data.parameters), 0.0)[:2]
    if norm == "rms":
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPSILON) * gamma + beta
    shape = x.shape
    axes: tuple[int, ...] = (-1,)
    if norm == "batch":
        axes = tuple(range(x.ndim - 1))
    elif norm == "instance":
        axes = tuple(range(1, x.ndim - 1))
    elif norm == "group":
        groups = Case(norm, shape, "float32").num_groups
        x = x.reshape(*shape[:-1], groups, shape[-1] // groups)
        axes = (*range(1, len(shape) - 1), len(shape))
    centered = x - np.mean(x, axis=axes, keepdims=True)
    var = np.mean(centered * centered, axis=axes, keepdims=True)
    return (centered / np.sqrt(var + EPSILON)).reshape(shape) * gamma + beta
