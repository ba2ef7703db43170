"""Decorrelated batch norm as a Flax linen module, with running statistics in `batch_stats`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.pool import compute_dtype, real_dtype
from jaxnorm.functional import whitening
from jaxnorm.functional._layout import check_layout
from jaxnorm.functional.whitening import Method, Whitening
from jaxnorm.linen._base import AffineModule


class DecorrelatedBatchNorm(AffineModule, kw_only=True):
    """Batch normalization that removes the correlations between units too; see `jaxnorm.whiten`.

    In training (`use_running_average=False`) the batch's mean and covariance whiten, and the
    running mean and projection in the collection `batch_stats` move towards the batch's: apply
    with `mutable=["batch_stats"]`. In evaluation (`use_running_average=True`) the running ones
    serve and nothing changes. A group should have fewer units than the batch has examples.

    Attributes:
      use_running_average: evaluation or training; here or in the call, which wins. A traced
        boolean computes both.
      reduction_axes: the axes pooled; default: all that are not in `feature_axes`.
      feature_axes: the axes of the units, along which gamma and beta vary, too.
      num_groups: into how many groups of neighbouring units they are divided, each whitened by
        itself. The papers use groups of 16 to 64 units.
      method: "zca", by eigenvalues, or "iterative", by Newton's iteration.
      num_iterations: of the iterative method.
      momentum: decay of the running statistics: new = momentum * old + (1 - momentum) * batch.
      unbiased: whether the running projection goes by the unbiased covariance.
      axis_name: mapped axes to pool over as well.
      axis_index_groups: groups of indices of `axis_name` that pool together.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[2., 2.], [-2., -2.], [3., -3.], [-3., 3.]])
      >>> norm = jnn.DecorrelatedBatchNorm(epsilon=0.0)
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=True)
      >>> y, updates = norm.apply(
      ...     variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> bool(jnp.allclose(y.T @ y / 4, jnp.eye(2), atol=1e-5))
      True
      >>> jax.tree.map(jnp.shape, updates["batch_stats"])
      {'mean': (2,), 'projection': (1, 2, 2)}

    References: Huang, Yang, Lang & Deng 2018, Decorrelated Batch Normalization, arXiv:1804.08450;
    iterative: Huang, Zhou, Zhu, Liu & Shao 2019, Iterative Normalization, arXiv:1904.03441.
    """

    epsilon: float = 1e-5
    use_running_average: bool | jax.Array | None = None
    reduction_axes: Axes | None = None
    feature_axes: Axes = -1
    num_groups: int = 1
    method: Method = "zca"
    num_iterations: int = 15
    momentum: float = 0.99
    unbiased: bool = True
    axis_name: str | Sequence[str] | None = None
    axis_index_groups: AxisIndexGroups = None

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        *,
        use_running_average: bool | jax.Array | None = None,
        mask: ArrayLike | None = None,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
    ) -> jax.Array:
        """Whitens `x`; a gamma or beta given here replaces the module's own."""
        evaluate = self.use_running_average if use_running_average is None else use_running_average
        if evaluate is None:
            raise ValueError(
                f"{self._label} needs use_running_average: False in training, True in evaluation; "
                "set it as a field or pass it in the call."
            )
        x = _axes.check_input(x)
        axes = self.reduction_axes
        if axes is None:
            features = _axes.canonical_axes(self.feature_axes, x.shape, "feature_axes")
            axes = _axes.other_axes(features, x.ndim)
        layout = check_layout(x.shape, axes, self.feature_axes, self.num_groups)
        mean_shape, projection_shape = layout.shapes(x.shape)
        dtype = compute_dtype(x.dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, mean_shape, dtype)
        projection = self.variable(
            "batch_stats", "projection", _identities, projection_shape, dtype
        )
        running = Whitening(mean.value, projection.value, jnp.zeros((), real_dtype(x.dtype)))
        gamma, beta = self.affine(x, self.feature_axes, gamma, beta)
        traced = isinstance(evaluate, jax.Array)
        result = None
        if traced or evaluate:
            result = whitening.decorrelate(
                x,
                running,
                gamma,
                beta,
                axis=axes,
                feature_axes=self.feature_axes,
                mask=mask,
                dtype=self.dtype,
            )
            if not traced:
                return result
        self._check_training(x.shape, layout.axes, mask)
        y, batch = whitening.whiten(
            x,
            gamma,
            beta,
            axis=axes,
            feature_axes=self.feature_axes,
            num_groups=self.num_groups,
            method=self.method,
            num_iterations=self.num_iterations,
            epsilon=self.epsilon,
            mask=mask,
            axis_name=self._bound_names(),
            axis_index_groups=self.axis_index_groups,
            dtype=self.dtype,
        )
        if not self.is_initializing():
            batch = jax.lax.stop_gradient(batch)
            if traced:
                # Statistics of no examples change nothing.
                batch = batch._replace(count=jnp.where(evaluate, 0, batch.count))
            new = whitening.update_whitening(
                running, batch, momentum=self.momentum, unbiased=self.unbiased
            )
            mean.value, projection.value = new.mean, new.projection
        return y if result is None else jnp.where(evaluate, result, y)

    @property
    def _label(self) -> str:
        return f"DecorrelatedBatchNorm {'/'.join(self.path) or '(top level)'}"

    def _bound_names(self) -> tuple[str, ...] | None:
        """Returns the mapped axes to pool over; none at initialization, outside of any map."""
        if self.axis_name is None or self.is_initializing():
            return None
        try:
            return _axes.check_axis_name(self.axis_name)
        except NameError as error:
            raise NameError(f"{self._label}: {error}") from None

    def _check_training(self, shape, axes, mask) -> None:
        if self.is_initializing():
            return
        if not self.is_mutable_collection("batch_stats"):
            raise ValueError(
                f"{self._label} updates its running statistics in training, but the collection "
                'batch_stats is not mutable: call apply(..., mutable=["batch_stats"]) and keep the '
                "updates it returns, or pass use_running_average=True to evaluate."
            )
        if math.prod(shape[a] for a in axes) == 1 and self.axis_name is None and mask is None:
            raise ValueError(
                f"{self._label} got one example in training: an input of shape {shape} pooled over "
                f"axes {axes}. One example has no covariance; use a larger batch, or "
                "use_running_average=True."
            )


def _identities(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype), shape)
