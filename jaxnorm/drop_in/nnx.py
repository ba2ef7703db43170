"""The norms of `flax.nnx`, computed by jaxnorm: the same classes, arguments and variables.

Change the import, or put a model that is built through `replace`. Differences to flax stand in
`jaxnorm.drop_in`.
"""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

from jaxnorm._core.axes import ArrayLike
from jaxnorm._layers.call import Context
from jaxnorm._layers.running import ACCUMULATORS
from jaxnorm.drop_in import _shared
from jaxnorm.drop_in._shared import Norm

__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm", "replace"]

Model = TypeVar("Model")
_NAMES = ("__module__", "__qualname__", "__doc__")  # of a class, for those who read them


def replace(model: Model) -> Model:
    """Makes the norms of `flax.nnx` in a model compute by jaxnorm, in place; returns the model.

    Only their classes change, to those of this module: variables, options and metadata stay the
    very objects, so that an optimizer goes on, and a norm that several layers share is still one.
    Norms are found wherever NNX finds modules: in attributes, lists, dicts, and stacked by
    `nnx.vmap` for `nnx.scan`. A class of yours that derives from a norm and has a `__call__` of its
    own is left alone. What was split off before (`nnx.split`, `nnx.graphdef`) still makes flax's
    norms.

    Args:
      model: a module, or a list or dict of modules.

    Returns:
      `model`.

    Raises:
      TypeError: there is no NNX module in it.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.drop_in.nnx
      >>> from flax import nnx
      >>> x, norm = 1e6 + jnp.array([[1., 3.]]), nnx.LayerNorm(2, rngs=nnx.Rngs(0))
      >>> float(norm(x).max()) > 100  # 1 would be right
      True
      >>> jaxnorm.drop_in.nnx.replace(norm)(x).round(3).tolist()
      [[-1.0, 1.0]]
    """
    nodes = [node for _, node in nnx.iter_graph(model, graph=True)]
    if not any(isinstance(node, nnx.Module) for node in nodes):
        raise TypeError(
            f"replace takes a flax.nnx model that is built, or a list or dict of such, got "
            f"{type(model).__name__}; a flax.linen model is called inside "
            "jaxnorm.drop_in.linen.everywhere()."
        )
    for node in nodes:
        own = _own_class(type(node))
        if own is not None:
            object.__setattr__(node, "__class__", own)
    return model


@functools.cache
def _own_class(given: type) -> type | None:
    """Returns the class that computes what `given` does by jaxnorm, if `given` is a norm's."""
    for own in (BatchNorm, LayerNorm, RMSNorm, GroupNorm, InstanceNorm):
        (flax_class,) = own.__bases__
        if given is flax_class:
            return own
        if issubclass(given, flax_class) and given.__call__ is flax_class.__call__:
            kept = {name: getattr(given, name) for name in _NAMES}
            return type(given)(given.__name__, (given,), {**kept, "__call__": own.__call__})
    return None


def _norm_of(
    module: Any, x: ArrayLike, features: Any, mask: ArrayLike | None, *state: str
) -> tuple[Norm, dict[str, jax.Array]]:
    """Returns a call of `module`, and the arrays of its `state`."""
    x = jnp.asarray(x)
    features = _shared.axes_of(features, x.ndim)
    parameters = ("scale", "bias") if hasattr(module, "bias") else ("scale",)
    variables = (getattr(module, name) for name in (*state, *parameters))
    arrays = (x, *(None if variable is None else variable[...] for variable in variables))
    if module.promote_dtype is not dtypes.promote_dtype:
        # The user's own; flax's rounds the input and the parameters before it computes.
        arrays = module.promote_dtype(arrays, dtype=module.dtype)
    dtype = dtypes.canonicalize_dtype(*arrays, dtype=module.dtype)
    found: dict[str, Any] = dict(zip((*state, *parameters), arrays[1:], strict=True))
    scale, bias = (found.pop(name, None) for name in ("scale", "bias"))
    return Norm(arrays[0], scale, bias, features, mask, dtype, module), found


class BatchNorm(nnx.BatchNorm):
    """`flax.nnx.BatchNorm`, computed by `jaxnorm.batch_norm` and `jaxnorm.standardize`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.drop_in.nnx as jnx
      >>> from flax import nnx
      >>> norm = jnx.BatchNorm(1, momentum=0.5, rngs=nnx.Rngs(0))
      >>> norm(1e6 + jnp.array([[1.], [3.]])).round(3).tolist(), norm.mean[...].tolist()
      ([[-1.0], [1.0]], [500001.0])

    Reference: Ioffe & Szegedy 2015, Batch Normalization, arXiv:1502.03167.
    """

    def __call__(self, x, use_running_average=None, *, mask=None):
        """Normalizes `x`; elements where `mask` is False are not pooled and give 0."""
        evaluate = self.use_running_average if use_running_average is None else use_running_average
        norm, state = _norm_of(self, x, self.axis, mask, "mean", "var")
        accumulates = hasattr(self, ACCUMULATORS[0])
        if accumulates:
            state |= {name: getattr(self, name)[...] for name in ACCUMULATORS}
        label = f"BatchNorm(num_features={self.num_features})"
        context = Context(label=label, accumulates=accumulates)
        y, new = _shared.batch_norm(norm, state, evaluate, context)
        for name, value in (new or {}).items():
            getattr(self, name)[...] = value
        return y


class LayerNorm(nnx.LayerNorm):
    """`flax.nnx.LayerNorm`, computed by `jaxnorm.layer_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.drop_in.nnx as jnx
      >>> from flax import nnx
      >>> jnx.LayerNorm(2, rngs=nnx.Rngs(0))(1e6 + jnp.array([[1., 3.]])).round(3).tolist()
      [[-1.0, 1.0]]

    Reference: Ba, Kiros & Hinton 2016, Layer Normalization, arXiv:1607.06450.
    """

    def __call__(self, x, *, mask=None):
        """Normalizes `x`; elements where `mask` is False are not pooled and give 0."""
        norm, _ = _norm_of(self, x, self.feature_axes, mask)
        return _shared.layer_norm(norm, _shared.axes_of(self.reduction_axes, norm.x.ndim))


class RMSNorm(nnx.RMSNorm):
    """`flax.nnx.RMSNorm`, computed by `jaxnorm.rms_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.drop_in.nnx as jnx
      >>> from flax import nnx
      >>> jnx.RMSNorm(2, rngs=nnx.Rngs(0))(jnp.array([[2., -2.]])).round(3).tolist()
      [[1.0, -1.0]]

    Reference: Zhang & Sennrich 2019, Root Mean Square Layer Normalization, arXiv:1910.07467.
    """

    def __call__(self, x, mask=None):
        """Normalizes `x`; elements where `mask` is False are not pooled and give 0."""
        norm, _ = _norm_of(self, x, self.feature_axes, mask)
        return _shared.rms_norm(norm, _shared.axes_of(self.reduction_axes, norm.x.ndim))


class GroupNorm(nnx.GroupNorm):
    """`flax.nnx.GroupNorm`, computed by `jaxnorm.group_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.drop_in.nnx as jnx
      >>> from flax import nnx
      >>> norm = jnx.GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))
      >>> norm(1e6 + jnp.array([[1., 3., 10., 30.]])).round(3).tolist()
      [[-1.0, 1.0, -1.0, 1.0]]

    Reference: Wu & He 2018, Group Normalization, arXiv:1803.08494.
    """

    def __call__(self, x, *, mask=None):
        """Normalizes `x`; elements where `mask` is False are not pooled and give 0."""
        norm, _ = _norm_of(self, x, self.feature_axis, mask)
        given = self.reduction_axes, self.num_groups, None
        return _shared.group_norm(norm, *given, Context(label=type(self).__name__))


class InstanceNorm(nnx.InstanceNorm):
    """`flax.nnx.InstanceNorm`, computed by `jaxnorm.layer_norm` over the positions.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.drop_in.nnx as jnx
      >>> from flax import nnx
      >>> norm = jnx.InstanceNorm(2, rngs=nnx.Rngs(0))
      >>> norm(1e6 + jnp.array([[[1., 10.], [3., 30.]]])).round(3).tolist()
      [[[-1.0, -1.0], [1.0, 1.0]]]

    Reference: Ulyanov, Vedaldi & Lempitsky 2016, Instance Normalization, arXiv:1607.08022.
    """

    def __call__(self, x, *, mask=None):
        """Normalizes `x`; elements where `mask` is False are not pooled and give 0."""
        norm, _ = _norm_of(self, x, self.feature_axes, mask)
        return _shared.instance_norm(norm, Context(label=type(self).__name__))
