"""Norms of raw inputs that can be undone, as Flax NNX modules."""

from __future__ import annotations

import weakref
from typing import Any

from flax import nnx
from jax.extend.core import get_opaque_trace_state

from jaxnorm._core.moments import Moments
from jaxnorm._layers import population, reversible
from jaxnorm.nnx._base import Affine, Mode, Sized, module


class _Call:
    """A call of `normalize`, alike to all others for JAX, which looks up programs by them.

    Attributes:
      traced: whether it was in a function that is transformed or compiled.
    """

    def __init__(self, traced: bool):
        self.traced = traced

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Call)

    def __hash__(self) -> int:
        return hash(_Call)


_OUTSIDE = get_opaque_trace_state(convention="nnx")  # modules are imported outside of any


def _is_traced() -> bool:
    """Whether this is in a function that is transformed, even if no array here is traced."""
    return get_opaque_trace_state(convention="nnx") != _OUTSIDE


# What each RevIN found last. Not in its attributes, which are split, compiled and copied with it.
_FOUND: weakref.WeakKeyDictionary[nnx.Module, Moments] = weakref.WeakKeyDictionary()


@module
class RevIN(reversible.RevIN, Affine):
    """Reversible instance normalization of time series: each by its own statistics, and back.

    `normalize` brings each variable of each series to mean 0 and variance 1 over time,
    `denormalize` brings what the model forecasts from it, of any length, back: it undoes gamma and
    beta and uses the moments that the last `normalize` of this module found. They are no part of
    the model's state: call both in one function if that is transformed or jitted, or give
    `moments=jaxnorm.moments(x, axis=1)`. Where the last `normalize` was in a function transformed
    by NNX, `denormalize` outside is an error; of one in a function that keeps the model to itself
    (`jax.jit` of a model split before, `nnx.cached_partial`, NNX without graph updates) nothing is
    known here, and the moments of a call before that are used.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.RevIN(1, epsilon=0.0)
      >>> y = norm.normalize(jnp.array([[[10.], [30.]]]))
      >>> norm.denormalize(y[:, -1:]).tolist()
      [[[30.0]]]
    """

    def _make(self, **given: Any) -> None:
        super()._make(**given)
        self._last_call = _Call(False)

    @property
    def _last_call(self) -> _Call:
        return vars(self)["_last_call"]

    @_last_call.setter
    def _last_call(self, call: _Call) -> None:
        # NNX brings the attributes of a module in a transformed function back to the one outside:
        # what that found itself is then no longer the last.
        if call.traced:
            _FOUND.pop(self, None)
        vars(self)["_last_call"] = call

    def _remember(self, found: Moments) -> None:
        # Not by `setattr`, which NNX refuses in a function that the module was not given to.
        object.__setattr__(self, "_last_call", _Call(_is_traced()))
        _FOUND[self] = found

    def _recall(self) -> Moments | None:
        return _FOUND.get(self)


@module
class InputNorm(Mode, population.InputNorm, Sized):
    """Normalization of raw inputs by the moments of all that were ever seen.

    In training the batch's moments are merged into those of the population, exactly, by their
    counts, in variables of the kind `nnx.BatchStat` (`population_mean`, `population_var`,
    `population_count`), and these normalize. In evaluation they stay. No gradient reaches them, and
    there are no parameters. The count is float32: it stops at 2^24 (16.8 million) single
    observations, or at 2^30 in batches of 64, and the moments with it.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> norm = jnx.InputNorm(1, epsilon=0.0)
      >>> for x in (jnp.array([[10.]]), jnp.array([[20.], [30.], [40.]])):
      ...     y = norm(x)
      >>> norm.population_mean[...].tolist()
      [25.0]
    """
