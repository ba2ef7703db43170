"""Batch norm and then group norm, as one layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxnorm._core.axes import ArrayLike, DTypeLike
from jaxnorm._layers.layer import Layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchChannelNormLayer(Layer):
    """The options of `jaxnorm.linen.BatchChannelNorm`."""

    use_running_average: bool | jax.Array | None
    num_groups: int
    channel_axis: int
    estimate: bool
    epsilon: float
    momentum: float | None
    axis_name: str | Sequence[str] | None
    dtype: DTypeLike | None
    param_dtype: DTypeLike

    @property
    def common(self) -> dict[str, Any]:
        """What both norms are told."""
        return {"epsilon": self.epsilon, "dtype": self.dtype, "param_dtype": self.param_dtype}

    @property
    def batch(self) -> dict[str, Any]:
        """The options of the batch norm."""
        return {
            "use_running_average": self.use_running_average,
            "train_statistics": "running" if self.estimate else "batch",
            "feature_axes": self.channel_axis,
            "momentum": self.momentum,
            "axis_name": self.axis_name,
            **self.common,
        }

    @property
    def channel(self) -> dict[str, Any]:
        """The options of the group norm."""
        groups = {"num_groups": self.num_groups, "channel_axis": self.channel_axis}
        return {**groups, **self.common}

    def apply(
        self,
        x: ArrayLike,
        batch: Callable[..., jax.Array],
        channel: Callable[..., jax.Array],
        evaluate: Any,
        mask: ArrayLike | None,
    ) -> jax.Array:
        """Normalizes `x` by one and then the other."""
        evaluate = self.use_running_average if evaluate is None else evaluate
        return channel(batch(x, use_running_average=evaluate, mask=mask), mask=mask)
