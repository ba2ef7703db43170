"""What all layers have in common: options with the names of a module's fields, and a context."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import Axes, DTypeLike
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.flags import check_flag
from jaxnorm._layers.call import Context


class Parameter(NamedTuple):
    """What a layer says of one of its parameters.

    Attributes:
      shape: its shape.
      init: the option of the modules that holds its initializer.
      first: what it starts at if that option is None.
    """

    shape: tuple[int, ...]
    init: str
    first: float = 0.0


Parameters = dict[str, Parameter | None]  # by name; None where an option leaves it out
Own = Mapping[str, Any]  # the values of parameters, by name; absent where there is none


class Layer:
    """Base of a layer's options, each named as the field of the modules that have it."""

    @classmethod
    def of(cls, module: Any) -> Self:
        """Returns the options that the fields of `module` say."""
        fields: Any = cls
        return cls(**{f.name: getattr(module, f.name) for f in dataclasses.fields(fields)})

    def __post_init__(self) -> None:
        for name in _flags_of(type(self)):
            check_flag(getattr(self, name), name)

    def features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the axes of features, whose sizes are those of the parameters."""
        del shape
        return ()

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the sizes of the features of an input of shape `shape`."""
        return tuple(shape[a] for a in self.features_of(shape))

    def parameters(self, sizes: tuple[int, ...]) -> Parameters:
        """Returns the parameters of a layer with features of those `sizes`."""
        del sizes
        return {}


@functools.cache
def _flags_of(layer: Any) -> tuple[str, ...]:
    """Returns the names of the options that are True or False."""
    return tuple(field.name for field in dataclasses.fields(layer) if field.type == "bool")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AffineLayer(Layer):
    """Base of the layers with gamma and beta; options as `jaxnorm.linen.LayerNorm` has them."""

    dtype: DTypeLike | None
    use_gamma: bool
    use_beta: bool

    def affine_shape(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of gamma and beta."""
        return sizes

    def parameters(self, sizes: tuple[int, ...]) -> Parameters:
        shape = self.affine_shape(sizes)
        return {
            "gamma": Parameter(shape, "gamma_init") if self.use_gamma else None,
            "beta": Parameter(shape, "beta_init") if self.use_beta else None,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelLayer(AffineLayer):
    """Base of the layers whose features are channels."""

    epsilon: float
    channel_axis: int

    def features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (_axes.canonical_axis(self.channel_axis, shape, "channel_axis"),)

    def arguments(self, x: jax.Array) -> dict[str, Any]:
        """Returns what the options say, as functions take it."""
        (channel,) = self.features_of(x.shape)
        return {"channel_axis": channel, "epsilon": self.epsilon, "dtype": self.dtype}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionLayer(ChannelLayer):
    """Base of those that pool over positions, which their functions choose if no option does."""

    reduction_axes: Axes | None

    def arguments(self, x: jax.Array) -> dict[str, Any]:
        axes = self.reduction_axes
        if axes is not None:
            axes = _axes.canonical_axes(axes, x.shape, "reduction_axes", allow_empty=True)
        return {**super().arguments(x), "axis": axes}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MappedOptions:
    """The options of layers that pool over mapped axes."""

    axis_name: str | Sequence[str] | None
    axis_index_groups: AxisIndexGroups

    def mapped(self, context: Context) -> dict[str, Any]:
        """Returns them as functions take them; none at initialization, outside of any map."""
        if context.initializing:
            return {}
        return {"axis_name": self.axis_name, "axis_index_groups": self.axis_index_groups}
