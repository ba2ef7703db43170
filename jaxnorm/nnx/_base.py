"""What the normalization modules share: gamma and beta, as parameters or from the call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar
from types import MappingProxyType
from typing import Any, TypeVar, dataclass_transform

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.collectives import AxisIndexGroups

Metadata = Mapping[str, Any]
Initializer = Callable[..., Any]  # of key, shape and dtype
Class = TypeVar("Class")
NO_METADATA: Metadata = MappingProxyType({})


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(dataclasses.field,))
def module(cls: type[Class]) -> type[Class]:
    """Makes fields out of annotations, which need no `__init__` then."""
    return dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)


def draw(name: str, make: Callable[[Any], Any], rngs: nnx.Rngs | None, label: str) -> Any:
    """Returns the first value that `make` makes of a key; without `rngs` it has to need none."""
    if rngs is not None:
        return make(rngs.params())
    try:
        return make(None)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{label} draws its first {name} at random and needs rngs, such as rngs=nnx.Rngs(0)."
        ) from error


def freeze_lists(node: nnx.Module) -> None:
    """Makes tuples of the options that are lists, so that the graph of a model can be hashed."""
    for name, value in list(vars(node).items()):
        if isinstance(value, list):
            setattr(node, name, _frozen(value))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


@module
class AffineModule(nnx.Module):
    """Base of the normalization modules: options and parameters, no arithmetic.

    Attributes:
      num_features: size of gamma and beta; sizes where they vary along several axes, ascending.
      epsilon: added to the variance.
      dtype: dtype of the result; default: that of the input.
      param_dtype: dtype of the parameters.
      use_gamma: whether to scale by a parameter gamma.
      use_beta: whether to add a parameter beta.
      gamma_init: initializer of gamma.
      beta_init: initializer of beta.
      param_names: the names of the two parameters; ("scale", "bias") are those of flax.nnx.
      gamma_metadata: metadata of gamma, as `nnx.Param` takes them.
      beta_metadata: metadata of beta.
      rngs: keys, for initializers that draw.
    """

    num_features: int | Sequence[int] = dataclasses.field(kw_only=False)
    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_gamma: bool = True
    use_beta: bool = True
    gamma_init: InitVar[Initializer] = nnx.initializers.ones
    beta_init: InitVar[Initializer] = nnx.initializers.zeros
    param_names: tuple[str, str] = ("gamma", "beta")
    gamma_metadata: InitVar[Metadata] = NO_METADATA
    beta_metadata: InitVar[Metadata] = NO_METADATA
    rngs: InitVar[nnx.Rngs | None] = None

    def __post_init__(
        self,
        gamma_init: Initializer,
        beta_init: Initializer,
        gamma_metadata: Metadata,
        beta_metadata: Metadata,
        rngs: nnx.Rngs | None,
    ) -> None:
        freeze_lists(self)
        given = self.num_features
        sizes = (given,) if not isinstance(given, Sequence) else tuple(given)
        self.num_features = tuple(_axes.check_int(size, "num_features") for size in sizes)
        wanted = (
            (self.use_gamma, gamma_init, gamma_metadata),
            (self.use_beta, beta_init, beta_metadata),
        )
        for name, (use, init, metadata) in zip(self.param_names, wanted, strict=True):
            parameter = None
            if use:
                make = self._maker(init)
                parameter = nnx.Param(draw(name, make, rngs, self.label), **metadata)
            setattr(self, name, nnx.data(parameter))

    def _maker(self, init: Initializer) -> Callable[[Any], Any]:
        return lambda key: init(key, self.affine_shape, self.param_dtype)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the features."""
        assert isinstance(self.num_features, tuple)
        return self.num_features

    @property
    def affine_shape(self) -> tuple[int, ...]:
        """The shape of gamma and beta."""
        return self.sizes

    @property
    def state_dtype(self) -> DTypeLike:
        """The dtype of inputs that the running statistics are made for."""
        return self.param_dtype if self.dtype is None else self.dtype

    @property
    def label(self) -> str:
        """What errors call the module."""
        sizes = self.sizes[0] if len(self.sizes) == 1 else self.sizes
        return f"{type(self).__name__}(num_features={sizes})"

    def field_axes(self, field: str, x: ArrayLike) -> tuple[int, ...]:
        """Returns the axes in a field, checked under its own name."""
        shape = _axes.check_input(x).shape
        return _axes.canonical_axes(getattr(self, field), shape, field, allow_empty=True)

    def affine(
        self,
        x: ArrayLike,
        axes: Axes,
        gamma: ArrayLike | None,
        beta: ArrayLike | None,
        leading: tuple[int, ...] = (),
    ) -> tuple[ArrayLike | None, ArrayLike | None]:
        """Returns gamma and beta: those of the call, else the module's own parameters.

        The parameters have the sizes `leading`, and then those of `x` along `axes`.
        """
        shape = np.shape(x)
        features = _axes.canonical_axes(axes, shape, "feature_axes")
        expected = (*leading, *(shape[a] for a in features))
        chosen = []
        for name, given in zip(self.param_names, (gamma, beta), strict=True):
            own: nnx.Param | None = getattr(self, name)
            if given is None and own is not None:
                given = own[...]
                # Compared with the parameter and not num_features: devices hold parts of both.
                if given.shape != expected:
                    raise ValueError(
                        f"{self.label} has a {name} of shape {given.shape}, which does not fit an "
                        f"input of shape {shape} with features on axes {features}: expected "
                        f"{expected}. Give their sizes as num_features."
                    )
            chosen.append(given)
        gamma, beta = chosen
        return gamma, beta


@module
class MappedModule(AffineModule):
    """Base of the modules that can pool over mapped axes.

    Attributes:
      axis_name: mapped axes to pool over as well.
      axis_index_groups: groups of indices of `axis_name` that pool together.
    """

    axis_name: str | Sequence[str] | None = None
    axis_index_groups: AxisIndexGroups = None

    def mapped(self) -> dict[str, Any]:
        """Returns the options of a function that pools over mapped axes."""
        return {"axis_name": self.axis_name, "axis_index_groups": self.axis_index_groups}
