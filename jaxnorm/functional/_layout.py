"""Which axes whitening pools and which are of units, and the errors of its arguments."""

from __future__ import annotations

import math
import operator
import string
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxnorm._core import axes as _axes


class Layout(NamedTuple):
    """Which axes stay, which are pooled, which are of units, and in how many groups those are.

    Computations are on rows: [*kept, *pooled, groups, units of a group]. Axes are not merged,
    since each may be divided over devices in its own way.
    """

    kept: tuple[int, ...]
    axes: tuple[int, ...]
    features: tuple[int, ...]
    groups: int

    @property
    def pooled(self) -> tuple[int, ...]:
        """The axes of rows that are pooled."""
        return tuple(range(len(self.kept), len(self.kept) + len(self.axes)))

    def to_rows(self, x: jax.Array) -> jax.Array:
        """Returns `x`, an input or what broadcasts against it along the units, as rows."""
        x = jnp.transpose(x, (*self.kept, *self.axes, *self.features))
        sizes, units = x.shape[: self.pooled[-1] + 1], x.shape[self.pooled[-1] + 1 :]
        groups = self.groups if math.prod(units) > 1 else 1
        return x.reshape(*sizes, groups, math.prod(units) // groups)

    def mask_to_rows(self, mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Returns the mask of an input of shape `shape` as rows of a single unit."""
        full = tuple(1 if a in self.features else s for a, s in enumerate(shape))
        return self.to_rows(jnp.broadcast_to(mask, full))

    def from_rows(self, rows: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Returns what `to_rows` was given, in the rank of an input of shape `shape`."""
        sizes, (groups, units) = rows.shape[:-2], rows.shape[-2:]
        whole = groups * units > 1
        x = rows.reshape(*sizes, *(shape[a] if whole else 1 for a in self.features))
        order = (*self.kept, *self.axes, *self.features)
        return jnp.transpose(x, sorted(range(len(order)), key=order.__getitem__))

    def subscripts(self) -> tuple[str, str]:
        """Returns those of the axes kept, and of those and the ones pooled, for einsum."""
        letters = string.ascii_uppercase[: self.pooled[-1] + 1]
        return letters[: len(self.kept)], letters

    def shapes(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the shapes of the mean and the projection of an input of shape `shape`."""
        size = math.prod(shape[a] for a in self.features) // self.groups
        mean = tuple(s for a, s in enumerate(shape) if a not in self.axes)
        return mean, (*(shape[a] for a in self.kept), self.groups, size, size)

    def specs(self, spec: PartitionSpec, masked: bool) -> tuple[Any, Any, Any]:
        """Returns how mean, projection and count are divided where the input is, by `spec`."""
        mean = PartitionSpec(
            *(s if a in self.kept else None for a, s in enumerate(spec) if a not in self.axes)
        )
        projection = PartitionSpec(*(spec[a] for a in self.kept), None, None, None)
        return mean, projection, mean if masked else PartitionSpec()


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
    kept = _axes.other_axes((*axes, *features), len(shape))
    return Layout(kept, axes, features, groups)


def check_arrays(x, layout: Layout, gamma, beta, mask):
    """Returns gamma, beta and mask at the rank of the input."""
    gamma = _axes.expand_parameter(gamma, x, layout.features, (), "gamma")
    beta = _axes.expand_parameter(beta, x, layout.features, (), "beta")
    mask = _axes.expand_mask(mask, x)
    if mask is not None and any(mask.shape[a] != 1 for a in layout.features):
        raise ValueError(
            f"mask of shape {mask.shape} varies along feature_axes={layout.features} of "
            f"the input of shape {x.shape}; whitening combines the units of an example, so "
            "that it needs all or none of them: give the mask size 1 there."
        )
    return gamma, beta, mask
