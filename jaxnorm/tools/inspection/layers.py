"""What was seen of the normalizations of a model."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxnorm._core.moments import Moments

OFF = 0.5  # standard deviations that a running mean may be away from the batches'
RATIO = 2.0  # that there may be between the variances
SMALL = 1e-3  # a gamma below counts as none


@dataclasses.dataclass(frozen=True)
class InspectedLayer:
    """What was seen of a normalization; arrays are of its channels, in layers under scan of all.

    Attributes:
      path: of the layer.
      kind: its class.
      is_batch: whether it keeps running statistics, as batch norm does.
      centers: whether it subtracts a mean.
      momentum: of its running statistics.
      dtype: of its inputs.
      channels: how many there are.
      distance: (running mean - batches' mean) / batches' standard deviation.
      variance_ratio: running variance / batches'; NaN where that is 0.
      updates: of the running statistics, if it counts them or there was none.
      dead: how many channels are constant.
      silent: how many channels have a gamma near 0.
      pooled: how many elements a statistic is of, at least.
      far: by how many standard deviations a mean is away from 0, at most; of what is no batch
        norm in the median.
      largest: the largest absolute value of a finite input.
      infinite: how many inputs are infinite or no number.
      running: the running moments.
      batch: the moments of all batches.
    """

    path: str
    kind: str
    is_batch: bool
    centers: bool
    momentum: float | None
    dtype: Any
    channels: int
    distance: np.ndarray
    variance_ratio: np.ndarray
    updates: float | None
    dead: int
    silent: int
    pooled: float
    far: float
    largest: float
    infinite: float
    running: Moments
    batch: Moments

    @property
    def stale(self) -> np.ndarray:
        """In which channels evaluation normalizes otherwise than training."""
        ratio = np.nan_to_num(self.variance_ratio, nan=1.0)
        return (np.abs(self.distance) > OFF) | (ratio > RATIO) | (ratio < 1 / RATIO)


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `inspect` found; its string is a table and the findings.

    Attributes:
      layers: what was seen of each normalization, in the order that they ran.
      findings: what is wrong, worst first, each with the path of the layer and the remedy.
      metrics: the metric in "evaluation", and where batches are normalized by their own statistics
        ("batch"); empty if none was given.
    """

    layers: list[InspectedLayer]
    findings: list[str]
    metrics: dict[str, float]

    @property
    def running(self) -> dict[str, Moments]:
        """The running moments of each batch norm, by path."""
        return {layer.path: layer.running for layer in self.layers if layer.is_batch}

    @property
    def batch(self) -> dict[str, Moments]:
        """The batches' moments of each batch norm, by path."""
        return {layer.path: layer.batch for layer in self.layers if layer.is_batch}

    def __str__(self) -> str:
        columns = (
            "layer",
            "kind",
            "channels",
            "off",
            "var ratio",
            "stale",
            "dead",
            "pooled",
            "far",
        )
        rows = [columns, *(_row(layer) for layer in self.layers)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
        lines = [
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines += [f"metric, {mode}: {value:.4g}" for mode, value in self.metrics.items()]
        found = [f"- {finding}" for finding in self.findings] or ["Nothing is wrong."]
        return "\n".join([*lines, "", *found])


def _row(layer: InspectedLayer) -> tuple[str, ...]:
    path, count = layer.path or "(top level)", str(layer.channels)
    own = ("", "", "")
    if layer.is_batch:
        known = layer.variance_ratio[layer.variance_ratio > 0]
        ratio = np.exp(np.mean(np.log(known))) if known.size else np.nan
        own = (
            f"{_root_mean_square(layer.distance):.2g}",
            f"{ratio:.2g}",
            str(int(layer.stale.sum())),
        )
    rest = (str(layer.dead), f"{layer.pooled:.0f}", f"{layer.far:.2g}")
    return (path, layer.kind, count, *own, *rest)


def _root_mean_square(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(finite**2))) if finite.size else float("nan")
