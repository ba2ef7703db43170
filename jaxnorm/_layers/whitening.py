"""Decorrelated batch norm as a layer: which statistics whiten, and what the running ones become."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.flags import check_switch
from jaxnorm._core.pool import compute_dtype, real_dtype
from jaxnorm._layers.call import Context, State, StateInit, placed_init
from jaxnorm._layers.layer import AffineLayer, Own
from jaxnorm._layers.narrow import warn_if_narrow
from jaxnorm.functional import whitening
from jaxnorm.functional._layout import Layout, check_layout
from jaxnorm.functional.whitening import Method, Whitening


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhiteningLayer(AffineLayer):
    """The options of whitening, as `jaxnorm.linen.DecorrelatedBatchNorm` describes them."""

    epsilon: float
    use_running_average: bool | jax.Array | None
    reduction_axes: Axes | None
    feature_axes: Axes
    num_groups: int
    method: Method
    num_iterations: int
    momentum: float
    unbiased: bool
    axis_name: str | Sequence[str] | None
    axis_index_groups: AxisIndexGroups

    def features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.canonical_axes(self.feature_axes, shape, "feature_axes")

    def decide(self, evaluate: Any, context: Context) -> bool | jax.Array:
        """Returns whether to evaluate, maybe traced; None leaves it to the options."""
        evaluate = self.use_running_average if evaluate is None else evaluate
        if evaluate is None:
            raise ValueError(
                f"{context.label} needs use_running_average: False in training, True in "
                "evaluation; set it as a field or pass it in the call."
            )
        return check_switch(evaluate, "use_running_average")

    def first_state(self, shape: tuple[int, ...], dtype: DTypeLike, spec: Any = None) -> StateInit:
        """Returns what the running mean and projection start at, for inputs of shape `shape`.

        `spec` says how the inputs are divided over an explicit mesh, if they are.
        """
        layout = self._layout(shape)
        mean, projection = layout.shapes(shape)
        dtype = compute_dtype(jax.dtypes.canonicalize_dtype(dtype))
        first = {
            "mean": functools.partial(jnp.zeros, mean, dtype),
            "projection": functools.partial(_identities, projection, dtype),
        }
        if spec is None:
            return first
        return placed_init(first, dict(zip(first, layout.specs(spec, False), strict=False)))

    def first_state_of(
        self, sizes: tuple[int, ...], dtype: DTypeLike, shape: Sequence[int] | None
    ) -> StateInit:
        """Returns what they start at before an input is seen.

        That is for units of `sizes`, all other axes being pooled, or for inputs of `shape`.
        """
        if shape is not None:
            return self.first_state(tuple(shape), dtype)
        features = tuple(range(1, len(sizes) + 1))
        layer = dataclasses.replace(self, reduction_axes=0, feature_axes=features)
        return layer.first_state((1, *sizes), dtype)

    def apply(
        self,
        x: jax.Array,
        state: State,
        own: Own,
        evaluate: bool | jax.Array,
        context: Context,
        *,
        mask: ArrayLike | None = None,
    ) -> tuple[jax.Array, State | None]:
        """Whitens `x`; returns the new state too, if it moved."""
        layout = self._layout(x.shape)
        running = Whitening(**state, count=jnp.zeros((), real_dtype(x.dtype)))
        common = {"axis": layout.axes, "feature_axes": self.feature_axes}
        common |= {"mask": mask, "dtype": self.dtype}
        traced = isinstance(evaluate, jax.Array)
        result = None
        if traced or evaluate:
            result = whitening.decorrelate(x, running, **own, **common)
            if not traced:
                return result, None
        self._check_training(x.shape, layout.axes, mask, context)
        y, batch = whitening.whiten(
            x,
            **own,
            **common,
            num_groups=self.num_groups,
            method=self.method,
            num_iterations=self.num_iterations,
            epsilon=self.epsilon,
            axis_name=self._bound_names(context),
            axis_index_groups=self.axis_index_groups,
        )
        y = y if result is None else jnp.where(evaluate, result, y)
        if context.initializing:
            return y, None
        batch = jax.lax.stop_gradient(batch)
        warn_if_narrow(running.mean.dtype, self.momentum, context)
        if traced:
            # Statistics of no examples change nothing.
            batch = batch._replace(count=jnp.where(evaluate, 0, batch.count))
        average = {"momentum": self.momentum, "unbiased": self.unbiased}
        new = whitening.update_whitening(running, batch, **average)
        return y, {"mean": new.mean, "projection": new.projection}

    def _layout(self, shape: tuple[int, ...]) -> Layout:
        axes = self.reduction_axes
        if axes is None:
            axes = _axes.other_axes(self.features_of(shape), len(shape))
        return check_layout(shape, axes, self.feature_axes, self.num_groups)

    def _bound_names(self, context: Context) -> tuple[str, ...] | None:
        """Returns the mapped axes to pool over; none at initialization, outside of any map."""
        if self.axis_name is None or context.initializing:
            return None
        try:
            return _axes.check_axis_name(self.axis_name)
        except NameError as error:
            raise NameError(f"{context.label}: {error}") from None

    def _check_training(self, shape, axes, mask, context: Context) -> None:
        if context.initializing:
            return
        if not context.mutable:
            raise ValueError(
                f"{context.label} updates its running statistics in training, but the collection "
                'batch_stats is not mutable: call apply(..., mutable=["batch_stats"]) and keep the '
                f"updates it returns, or pass {context.evaluation} to evaluate."
            )
        if math.prod(shape[a] for a in axes) == 1 and self.axis_name is None and mask is None:
            raise ValueError(
                f"{context.label} got one example in training: an input of shape {shape} pooled "
                f"over axes {axes}. One example has no covariance; use a larger batch, or "
                f"{context.evaluation}."
            )


def _identities(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype), shape)
