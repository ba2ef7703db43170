"""Batch norm and then group norm, as one layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxnorm._core.axes import ArrayLike
from jaxnorm._layers.layer import ParametricLayer
from jaxnorm._layers.options import options

Norm = Callable[..., jax.Array]  # of the input and options of its call


@options
class BatchChannelNorm(ParametricLayer):
    """Batch norm, then group norm of its result, each with gamma and beta of its own.

    Reference: Qiao, Wang, Liu, Shen & Yuille 2019, Micro-Batch Training with Batch-Channel
    Normalization and Weight Standardization, arXiv:1903.10520.
    """

    use_running_average: bool | None = None
    """evaluation or training; here or in the call, which wins."""
    num_groups: int = 32
    """into how many groups the channels are divided."""
    channel_axis: int = -1
    """the axis of the channels."""
    estimate: bool = False
    """whether training normalizes by the running statistics."""
    epsilon: float = 1e-5
    """added to the variances."""
    momentum: float | None = 0.99
    """decay of the running statistics."""
    axis_name: str | Sequence[str] | None = None
    """mapped axes that the batch is pooled over as well."""

    def _norms(self) -> tuple[Norm, Norm]:
        """Returns the batch norm and the group norm. Modules have them."""
        raise NotImplementedError

    @property
    def _options_of_both(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon, "dtype": self.dtype, "param_dtype": self.param_dtype}

    @property
    def _options_of_batch(self) -> dict[str, Any]:
        return {
            "use_running_average": self.use_running_average,
            "train_statistics": "running" if self.estimate else "batch",
            "feature_axes": self.channel_axis,
            "momentum": self.momentum,
            "axis_name": self.axis_name,
            **self._options_of_both,
        }

    @property
    def _options_of_channel(self) -> dict[str, Any]:
        groups = {"num_groups": self.num_groups, "channel_axis": self.channel_axis}
        return {**groups, **self._options_of_both}

    def __call__(
        self,
        x: ArrayLike,
        *,
        use_running_average: bool | jax.Array | None = None,
        mask: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x` twice."""
        evaluate = self.use_running_average if use_running_average is None else use_running_average
        batch, channel = self._norms()
        return channel(batch(x, use_running_average=evaluate, mask=mask), mask=mask)
