"""Decorrelated batch norm as a Flax linen module, with running statistics in `batch_stats`."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.mesh import spec_of
from jaxnorm._layers.whitening import Method, WhiteningLayer
from jaxnorm.linen._base import AffineModule
from jaxnorm.linen._state import StateVariables


class DecorrelatedBatchNorm(AffineModule, kw_only=True):
    """Batch normalization that removes the correlations between units too; see `jaxnorm.whiten`.

    In training (`use_running_average=False`) the batch's mean and covariance whiten, and the
    running mean and projection in the collection `batch_stats` move towards the batch's: apply
    with `mutable=["batch_stats"]`. In evaluation (`use_running_average=True`) the running ones
    serve and nothing changes. A group should have fewer units than the batch has examples.

    Attributes:
      epsilon: added to the variances.
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

    technique = WhiteningLayer

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
        x = _axes.check_input(x)
        layer, context = self.options, self.context()
        evaluate = layer.decide(use_running_average, context)
        state = StateVariables(self, layer.first_state(x.shape, x.dtype, spec_of(x)))
        own = self.own(x, gamma=gamma, beta=beta)
        y, new = layer.apply(x, state.value, own, evaluate, context, mask=mask)
        state.keep(new)
        return y
