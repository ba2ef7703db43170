"""Batch norm as a Flax linen module, with running statistics in `batch_stats`."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnorm import _axes, _moments, _standardize
from jaxnorm._axes import ArrayLike, Axes
from jaxnorm._moments import AxisIndexGroups, Moments
from jaxnorm.functional import batch
from jaxnorm.linen._base import AffineModule


class BatchNorm(AffineModule, kw_only=True):
    """Batch normalization; see `jaxnorm.batch_norm` and `jaxnorm.standardize`.

    In training (`use_running_average=False`) the batch's statistics normalize, and the running
    mean and variance in the collection `batch_stats` move towards them: apply with
    `mutable=["batch_stats"]`. In evaluation (`use_running_average=True`) the running ones
    normalize and nothing changes.

    Attributes:
      use_running_average: evaluation or training; here or in the call, which wins.
      reduction_axes: the axes pooled; default: all that are not in `feature_axes`.
      feature_axes: the axes that gamma and beta vary along; default: all that are not in
        `reduction_axes`, or the last if neither is given.
      momentum: decay of the running statistics: new = momentum * old + (1 - momentum) * batch.
      unbiased: whether the running variance is unbiased (m / (m - 1)), as in the paper.
      axis_name: mapped axes to pool over as well, as in synchronised batch norm.
      axis_index_groups: groups of indices of `axis_name` that pool together.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[1., 10.], [3., 30.]])
      >>> norm = jnn.BatchNorm(momentum=0.5)
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=True)
      >>> y, updates = norm.apply(
      ...     variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> y.round(3).tolist(), updates["batch_stats"]["mean"].tolist()
      ([[-1.0, -1.0], [1.0, 1.0]], [1.0, 10.0])

    Reference: Ioffe & Szegedy 2015, Batch Normalization, arXiv:1502.03167.
    """

    epsilon: float = 1e-5
    use_running_average: bool | None = None
    reduction_axes: Axes | None = None
    feature_axes: Axes | None = None
    momentum: float = 0.99
    unbiased: bool = True
    axis_name: str | Sequence[str] | None = None
    axis_index_groups: AxisIndexGroups = None

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        *,
        use_running_average: bool | None = None,
        mask: ArrayLike | None = None,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x`; a gamma or beta given here replaces the module's own."""
        if use_running_average is None:
            use_running_average = self.use_running_average
        if use_running_average is None:
            raise ValueError(
                "BatchNorm needs use_running_average: False in training, True in evaluation; set "
                "it as a field or pass it in the call."
            )
        x = _axes.check_input(x)
        axes, features = self._axes_of(x.shape)
        shape = tuple(s for a, s in enumerate(x.shape) if a not in axes)
        dtype = _moments.real_dtype(x.dtype)
        mean = self.variable(
            "batch_stats", "mean", jnp.zeros, shape, _moments.compute_dtype(x.dtype)
        )
        var = self.variable("batch_stats", "var", jnp.ones, shape, dtype)
        running = Moments(mean.value, var.value, jnp.zeros((), dtype))
        gamma, beta = self.affine(x, features, gamma, beta)
        if use_running_average:
            return _standardize.standardize(
                x,
                running,
                gamma,
                beta,
                axis=axes,
                feature_axes=features,
                epsilon=self.epsilon,
                mask=mask,
                dtype=self.dtype,
            )
        initializing = self.is_initializing()
        if not initializing:
            self._check_training(x.shape, axes, mask)
        y, pooled = batch.batch_norm(
            x,
            gamma,
            beta,
            axis=axes,
            feature_axes=features,
            epsilon=self.epsilon,
            mask=mask,
            axis_name=None if initializing else self.axis_name,
            axis_index_groups=self.axis_index_groups,
            dtype=self.dtype,
        )
        if not initializing:
            new = _moments.update_moments(
                running,
                jax.lax.stop_gradient(pooled),
                momentum=self.momentum,
                unbiased=self.unbiased,
            )
            mean.value, var.value = new.mean, new.var
        return y

    def _axes_of(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the axes pooled and those that gamma and beta vary along."""
        rank = len(shape)
        if self.reduction_axes is None:
            given = -1 if self.feature_axes is None else self.feature_axes
            features = _axes.canonical_axes(given, shape, "feature_axes")
            return _axes.other_axes(features, rank), features
        axes = _axes.canonical_axes(self.reduction_axes, shape, "reduction_axes")
        if self.feature_axes is None:
            return axes, _axes.other_axes(axes, rank)
        return axes, _axes.canonical_axes(self.feature_axes, shape, "feature_axes")

    def _check_training(self, shape, axes, mask) -> None:
        if not self.is_mutable_collection("batch_stats"):
            raise ValueError(
                f"BatchNorm {'/'.join(self.path) or '(top level)'} updates its running statistics "
                "in training, but the collection batch_stats is not mutable: call "
                'apply(..., mutable=["batch_stats"]) and keep the updates it returns, or pass '
                "use_running_average=True to evaluate."
            )
        pooled = 1
        for a in axes:
            pooled *= shape[a]
        if pooled == 1 and self.axis_name is None and mask is None:
            raise ValueError(
                f"BatchNorm {'/'.join(self.path) or '(top level)'} got one element per channel in "
                f"training: an input of shape {shape} reduced over axes {axes}. One value cannot "
                "be normalized; use a larger batch, use_running_average=True, or a norm that does "
                "not pool over the batch."
            )
