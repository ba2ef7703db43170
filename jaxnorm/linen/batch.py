"""Batch norm as a Flax linen module, with running statistics in `batch_stats`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core import combine
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.moments import Moments
from jaxnorm.functional import _banks
from jaxnorm.functional import _batch_core as core
from jaxnorm.functional._corrections import Limit, Statistics
from jaxnorm.functional.virtual import check_virtual
from jaxnorm.linen._base import AffineModule
from jaxnorm.linen._decisions import Decisions
from jaxnorm.linen._running import RunningMoments


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

        `use_running_average` and `update_running` may be traced, as `nn.remat` makes them: then
        the results of training and of evaluation are both computed, and one is taken.
        """
        x = _axes.check_input(x)
        decisions = self._decide(use_running_average, update_running)
        axes, features = self._axes_of(x.shape)
        batch, domain = self._divide(x.shape, axes, domain)
        gamma, beta = self._affine(x, features, gamma, beta, batch, domain)
        inputs, axes = core.check_inputs(x, gamma, beta, mask, axes, features)
        state = self._open_running(inputs, axes, decisions)
        if state is not None:
            rows = state.value if domain is None else _banks.row(state.value, domain)
            inputs = core.expand_running(rows, inputs, axes, batch)
        tracks = state is not None and self._tracks(decisions)
        options = self._options(x, axes, tracks or decisions.sources != ("running",))
        results, pooled = [], None
        for source in decisions.sources:
            self._check_count(x.shape, axes, mask, source, batch, decisions.evaluate is True)
            limits = (self.r_max, self.d_max)
            y, moments = core.normalize_by(source, inputs, batch, options, limits)
            pooled = pooled or moments
            results.append(y)
        if state is not None and tracks:
            pooled = pooled or core.batch_moments(inputs, batch, options)
            self._track(state, pooled, domain, decisions.update)
        return core.choose(decisions.evaluate, results)

    @property
    def _label(self) -> str:
        return f"BatchNorm {'/'.join(self.path) or '(top level)'}"

    def _decide(self, evaluate, update) -> Decisions:
        return Decisions.make(
            self.use_running_average if evaluate is None else evaluate,
            self.update_running if update is None else update,
            self.train_statistics,
            self.eval_statistics,
            self.frozen,
            self._label,
        )

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

    def _divide(self, shape, axes, domain) -> tuple[core.Batch, jax.Array | None]:
        """Returns how the batch is divided, and the domain if the whole batch has one."""
        virtual = check_virtual(self.num_virtual_batches)
        if virtual == 1 and self.num_domains is None:
            if domain is not None:
                raise ValueError(
                    f"{self._label} got domain={domain!r}, but num_domains is not set."
                )
            return core.Batch(), None
        axis = core.check_batch_axis(self.batch_axis, shape, axes)
        virtual = 1 if self.is_initializing() else virtual
        if self.num_domains is None:
            return core.Batch(axis, virtual), None
        if domain is None:
            raise ValueError(
                f"{self._label} has num_domains={self.num_domains} and needs domain in the call: "
                "an integer, or one for each example."
            )
        domain = _banks.check_domain(domain, self.num_domains, shape[axis])
        if domain.ndim == 0:
            return core.Batch(axis, virtual), domain
        if virtual > 1:
            raise ValueError(
                f"{self._label} has num_virtual_batches={virtual}, which needs one domain for the "
                "whole batch, not one for each example."
            )
        return core.Batch(axis, 1, (domain, self.num_domains)), None

    def _affine(self, x, features, gamma, beta, batch: core.Batch, domain):
        """Returns gamma and beta, those of the domains if they are separate."""
        if self.num_domains is None or not self.affine_per_domain:
            gamma, beta = self.affine(x, features, gamma, beta)
        else:
            given = gamma, beta
            gamma, beta = (
                value
                if value is None or value is call
                else _banks.parameter(value, x.shape, features, batch, domain)
                for value, call in zip(
                    self.affine(x, features, gamma, beta, (self.num_domains,)), given, strict=True
                )
            )
        if self.frozen == "all":
            gamma, beta = jax.lax.stop_gradient((gamma, beta))
        return gamma, beta

    def _open_running(
        self, inputs: core.Inputs, axes, decisions: Decisions
    ) -> RunningMoments | None:
        """Returns the running statistics, unless this call can do without."""
        needed = decisions.needs_running or RunningMoments.accumulates(self)
        keeps_none = (
            self.train_statistics == self.eval_statistics == "batch"
            and self.update_running is False
        )
        if not needed and (keeps_none or not self.is_initializing()):
            return None
        x = inputs.x
        shape = tuple(s for a, s in enumerate(x.shape) if a not in axes)
        if self.num_domains is not None:
            shape = (self.num_domains, *shape)
        counts = self.momentum is None or self.debias
        counts = counts or callable(self.r_max) or callable(self.d_max)
        return RunningMoments(self, shape, x.dtype, counts=counts)

    def _tracks(self, decisions: Decisions) -> bool:
        """Returns whether the batch's moments are to be kept, which then must be possible."""
        if self.is_initializing():
            return False
        if not self.is_mutable_collection(RunningMoments.collection):
            if decisions.update is not False:
                raise ValueError(
                    f"{self._label} updates its running statistics in training, but the collection "
                    'batch_stats is not mutable: call apply(..., mutable=["batch_stats"]) and keep '
                    "the updates it returns, or pass use_running_average=True to evaluate, or "
                    "update_running=False to leave them as they are."
                )
            return False
        return decisions.update is not False or RunningMoments.accumulates(self)

    def _options(self, x: jax.Array, axes, pools: bool) -> core.Options:
        """Returns the options; the named axes count only where elements are pooled."""
        pools = pools and not self.is_initializing()
        name = self.axis_name if pools else None
        try:
            return core.make_options(
                x, axes, self.epsilon, name, self.axis_index_groups, self.dtype
            )
        except NameError as error:
            raise NameError(f"{self._label}: {error}") from None

    def _check_count(
        self, shape, axes, mask, source: Statistics, batch: core.Batch, evaluate: bool
    ) -> None:
        if source != "batch" or self.is_initializing():
            return
        if not self._pools_one_value(shape, axes, mask, batch):
            return
        where = f" in each of {batch.virtual} virtual batches" if batch.virtual > 1 else ""
        mode = "evaluation by the batch's statistics" if evaluate else "training"
        remedy = 'eval_statistics="running"' if evaluate else "use_running_average=True"
        raise ValueError(
            f"{self._label} got one element per channel{where} in {mode}: an input of shape "
            f"{shape} reduced over axes {axes}. One value cannot be normalized; use a larger "
            f"batch, {remedy}, or a norm that does not pool over the batch."
        )

    def _pools_one_value(self, shape, axes, mask, batch: core.Batch) -> bool:
        """Whether a statistic is known to be of one value, which has no variance."""
        if self.axis_name is not None or mask is not None or batch.segments is not None:
            return False
        return math.prod(shape[a] for a in axes) <= batch.virtual

    def can_normalize_by_batch(self, x: ArrayLike, mask: ArrayLike | None = None) -> bool:
        """Whether `x` has more than one value for each statistic, as far as its shape tells."""
        shape = jnp.shape(x)
        batch = core.Batch(virtual=self.num_virtual_batches)
        return not self._pools_one_value(shape, self._axes_of(shape)[0], mask, batch)

    def _track(self, state: RunningMoments, pooled: Moments, domain, update) -> None:
        """Updates the running statistics, or adds to the accumulators where there are any."""
        pooled = jax.lax.stop_gradient(pooled)
        if self.num_domains is not None and domain is not None:
            pooled = _banks.as_bank(pooled, domain, self.num_domains)
        if RunningMoments.accumulates(self):
            state.accumulate(pooled)
            return
        if isinstance(update, jax.Array):
            # Moments of no elements change nothing.
            pooled = pooled._replace(count=jnp.where(update, pooled.count, 0))
        state.value = combine.update_moments(
            state.value,
            pooled,
            momentum=self.momentum,
            unbiased=self.unbiased,
            debias=self.debias,
        )
