"""Decorrelated batch norm as a layer: which statistics whiten, and what the running ones become."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import Axes, DTypeLike
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.mesh import spec_of
from jaxnorm._core.pool import compute_dtype, real_dtype
from jaxnorm._layers.call import Call, Context, Params, State, StateInit, placed_init
from jaxnorm._layers.layer import RunningNorm
from jaxnorm._layers.narrow import warn_if_narrow
from jaxnorm._layers.options import options
from jaxnorm.functional import whitening
from jaxnorm.functional._layout import Layout, check_layout
from jaxnorm.functional.whitening import Method, Whitening


@options
class DecorrelatedBatchNorm(RunningNorm):
    """Batch normalization that removes the correlations between units; see `jaxnorm.whiten`.

    References: Huang, Yang, Lang & Deng 2018, Decorrelated Batch Normalization, arXiv:1804.08450;
    iterative: Huang, Zhou, Zhu, Liu & Shao 2019, Iterative Normalization, arXiv:1904.03441.
    """

    use_running_average: bool | None = None
    """evaluation or training; here or in the call, which wins. A traced boolean computes both."""
    reduction_axes: Axes | None = None
    """the axes pooled; default: all that are not in `feature_axes`."""
    feature_axes: Axes = -1
    """the axes of the units, along which gamma and beta vary, too."""
    num_groups: int = 1
    """into how many groups of neighbouring units they are divided, each whitened by itself. The
    papers use groups of 16 to 64 units."""
    method: Method = "zca"
    """"zca", by eigenvalues, or "iterative", by Newton's iteration."""
    num_iterations: int = 15
    """of the iterative method."""
    unbiased: bool = True
    """whether the running projection goes by the unbiased covariance."""
    axis_index_groups: AxisIndexGroups = None
    """groups of indices of `axis_name` that pool together."""

    def _features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _axes.canonical_axes(self.feature_axes, shape, "feature_axes")

    def _init_state(self, x: jax.Array, context: Context) -> StateInit:
        layout = self._layout(x.shape)
        init = _init_whitening(layout, x.shape, x.dtype)
        return placed_init(init, dict(zip(init, layout.specs(spec_of(x), False), strict=False)))

    def _init_state_of(self, sizes: tuple[int, ...], shape: tuple[int, ...] | None) -> StateInit:
        if shape is None:
            shape = (1, *sizes)
            layout = check_layout(shape, 0, tuple(range(1, len(shape))), self.num_groups)
        else:
            layout = self._layout(shape)
        return _init_whitening(layout, shape, self._state_dtype)

    def _normalize(
        self, x: jax.Array, params: Params, state: State, call: Call
    ) -> tuple[jax.Array, State | None]:
        context, mask, (_, evaluate, _), *_ = call
        layout = self._layout(x.shape)
        running = Whitening(**state, count=jnp.zeros((), real_dtype(x.dtype)))
        common = {"axis": layout.axes, "feature_axes": self.feature_axes}
        common |= {"mask": mask, "dtype": self.dtype}
        traced = isinstance(evaluate, jax.Array)
        result = None
        if traced or evaluate:
            result = whitening.decorrelate(x, running, **params, **common)
            if not traced:
                return result, None
        self._check_training(x.shape, layout.axes, mask, context)
        y, batch = whitening.whiten(
            x,
            **params,
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
            axes = _axes.other_axes(self._features_of(shape), len(shape))
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


def _init_whitening(layout: Layout, shape: tuple[int, ...], dtype: DTypeLike) -> StateInit:
    """Returns what the running mean and projection start at, for inputs of shape `shape`."""
    mean, projection = layout.shapes(shape)
    dtype = compute_dtype(jax.dtypes.canonicalize_dtype(dtype))
    return {
        "mean": functools.partial(jnp.zeros, mean, dtype),
        "projection": functools.partial(_identities, projection, dtype),
    }


def _identities(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype), shape)
