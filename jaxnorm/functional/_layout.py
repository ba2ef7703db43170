"""Which axes whitening pools and which are of units, and the errors of its arguments."""

from __future__ import annotations

import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxnorm import _axes


class Layout(NamedTuple):
    """Which axes are pooled, which are of units, and in how many groups those are."""

    axes: tuple[int, ...]
    features: tuple[int, ...]
    groups: int

    def order(self, rank: int) -> tuple[int, ...]:
        """Returns the axes in the order kept, pooled, units."""
        kept = _axes.other_axes((*self.axes, *self.features), rank)
        return (*kept, *self.axes, *self.features)

    def to_rows(self, x: jax.Array, units: int) -> jax.Array:
        """Returns `x` as [kept, examples, groups, units]; `units` of 1 stand for all."""
        x = jnp.transpose(x, self.order(x.ndim))
        kept = math.prod(x.shape[: x.ndim - len(self.axes) - len(self.features)])
        groups = 1 if units == 1 else self.groups
        return x.reshape(kept, -1, groups, units // groups)

    def mask_to_rows(self, mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Returns the mask of an input of shape `shape` as [kept, examples, 1, 1]."""
        shape = tuple(1 if a in self.features else s for a, s in enumerate(shape))
        return self.to_rows(jnp.broadcast_to(mask, shape), 1)

    def from_rows(self, rows: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Returns what `to_rows` was given, of shape `shape`."""
        order = self.order(len(shape))
        x = rows.reshape([shape[a] for a in order])
        return jnp.transpose(x, sorted(range(len(order)), key=order.__getitem__))

    def from_statistic(self, value: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Returns [kept, 1, groups, units], or all units of size 1, without the pooled axes."""
        units = value.shape[-2] * value.shape[-1]
        alone = units == 1
        full = (
            1 if a in self.axes or (a in self.features and alone) else s
            for a, s in enumerate(shape)
        )
        return jnp.squeeze(self.from_rows(value, tuple(full)), self.axes)

    def shapes(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the shapes of the mean and the projection of an input of shape `shape`."""
        kept = _axes.other_axes((*self.axes, *self.features), len(shape))
        size = math.prod(shape[a] for a in self.features) // self.groups
        mean = tuple(s for a, s in enumerate(shape) if a not in self.axes)
        return mean, (*(shape[a] for a in kept), self.groups, size, size)

    def specs(self, spec: PartitionSpec) -> tuple[PartitionSpec, PartitionSpec]:
        """Returns how the mean and the projection of an input divided by `spec` are divided."""
        kept = _axes.other_axes((*self.axes, *self.features), len(spec))
        mean = PartitionSpec(
            *(s if a in kept else None for a, s in enumerate(spec) if a not in self.axes)
        )
        return mean, PartitionSpec(*(spec[a] for a in kept), None, None, None)


def check_layout(shape, axis, feature_axes, num_groups) -> Layout:
    """Returns the layout of an input of shape `shape`."""
    axes = _axes.canonical_axes(axis, shape)
    features = _axes.canonical_axes(feature_axes, shape, "feature_axes")
    if set(axes) & set(features):
        raise ValueError(
            f"axis={axis!r} and feature_axes={feature_axes!r} of the input of shape {shape} have "
            "an axis in common; examples are pooled, units are not."
        )
    groups, units = operator.index(num_groups), math.prod(shape[a] for a in features)
    if groups < 1 or units % groups:
        raise ValueError(
            f"num_groups={num_groups!r} does not divide the {units} units on axes {features} of "
            f"the input of shape {shape}; choose a divisor of {units}."
        )
    return Layout(axes, features, groups)


def check_arrays(shape, layout: Layout, gamma, beta, mask):
    """Returns gamma, beta and mask at the rank of the input."""
    if gamma is not None:
        gamma = _axes.expand_parameter(gamma, shape, layout.features, (), "gamma")
    if beta is not None:
        beta = _axes.expand_parameter(beta, shape, layout.features, (), "beta")
    if mask is not None:
        mask = _axes.expand_mask(mask, shape)
        if any(mask.shape[a] != 1 for a in layout.features):
            raise ValueError(
                f"mask of shape {jnp.shape(mask)} varies along feature_axes={layout.features} of "
                f"the input of shape {shape}; whitening combines the units of an example, so that "
                "it needs all or none of them: give the mask size 1 there."
            )
    return gamma, beta, mask
