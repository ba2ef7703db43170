"""Batch norm: its options, and what they and a call decide, in the order that they are needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.formula import Options
from jaxnorm._core.mesh import spec_of
from jaxnorm._layers import banks, running, sources
from jaxnorm._layers.call import Call, Context, Decisions, Params, State, StateInit, placed_init
from jaxnorm._layers.layer import AffineLayer
from jaxnorm._layers.narrow import warn_if_narrow
from jaxnorm._layers.options import options
from jaxnorm._layers.sources import Limit, Statistics
from jaxnorm.functional import _batch_core as core
from jaxnorm.functional.virtual import check_virtual


@options
class BatchNorm(AffineLayer):
    """Batch normalization; see `jaxnorm.batch_norm` and `jaxnorm.standardize`.

    Each part of it can be decided by itself:

    - which statistics normalize: `train_statistics` and `eval_statistics`, each "batch",
      "running", "renorm" (`jaxnorm.batch_renorm`), or a number, the batch's weight in a mixture
      with the running ones (`jaxnorm.blended_batch_norm`). Prediction by the batch is
      `eval_statistics="batch"`; it needs no mutable statistics.
    - whether the running ones are updated: `update_running`, by default in training only.
    - `frozen`: the running ones normalize and nothing is updated, whatever the call says.

    References: Ioffe & Szegedy 2015, Batch Normalization, arXiv:1502.03167; for the options, the
    functions named.
    """

    epsilon: float = 1e-5
    """added to the variance."""
    use_running_average: bool | None = None
    """evaluation or training; here or in the call, which wins."""
    train_statistics: Statistics = "batch"
    """what normalizes in training."""
    eval_statistics: Statistics = "running"
    """what normalizes in evaluation."""
    update_running: bool | None = None
    """whether the running statistics are updated; here or in the call, which wins."""
    frozen: Literal["statistics", "all"] | None = None
    """"statistics" freezes those; "all" also lets no gradient reach gamma and beta."""
    reduction_axes: Axes | None = None
    """the axes pooled; default: all that are not in `feature_axes`."""
    feature_axes: Axes | None = None
    """the axes that gamma and beta vary along; default: all that are not in `reduction_axes`, or
    the last if neither is given."""
    batch_axis: int = 0
    """the axis of the examples, for virtual batches and domains."""
    momentum: float | jax.Array | None = 0.99
    """decay of the running statistics: new = momentum * old + (1 - momentum) * batch. None: the
    plain average of all batches."""
    debias: bool = False
    """whether the running statistics give their initial values no weight, as in Haiku."""
    unbiased: bool = True
    """whether the running variance is unbiased (m / (m - 1)), as in the paper."""
    num_virtual_batches: int = 1
    """into how many parts the batch is divided, over all devices together; see
    `jaxnorm.ghost_batch_norm`."""
    r_max: Limit = 3.0
    """limit of "renorm"; a number, or a schedule: a function of the number of updates."""
    d_max: Limit = 5.0
    """like `r_max`."""
    num_domains: int | None = None
    """how many domains or classes have statistics of their own; the call then takes `domain`, an
    integer for the whole batch or one for each example. As two domains for clean and adversarial
    examples this is auxiliary batch norm."""
    affine_per_domain: bool = False
    """whether gamma and beta are separate for each domain as well."""
    axis_name: str | Sequence[str] | None = None
    """mapped axes to pool over as well, as in synchronised batch norm."""
    axis_index_groups: AxisIndexGroups = None
    """groups of indices of `axis_name` that pool together."""

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
        x, context = _axes.check_input(x), self._context()
        decisions = self._decide(use_running_average, update_running, context)
        overrides = {"gamma": gamma, "beta": beta}
        params = self._params(x, **overrides)
        state = self._read_state(self._init_state(x, decisions, context), x)
        call = Call(context, mask, decisions, domain, overrides)
        y, new = self._normalize(x, params, state, call)
        self._write_state(new)
        return y

    def _decide(self, evaluate: Any, update: Any, context: Context) -> Decisions:
        """Returns what the call decides; None leaves it to the options."""
        return Decisions.make(
            self.use_running_average if evaluate is None else evaluate,
            self.update_running if update is None else update,
            self.train_statistics,
            self.eval_statistics,
            self.frozen,
            context.label,
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

    def _features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self._axes_of(shape)[1]

    @property
    def _affine_rows(self) -> tuple[int, ...]:
        """The sizes that gamma and beta have before those of the features: one row per domain."""
        if self.num_domains is None or not self.affine_per_domain:
            return ()
        return (self.num_domains,)

    def _affine_shape(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of gamma and beta, of all domains if each has its own."""
        return (*self._affine_rows, *sizes)

    def _init_state(self, x: jax.Array, decisions: Decisions, context: Context) -> StateInit:
        """Returns what the state starts at; empty if this call can do without."""
        needed = decisions.needs_running or context.accumulates
        if not needed and (self._keeps_none or not context.initializing):
            return {}
        sizes = self._kept_sizes(x.shape)
        first = self._init_moments(sizes, x.dtype)
        if context.accumulates:
            first |= running.init_accumulators(self._state_shape(sizes), x.dtype)
        return placed_init(first, dict.fromkeys(first, self._state_spec(x)))

    @property
    def _keeps_none(self) -> bool:
        """Whether the running statistics serve no call, unless the call itself says so."""
        by_batch = self.train_statistics == self.eval_statistics == "batch"
        return by_batch and self.update_running is False and self.frozen is None

    def _init_state_of(self, sizes: tuple[int, ...], shape: tuple[int, ...] | None) -> StateInit:
        if self._keeps_none:
            return {}
        kept = sizes if shape is None else self._kept_sizes(shape)
        return self._init_moments(kept, self._state_dtype)

    def _init_moments(self, sizes: tuple[int, ...], dtype: DTypeLike) -> StateInit:
        """Returns what running moments start at, for the `sizes` of the axes not pooled."""
        counts = self.momentum is None or self.debias
        counts = counts or callable(self.r_max) or callable(self.d_max)
        return running.init_moments(self._state_shape(sizes), dtype, counts=counts)

    def _kept_sizes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the sizes of the axes that are not pooled, of an input of shape `shape`."""
        axes, _ = self._axes_of(shape)
        return tuple(s for a, s in enumerate(shape) if a not in axes)

    def _state_shape(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the running moments, for the `sizes` of the axes not pooled."""
        return sizes if self.num_domains is None else (self.num_domains, *sizes)

    def _state_spec(self, x: jax.Array) -> tuple[Any, ...]:
        """Returns how the running moments lie on an explicit mesh: as the channels do."""
        axes, _ = self._axes_of(x.shape)
        kept = tuple(names for a, names in enumerate(spec_of(x)) if a not in axes)
        return kept if self.num_domains is None else (None, *kept)

    def _normalize(
        self, x: jax.Array, params: Params, state: State, call: Call
    ) -> tuple[jax.Array, State | None]:
        """Returns `x`, normalized, and the new state, of some of its arrays or all, if it moved."""
        context, mask, decisions, domain, _ = call
        axes, _ = self._axes_of(x.shape)
        batch, domain = self._divide(x, axes, domain, context)
        gamma, beta = self._affine(x, axes, params, call, batch, domain)
        inputs, axes = core.check_inputs(x, gamma, beta, mask, axes, self.feature_axes)
        if state:
            moments = running.moments_of(state)
            moments = moments if domain is None else banks.row(moments, domain)
            inputs = core.expand_running(moments, inputs, axes, batch)
        tracks = bool(state) and decisions.tracks(context)
        pools = tracks or decisions.sources != ("running",)
        formula = self._make_options(x, axes, pools and not context.initializing, context)
        results, pooled = [], None
        for source in decisions.sources:
            if source == "batch" and not context.initializing:
                self._check_count(x.shape, axes, mask, batch, decisions, context)
            limits = (self.r_max, self.d_max)
            y, moments = sources.normalize_by(source, inputs, batch, formula, limits)
            pooled = pooled or moments
            results.append(y)
        y = sources.choose(decisions.evaluate, results)
        if not tracks:
            return y, None
        if not context.accumulates:
            warn_if_narrow(state["mean"].dtype, self.momentum, context)
        pooled = jax.lax.stop_gradient(pooled or core.batch_moments(inputs, batch, formula))
        if self.num_domains is not None and domain is not None:
            pooled = banks.as_bank(pooled, domain, self.num_domains)
        average = {"momentum": self.momentum, "unbiased": self.unbiased, "debias": self.debias}
        return y, running.track(state, pooled, decisions.update, **average)

    def _can_normalize_by_batch(
        self, shape: tuple[int, ...], mask: ArrayLike | None = None
    ) -> bool:
        """Whether each statistic is of more than one value, as far as the input's shape tells.

        An input that the virtual batches do not divide is taken as one.
        """
        batch = core.Batch(virtual=self.num_virtual_batches if self._divides(shape) else 1)
        return not self._pools_one_value(shape, self._axes_of(shape)[0], mask, batch)

    def _divides(self, shape: tuple[int, ...]) -> bool:
        """Whether the virtual batches divide the examples; those of a last batch may be fewer."""
        axis = _axes.canonical_axis(self.batch_axis, shape, "batch_axis")
        return shape[axis] % self.num_virtual_batches == 0

    def _divide(self, x, axes, domain, context: Context) -> tuple[core.Batch, jax.Array | None]:
        """Returns how the batch is divided, and the domain if the whole batch has one."""
        virtual = check_virtual(self.num_virtual_batches)
        if virtual == 1 and self.num_domains is None:
            if domain is not None:
                raise ValueError(
                    f"{context.label} got domain={domain!r}, but num_domains is not set."
                )
            return core.Batch(), None
        axis = core.check_batch_axis(self.batch_axis, x.shape, axes)
        virtual = 1 if context.initializing else virtual
        if self.num_domains is None:
            return core.Batch(axis, virtual), None
        if domain is None:
            raise ValueError(
                f"{context.label} has num_domains={self.num_domains} and needs domain in the call: "
                "an integer, or one for each example."
            )
        domain = banks.check_domain(domain, self.num_domains, x, axis)
        if domain.ndim == 0:
            return core.Batch(axis, virtual), domain
        if virtual > 1:
            raise ValueError(
                f"{context.label} has num_virtual_batches={virtual}, which needs one domain for "
                "the whole batch, not one for each example."
            )
        return core.Batch(axis, 1, (domain, self.num_domains)), None

    def _affine(
        self, x, axes, params: Params, call: Call, batch, domain
    ) -> tuple[ArrayLike | None, ArrayLike | None]:
        """Returns gamma and beta, those of the layer for its domains if it has any."""
        chosen = []
        for name in ("gamma", "beta"):
            value = params.get(name)
            if value is not None and self._affine_rows and call.overrides.get(name) is None:
                bank = banks.check_bank(value, name, *self._affine_rows)
                features = self.feature_axes
                value = banks.parameter(bank, name, x, axes, features, batch, domain)
            chosen.append(value)
        gamma, beta = chosen
        return jax.lax.stop_gradient((gamma, beta)) if self.frozen == "all" else (gamma, beta)

    def _make_options(self, x: jax.Array, axes, pools: bool, context: Context) -> Options:
        """Returns the options; the named axes count only where elements are pooled."""
        mapped = (self.axis_name, self.axis_index_groups) if pools else (None, None)
        try:
            return core.make_options(x, axes, self.epsilon, *mapped, self.dtype)
        except NameError as error:
            raise NameError(f"{context.label}: {error}") from None

    def _check_count(
        self,
        shape: tuple[int, ...],
        axes: tuple[int, ...],
        mask: ArrayLike | None,
        batch: core.Batch,
        decisions: Decisions,
        context: Context,
    ) -> None:
        """Checks that no statistic is of one value, which has no variance."""
        if not self._pools_one_value(shape, axes, mask, batch):
            return
        evaluates = decisions.evaluate is True
        where = f" in each of {batch.virtual} virtual batches" if batch.virtual > 1 else ""
        mode = "evaluation by the batch's statistics" if evaluates else "training"
        remedy = 'eval_statistics="running"' if evaluates else context.evaluation
        raise ValueError(
            f"{context.label} got one element per channel{where} in {mode}: an input of shape "
            f"{shape} reduced over axes {axes}. One value cannot be normalized; use a larger "
            f"batch, {remedy}, or a norm that does not pool over the batch."
        )

    def _pools_one_value(self, shape, axes, mask, batch: core.Batch) -> bool:
        """Whether a statistic is known to be of one value, which has no variance."""
        if self.axis_name is not None or mask is not None or batch.segments is not None:
            return False
        size = math.prod(shape[a] for a in axes)
        return isinstance(size, int) and size <= batch.virtual  # a symbolic size is not known
