"""What was seen of one normalization of a model."""

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
    def alive(self) -> bool:
        """Whether a channel varies."""
        return self.dead < self.channels

    @property
    def stale(self) -> np.ndarray:
        """In which channels evaluation normalizes otherwise than training."""
        ratio = np.nan_to_num(self.variance_ratio, nan=1.0)
        return (np.abs(self.distance) > OFF) | (ratio > RATIO) | (ratio < 1 / RATIO)
