"""Decorrelated batch norm as a Flax NNX module, with running statistics as `nnx.BatchStat`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._layers.whitening import Method, WhiteningLayer
from jaxnorm.nnx._base import AffineModule, Moded, module
from jaxnorm.nnx._state import keep, make_state, state_of


@module
class DecorrelatedBatchNorm(Moded, AffineModule):
    """Batch normalization that removes the correlations between units too; see `jaxnorm.whiten`.

    In training (`model.train()`, as models are made) the batch's mean and covariance whiten, and
    the running mean and projection, of the kind `nnx.BatchStat`, move towards the batch's. In
    evaluation (`model.eval()`) the running ones serve and nothing changes. A group should have
    fewer units than the batch has examples.

    The options that are not listed are those of `jaxnorm.linen.DecorrelatedBatchNorm`.

    Attributes:
      num_features: number of units; sizes where they have several axes, ascending.
      use_running_average: evaluation or training, as `model.eval()` and `model.train()` set it;
        here or in the call, which wins. A traced boolean computes both.
      dtype: dtype of the result; default: that of the input. The running statistics have it, or
        without it `param_dtype`, in float32 or wider: complex inputs need a complex one.
      input_shape: an example of the inputs' shape, where they have axes that are neither pooled
        nor of units: the running statistics have their sizes, too.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x = jnp.array([[2., 2.], [-2., -2.], [3., -3.], [-3., 3.]])
      >>> norm = jnx.DecorrelatedBatchNorm(2, epsilon=0.0)
      >>> y = norm(x)
      >>> bool(jnp.allclose(y.T @ y / 4, jnp.eye(2), atol=1e-5))
      True
      >>> norm.mean.shape, norm.projection.shape
      ((2,), (1, 2, 2))

    References: Huang, Yang, Lang & Deng 2018, Decorrelated Batch Normalization, arXiv:1804.08450;
    iterative: Huang, Zhou, Zhu, Liu & Shao 2019, Iterative Normalization, arXiv:1904.03441.
    """

    technique = WhiteningLayer

    epsilon: float = 1e-5
    use_running_average: bool | None = False
    reduction_axes: Axes | None = None
    feature_axes: Axes = -1
    num_groups: int = 1
    method: Method = "zca"
    num_iterations: int = 15
    momentum: float = 0.99
    unbiased: bool = True
    axis_name: str | Sequence[str] | None = None
    axis_index_groups: AxisIndexGroups = None
    input_shape: Sequence[int] | None = None

    def _make(self, **given: Any) -> None:
        """Makes gamma, beta and the running statistics."""
        super()._make(**given)
        first = self.options.first_state_of(self.sizes, self.state_dtype, self.input_shape)
        make_state(self, first)

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
        layer, context = self.options, self.context
        evaluate = layer.decide(use_running_average, context)
        state = state_of(self, layer.first_state(x.shape, x.dtype), x.shape)
        own = self._own(x, gamma=gamma, beta=beta)
        y, new = layer.apply(x, state, own, evaluate, context, mask=mask)
        keep(self, new)
        return y
