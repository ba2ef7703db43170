"""Batch norm as a Flax NNX module, with running statistics as `nnx.BatchStat`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._layers.batch import BatchLayer
from jaxnorm._layers.sources import Limit, Statistics
from jaxnorm.nnx._base import AffineModule, Moded, module
from jaxnorm.nnx._state import keep, make_state, state_of


@module
class BatchNorm(Moded, AffineModule):
    """Batch normalization; see `jaxnorm.batch_norm` and `jaxnorm.standardize`.

    In training (`model.train()`, as models are made) the batch's statistics normalize, and the
    running mean and variance, of the kind `nnx.BatchStat`, move towards them. In evaluation
    (`model.eval()`, or a view: `nnx.view(model, use_running_average=True)`) the running ones
    normalize and nothing changes. Each part of that can be decided by itself, as the twin for linen
    says; the options that are not listed are those of `jaxnorm.linen.BatchNorm`.

    Attributes:
      num_features: size of gamma and beta; sizes where they have several axes, ascending.
      use_running_average: evaluation or training, as `model.eval()` and `model.train()` set it;
        here or in the call, which wins.
      dtype: dtype of the result; default: that of the input. The running statistics have it, or
        without it `param_dtype`, in float32 or wider: complex inputs need a complex one.
      input_shape: an example of the inputs' shape, where they have axes that are neither pooled
        nor of features: the running statistics have their sizes, too.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x = jnp.array([[1., 10.], [3., 30.]])
      >>> norm = jnx.BatchNorm(2, momentum=0.5)
      >>> norm(x).round(3).tolist(), norm.mean[...].tolist()
      ([[-1.0, -1.0], [1.0, 1.0]], [1.0, 10.0])
      >>> norm.eval()
      >>> norm(jnp.array([[1., 10.]])).tolist(), norm.mean[...].tolist()
      ([[0.0, 0.0]], [1.0, 10.0])

    References: Ioffe & Szegedy 2015, Batch Normalization, arXiv:1502.03167; for the options, the
    functions named.
    """

    technique = BatchLayer

    epsilon: float = 1e-5
    use_running_average: bool | None = False
    train_statistics: Statistics = "batch"
    eval_statistics: Statistics = "running"
    update_running: bool | None = None
    frozen: Literal["statistics", "all"] | None = None
    reduction_axes: Axes | None = None
    feature_axes: Axes | None = None
    batch_axis: int = 0
    momentum: float | None = 0.99
    debias: bool = False
    unbiased: bool = True
    num_virtual_batches: int = 1
    r_max: Limit = 3.0
    d_max: Limit = 5.0
    num_domains: int | None = None
    affine_per_domain: bool = False
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
        update_running: bool | jax.Array | None = None,
        mask: ArrayLike | None = None,
        domain: ArrayLike | None = None,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x`; a gamma or beta given here replaces the module's own.

        Traced flags compute training's result and evaluation's.
        """
        x = _axes.check_input(x)
        layer, context = self.options, self.context
        decisions = layer.decide(use_running_average, update_running, context)
        own = self._own(x, gamma=gamma, beta=beta)
        state = state_of(self, layer.first_state(x, decisions, context), x.shape)
        given = {"mask": mask, "domain": domain, "given": (gamma, beta)}
        y, new = layer.apply(x, state, own, decisions, context, **given)
        keep(self, new)
        return y
