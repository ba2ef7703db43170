"""What all layers are made of: options, declared once, and what a framework adds to them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.flags import check_flag
from jaxnorm._layers.call import NO_STATE, Call, Context, Decisions, Params, State, StateInit
from jaxnorm._layers.options import options

Initializer = Callable[..., Any]  # of key, shape and dtype


class Parameter(NamedTuple):
    """A parameter of a layer: its shape and what it starts at."""

    shape: tuple[int, ...]
    init: Initializer
    dtype: DTypeLike

    def draw(self, key: jax.Array | None) -> Any:
        """Returns what the parameter starts at."""
        return self.init(key, self.shape, self.dtype)


Parameters = dict[str, Parameter | None]  # by name; None where an option leaves it out


class Layer:
    """Base of all layers, and of the modules that a framework makes of them.

    Modules add the methods that say so.
    """

    def _context(self) -> Context:
        """Returns what the framework says of a call. Modules have it."""
        raise NotImplementedError

    def _param(self, name: str, parameter: Parameter, x: jax.Array) -> Any:
        """Returns the value of a parameter, if there is one, for the input `x`. Modules have it."""
        raise NotImplementedError

    def _read_state(self, init: StateInit, x: jax.Array) -> State:
        """Returns the state, which starts at `init`, for the input `x`. Modules have it."""
        raise NotImplementedError

    def _write_state(self, new: State | None) -> None:
        """Takes over new state, of some of the arrays or all, if there is any. Modules have it."""
        raise NotImplementedError

    def _check_flags(self) -> None:
        for name in _flags_of(type(self)):
            check_flag(getattr(self, name), name)

    def _features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the axes of features, whose sizes are those of the parameters."""
        del shape
        return ()

    def _sizes_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the sizes of the features of an input of shape `shape`."""
        return tuple(shape[a] for a in self._features_of(shape))

    def _parameters(self, sizes: tuple[int, ...]) -> Parameters:
        """Returns the parameters of a layer with features of those `sizes`, by name."""
        del sizes
        return {}

    def _init_state_of(self, sizes: tuple[int, ...], shape: tuple[int, ...] | None) -> StateInit:
        """Returns what the state starts at before an input is seen; empty if it serves no call.

        It is that of features of `sizes`, all other axes being pooled, or of inputs of `shape`.
        """
        del sizes, shape
        return {}

    def _stored_name(self, name: str) -> str:
        """Returns what a parameter is called in the model."""
        return name

    def _params(self, x: jax.Array, **overrides: ArrayLike | None) -> Params:
        """Returns the parameters: those that the call brings, else the layer's."""
        params: dict[str, Any] = {k: v for k, v in overrides.items() if v is not None}
        for name, parameter in self._parameters(self._sizes_of(x.shape)).items():
            if parameter is not None and name not in params:
                value = self._param(self._stored_name(name), parameter, x)
                if value is not None:
                    params[name] = value
        return params


@functools.cache
def _flags_of(layer: Any) -> tuple[str, ...]:
    """Returns the names of the options that are True or False."""
    return tuple(field.name for field in dataclasses.fields(layer) if field.type == "bool")


@options
class ParametricLayer(Layer):
    """Base of the layers with parameters."""

    dtype: DTypeLike | None = None
    """dtype of the result; default: that of the input."""
    param_dtype: DTypeLike = jnp.float32
    """dtype of the parameters."""

    def _parameter(
        self, shape: tuple[int, ...], init: Initializer, used: bool = True
    ) -> Parameter | None:
        return Parameter(shape, init, self.param_dtype) if used else None

    @property
    def _state_dtype(self) -> DTypeLike:
        """The dtype of inputs that a state is made for, before any is seen."""
        return self.param_dtype if self.dtype is None else self.dtype


@options
class AffineLayer(ParametricLayer):
    """Base of the layers with gamma and beta."""

    use_gamma: bool = True
    """whether to scale by a parameter gamma."""
    use_beta: bool = True
    """whether to add a parameter beta."""
    gamma_init: Initializer = jax.nn.initializers.ones
    """initializer of gamma."""
    beta_init: Initializer = jax.nn.initializers.zeros
    """initializer of beta."""
    param_names: tuple[str, str] = ("gamma", "beta")
    """the names of the two parameters; ("scale", "bias") are Flax's."""

    def _affine_shape(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of gamma and beta."""
        return sizes

    def _parameters(self, sizes: tuple[int, ...]) -> Parameters:
        shape = self._affine_shape(sizes)
        return {
            "gamma": self._parameter(shape, self.gamma_init, self.use_gamma),
            "beta": self._parameter(shape, self.beta_init, self.use_beta),
        }

    def _stored_name(self, name: str) -> str:
        gamma, beta = self.param_names
        return {"gamma": gamma, "beta": beta}.get(name, name)


@options
class PlainNorm(AffineLayer):
    """Base of the norms of an input alone that keep no statistics."""

    def __call__(
        self,
        x: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x`; a gamma or beta given here replaces the module's own."""
        x = _axes.check_input(x)
        params = self._params(x, gamma=gamma, beta=beta)
        return self._normalize(x, params, NO_STATE, Call(self._context(), mask))

    def _normalize(self, x: jax.Array, params: Params, state: State, call: Call) -> jax.Array:
        """Returns `x`, normalized."""
        raise NotImplementedError


@options
class MappedNorm(PlainNorm):
    """Base of those that can pool over mapped axes."""

    epsilon: float = 1e-6
    """added to the variance."""
    axis_name: str | Sequence[str] | None = None
    """mapped axes to pool over as well, as for an input divided over devices."""
    axis_index_groups: AxisIndexGroups = None
    """groups of indices of `axis_name` that pool together."""

    def _mapped(self, context: Context) -> tuple[str | Sequence[str] | None, AxisIndexGroups]:
        """Returns the mapped axes and the groups to pool over; none outside of any map."""
        if context.initializing:
            return None, None
        return self.axis_name, self.axis_index_groups


@options
class ChannelLayer(AffineLayer):
    """Base of the layers whose features are channels."""

    epsilon: float = 1e-5
    """added to the variance."""
    channel_axis: int = -1
    """the axis of the channels."""

    def _features_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (_axes.canonical_axis(self.channel_axis, shape, "channel_axis"),)

    def _arguments(self, x: jax.Array) -> dict[str, Any]:
        """Returns what the options say, as functions take it."""
        (channel,) = self._features_of(x.shape)
        return {"channel_axis": channel, "epsilon": self.epsilon, "dtype": self.dtype}


@options
class PositionNorm(ChannelLayer, PlainNorm):
    """Base of those that pool over positions, which their functions choose if no option does."""

    epsilon: float = 1e-6
    reduction_axes: Axes | None = None
    """the axes pooled; default: all but axis 0 and the channels."""

    def _arguments(self, x: jax.Array) -> dict[str, Any]:
        axes = self.reduction_axes
        if axes is not None:
            axes = _axes.canonical_axes(axes, x.shape, "reduction_axes", allow_empty=True)
        return {**super()._arguments(x), "axis": axes}


@options
class RunningNorm(AffineLayer):
    """Base of the norms that take the batch's statistics in training, and running ones after."""

    epsilon: float = 1e-5
    """added to the variances."""
    use_running_average: bool | None = None
    """evaluation or training; here or in the call, which wins."""
    momentum: float | None = 0.99
    """decay of the running statistics: new = momentum * old + (1 - momentum) * batch."""
    unbiased: bool = True
    """whether the running variance is unbiased (m / (m - 1))."""
    axis_name: str | Sequence[str] | None = None
    """mapped axes that the batch is pooled over as well."""

    def __call__(
        self,
        x: ArrayLike,
        *,
        use_running_average: bool | jax.Array | None = None,
        mask: ArrayLike | None = None,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalizes `x`; a gamma or beta given here replaces the module's own."""
        x, context = _axes.check_input(x), self._context()
        evaluate = self.use_running_average if use_running_average is None else use_running_average
        decisions = Decisions.of_mode(evaluate, context)
        params = self._params(x, gamma=gamma, beta=beta)
        state = self._read_state(self._init_state(x, context), x)
        y, new = self._normalize(x, params, state, Call(context, mask, decisions))
        self._write_state(new)
        return y

    def _init_state(self, x: jax.Array, context: Context) -> StateInit:
        """Returns what the state starts at for inputs like `x`."""
        raise NotImplementedError

    def _normalize(
        self, x: jax.Array, params: Params, state: State, call: Call
    ) -> tuple[jax.Array, State | None]:
        """Returns `x`, normalized, and the new state, of some of its arrays or all, if it moved."""
        raise NotImplementedError
