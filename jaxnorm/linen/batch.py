"""Batch norm as a Flax linen module, with running statistics in `batch_stats`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._layers.batch import BatchLayer
from jaxnorm._layers.sources import Limit, Statistics
from jaxnorm.linen._base import AffineModule
from jaxnorm.linen._state import StateVariables


class BatchNorm(AffineModule, kw_only=True):
    """Batch normalization; see `jaxnorm.batch_norm` and `jaxnorm.standardize`.

    In training (`use_running_average=False`) the batch's statistics normalize, and the running
    mean and variance in the collection `batch_stats` move towards them: apply with
    `mutable=["batch_stats"]`. In evaluation (`use_running_average=True`) the running ones
    normalize and nothing changes. That is the plain Flax way; each part of it can be decided by
    itself:

    - which statistics normalize: `train_statistics` and `eval_statistics`, each "batch",
      "running", "renorm" (`jaxnorm.batch_renorm`), or a number, the batch's weight in a mixture
      with the running ones (`jaxnorm.blended_batch_norm`). Prediction by the batch is
      `eval_statistics="batch"`; it needs no mutable `batch_stats`.
    - whether the running ones are updated: `update_running`, by default in training only.
    - `frozen`: the running ones normalize and nothing is updated, whatever the call says.

    Attributes:
      epsilon: added to the variance.
      use_running_average: evaluation or training; here or in the call, which wins.
      train_statistics: what normalizes in training.
      eval_statistics: what normalizes in evaluation.
      update_running: whether the running statistics are updated; here or in the call, which wins.
      frozen: "statistics" freezes those; "all" also lets no gradient reach gamma and beta.
      reduction_axes: the axes pooled; default: all that are not in `feature_axes`.
      feature_axes: the axes that gamma and beta vary along; default: all that are not in
        `reduction_axes`, or the last if neither is given.
      batch_axis: the axis of the examples, for virtual batches and domains.
      momentum: decay of the running statistics: new = momentum * old + (1 - momentum) * batch.
        None: the plain average of all batches.
      debias: whether the running statistics give their initial values no weight, as in Haiku.
      unbiased: whether the running variance is unbiased (m / (m - 1)), as in the paper.
      num_virtual_batches: into how many parts the batch is divided, over all devices together;
        see `jaxnorm.ghost_batch_norm`.
      r_max: limit of "renorm"; a number, or a schedule: a function of the number of updates.
      d_max: like `r_max`.
      num_domains: how many domains or classes have statistics of their own; the call then takes
        `domain`, an integer for the whole batch or one for each example. As two domains for clean
        and adversarial examples this is auxiliary batch norm.
      affine_per_domain: whether gamma and beta are separate for each domain as well.
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

    References: Ioffe & Szegedy 2015, Batch Normalization, arXiv:1502.03167; for the options, the
    functions named.
    """

    technique = BatchLayer

    epsilon: float = 1e-5
    use_running_average: bool | None = None
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

    @nn.compact
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

        Traced flags, as `nn.remat` makes them, compute training's result and evaluation's.
        """
        x = _axes.check_input(x)
        layer, context = self.options, self.context()
        decisions = layer.decide(use_running_average, update_running, context)
        own = self.own(x, gamma=gamma, beta=beta)
        state = StateVariables(self, layer.first_state(x, decisions, context))
        given = {"mask": mask, "domain": domain, "given": (gamma, beta)}
        y, new = layer.apply(x, state.value, own, decisions, context, **given)
        state.keep(new)
        return y
