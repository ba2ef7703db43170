"""Batch norm as a layer: what its options and a call decide, in the order that they are needed."""

from __future__ import annotations

import dataclasses
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
from jaxnorm._layers.call import Context, Decisions, State, StateInit, placed_init
from jaxnorm._layers.layer import AffineLayer, Own
from jaxnorm._layers.narrow import warn_if_narrow
from jaxnorm._layers.sources import Limit, Statistics
from jaxnorm.functional import _batch_core as core
from jaxnorm.functional.virtual import check_virtual

Affine = tuple[ArrayLike | None, ArrayLike | None]  # gamma and beta


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchLayer(AffineLayer):
    """The options of batch norm, as `jaxnorm.linen.BatchNorm` describes them."""

    epsilon: float
    use_running_average: bool | jax.Array | None
    train_statistics: Statistics
    eval_statistics: Statistics
    update_running: bool | jax.Array | None
    frozen: Literal["statistics", "all"] | None
    reduction_axes: Axes | None
    feature_axes: Axes | None
    batch_axis: int
    momentum: float | jax.Array | None
    debias: bool
    unbiased: bool
    num_virtual_batches: int
    r_max: Limit
    d_max: Limit
    num_domains: int | None
    affine_per_domain: bool
    axis_name: str | Sequence[str] | None
    axis_index_groups: AxisIndexGroups

    def decide(self, evaluate: Any, update: Any, context: Context) -> Decisions:
        """Returns what the call decides; None leaves it to the options."""
        return Decisions.make(
            self.use_running_average if evaluate is None else evaluate,
            self.update_running if update is None else update,
            self.train_statistics,
            self.eval_statistics,
            self.frozen,
            context.label,
        )

    def axes_of(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
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

    def features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.axes_of(shape)[1]

    @property
    def affine_rows(self) -> tuple[int, ...]:
        """The sizes that gamma and beta have before those of the features: one row per domain."""
        if self.num_domains is None or not self.affine_per_domain:
            return ()
        return (self.num_domains,)

    def affine_shape(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of gamma and beta, of all domains if each has its own."""
        return (*self.affine_rows, *sizes)

    def first_state(self, x: jax.Array, decisions: Decisions, context: Context) -> StateInit:
        """Returns what the state starts at; empty if this call can do without."""
        needed = decisions.needs_running or context.accumulates
        if not needed and (self.keeps_none or not context.initializing):
            return {}
        sizes = self.kept_sizes(x.shape)
        first = self.first_moments(sizes, x.dtype)
        if context.accumulates:
            first |= running.first_accumulators(self.state_shape(sizes), x.dtype)
        return placed_init(first, dict.fromkeys(first, self.state_spec(x)))

    @property
    def keeps_none(self) -> bool:
        """Whether the running statistics serve no call, unless the call itself says so."""
        by_batch = self.train_statistics == self.eval_statistics == "batch"
        return by_batch and self.update_running is False and self.frozen is None

    def first_state_of(
        self, sizes: tuple[int, ...], dtype: DTypeLike, shape: Sequence[int] | None
    ) -> StateInit:
        """Returns what the state starts at before an input is seen; empty if it serves no call.

        It is that of features of `sizes`, all other axes being pooled, or of inputs of `shape`.
        """
        if self.keeps_none:
            return {}
        return self.first_moments(sizes if shape is None else self.kept_sizes(tuple(shape)), dtype)

    def first_moments(self, sizes: tuple[int, ...], dtype: DTypeLike) -> StateInit:
        """Returns what running moments start at, for the `sizes` of the axes not pooled."""
        counts = self.momentum is None or self.debias
        counts = counts or callable(self.r_max) or callable(self.d_max)
        return running.first_moments(self.state_shape(sizes), dtype, counts=counts)

    def kept_sizes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the sizes of the axes that are not pooled, of an input of shape `shape`."""
        axes, _ = self.axes_of(shape)
        return tuple(s for a, s in enumerate(shape) if a not in axes)

    def state_shape(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the running moments, for the `sizes` of the axes not pooled."""
        return sizes if self.num_domains is None else (self.num_domains, *sizes)

    def state_spec(self, x: jax.Array) -> tuple[Any, ...]:
        """Returns how the running moments lie on an explicit mesh: as the channels do."""
        axes, _ = self.axes_of(x.shape)
        kept = tuple(names for a, names in enumerate(spec_of(x)) if a not in axes)
        return kept if self.num_domains is None else (None, *kept)

    def apply(
        self,
        x: jax.Array,
        state: State,
        own: Own,
        decisions: Decisions,
        context: Context,
        *,
        mask: ArrayLike | None = None,
        domain: ArrayLike | None = None,
        given: Affine = (None, None),
    ) -> tuple[jax.Array, State | None]:
        """Normalizes `x`; returns the new state too, of some of its arrays or all, if it moved.

        Args:
          x: the input.
          state: the values of what `first_state` named.
          own: gamma and beta of the layer.
          decisions: what `decide` returned.
          context: what the framework says of the call.
          mask: which elements count.
          domain: the domain of the batch or of each example.
          given: gamma and beta of the call, which replace those of the layer.
        """
        axes, _ = self.axes_of(x.shape)
        batch, domain = self._divide(x, axes, domain, context)
        gamma, beta = self._affine(x, axes, own, given, batch, domain)
        inputs, axes = core.check_inputs(x, gamma, beta, mask, axes, self.feature_axes)
        if state:
            moments = running.moments_of(state)
            moments = moments if domain is None else banks.row(moments, domain)
            inputs = core.expand_running(moments, inputs, axes, batch)
        tracks = bool(state) and decisions.tracks(context)
        pools = tracks or decisions.sources != ("running",)
        options = self._options(x, axes, pools and not context.initializing, context)
        results, pooled = [], None
        for source in decisions.sources:
            if source == "batch" and not context.initializing:
                self.check_count(x.shape, axes, mask, batch, decisions, context)
            limits = (self.r_max, self.d_max)
            y, moments = sources.normalize_by(source, inputs, batch, options, limits)
            pooled = pooled or moments
            results.append(y)
        y = sources.choose(decisions.evaluate, results)
        if not tracks:
            return y, None
        if not context.accumulates:
            warn_if_narrow(state["mean"].dtype, self.momentum, context)
        pooled = jax.lax.stop_gradient(pooled or core.batch_moments(inputs, batch, options))
        if self.num_domains is not None and domain is not None:
            pooled = banks.as_bank(pooled, domain, self.num_domains)
        average = {"momentum": self.momentum, "unbiased": self.unbiased, "debias": self.debias}
        return y, running.track(state, pooled, decisions.update, **average)

    def can_normalize_by_batch(self, shape: tuple[int, ...], mask: ArrayLike | None = None) -> bool:
        """Whether each statistic is of more than one value, as far as the input's shape tells.

        An input that the virtual batches do not divide is taken as one.
        """
        batch = core.Batch(virtual=self.num_virtual_batches if self.divides(shape) else 1)
        return not self._pools_one_value(shape, self.axes_of(shape)[0], mask, batch)

    def divides(self, shape: tuple[int, ...]) -> bool:
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

    def _affine(self, x, axes, own: Own, given: Affine, batch, domain) -> Affine:
        """Returns gamma and beta: those of the call, else the layer's, of its domains if any."""
        chosen = []
        for name, call in zip(("gamma", "beta"), given, strict=True):
            value = own.get(name) if call is None else call
            if call is None and value is not None and self.affine_rows:
                bank = banks.check_bank(value, name, *self.affine_rows)
                features = self.feature_axes
                value = banks.parameter(bank, name, x, axes, features, batch, domain)
            chosen.append(value)
        gamma, beta = chosen
        return jax.lax.stop_gradient((gamma, beta)) if self.frozen == "all" else (gamma, beta)

    def _options(self, x: jax.Array, axes, pools: bool, context: Context) -> Options:
        """Returns the options; the named axes count only where elements are pooled."""
        mapped = (self.axis_name, self.axis_index_groups) if pools else (None, None)
        try:
            return core.make_options(x, axes, self.epsilon, *mapped, self.dtype)
        except NameError as error:
            raise NameError(f"{context.label}: {error}") from None

    def check_count(
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
