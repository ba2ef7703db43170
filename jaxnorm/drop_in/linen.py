"""The norms of `flax.linen`, computed by jaxnorm: the same classes, fields and variables.

Change the import, or put a model that is to stay as it is into `everywhere()`. Differences to flax
stand in `jaxnorm.drop_in`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype

from jaxnorm._core.axes import ArrayLike
from jaxnorm._layers.call import Context
from jaxnorm._layers.running import ACCUMULATORS
from jaxnorm.drop_in import _shared
from jaxnorm.drop_in._shared import Norm

__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm", "everywhere"]

# Part of what JAX looks traced and compiled functions up by, in every thread for itself.
_everywhere = jax.make_user_context(False)


@contextlib.contextmanager
def everywhere() -> Iterator[None]:
    """Computes every norm of `flax.linen` inside by jaxnorm; the model's code stays as it is.

    It holds for `init`, `apply` and all that they call, in this thread: norms that are made inside,
    bound models, `nn.scan`, `nn.remat`, `nn.vmap`, `nn.jit`. What was traced outside, by `jax.jit`
    too, is not used again inside, nor the other way round: a training step that is to be exact and
    lean is called inside each time. A class of yours that derives from a norm and computes by
    itself is left alone, but for its calls of flax's own method. Interceptors
    (`flax.linen.intercept_methods`) see the norms called, whether they are entered inside or
    outside, and so do `jaxnorm.tools`.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.drop_in.linen
      >>> x, norm = 1e6 + jnp.array([[1., 3.]]), nn.LayerNorm()
      >>> with jaxnorm.drop_in.linen.everywhere():
      ...     variables = norm.init(jax.random.key(0), x)
      ...     y = norm.apply(variables, x)
      >>> y.round(3).tolist(), float(norm.apply(variables, x).max()) > 100  # 1 would be right
      ([[-1.0, 1.0]], True)
    """
    with _everywhere(True), nn.intercept_methods(_intercept):
        yield


def _intercept(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
    method = context.orig_method
    compute = BODIES.get(getattr(method, "func", None))
    if compute is not None:
        # It is this call's own. To compute here would pass by the interceptors entered inside.
        method.__setstate__((compute, method.args, method.keywords, None))
    return next_function(*args, **kwargs)


def _context_of(module: nn.Module) -> Context:
    return Context(
        label=f"{type(module).__name__} {'/'.join(module.path) or '(top level)'}",
        initializing=module.is_initializing(),
        widening="With force_float32_reductions=True they are in float32.",
    )


def _parameters(
    module: Any, shape: tuple[int, ...], use_scale: bool, use_bias: bool
) -> tuple[jax.Array | None, jax.Array | None]:
    """Returns scale and bias, if they are used."""
    found = []
    for name, used in (("scale", use_scale), ("bias", use_bias)):
        parameter = None
        if used:
            init = getattr(module, f"{name}_init")
            parameter = module.param(name, init, shape, module.param_dtype)
            if not module.force_float32_reductions:
                parameter = jnp.asarray(parameter, module.param_dtype)
        found.append(parameter)
    scale, bias = found
    return scale, bias


def _norm_of(module: Any, x: ArrayLike, features: Any, mask: Any, use_bias: bool) -> Norm:
    """Returns a call of `module`, whose parameters vary along the axes `features`."""
    x = jnp.asarray(x)
    features = _shared.axes_of(features, x.ndim)
    shape = _shared.sizes_of(x, features)
    scale, bias = _parameters(module, shape, module.use_scale, use_bias)
    dtype = canonicalize_dtype(x, scale, bias, dtype=module.dtype)
    return Norm(x, scale, bias, features, mask, dtype, module)


def _batch_norm(
    module: nn.BatchNorm,
    x: ArrayLike,
    use_running_average: bool | None = None,
    *,
    mask: ArrayLike | None = None,
) -> jax.Array:
    field = module.use_running_average
    evaluate = nn.merge_param("use_running_average", field, use_running_average)
    norm = _norm_of(module, x, module.axis, mask, module.use_bias)
    wide = module.force_float32_reductions
    first = _shared.first_statistics(norm, jnp.float32 if wide else module.param_dtype)
    variables = {name: module.variable("batch_stats", name, make) for name, make in first.items()}
    accumulates = module.has_variable("batch_stats", ACCUMULATORS[0])
    if accumulates:
        variables |= {name: module.variable("batch_stats", name) for name in ACCUMULATORS}
    context = _context_of(module)._replace(accumulates=accumulates)
    state = {name: variable.value for name, variable in variables.items()}
    y, new = _shared.batch_norm(norm, state, evaluate, context)
    for name, value in (new or {}).items():
        variables[name].value = value
    return y


def _layer_norm(module: nn.LayerNorm, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
    norm = _norm_of(module, x, module.feature_axes, mask, module.use_bias)
    return _shared.layer_norm(norm, _shared.axes_of(module.reduction_axes, norm.x.ndim))


def _rms_norm(module: nn.RMSNorm, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
    norm = _norm_of(module, x, module.feature_axes, mask, False)
    return _shared.rms_norm(norm, _shared.axes_of(module.reduction_axes, norm.x.ndim))


def _group_norm(module: nn.GroupNorm, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
    norm = _norm_of(module, x, -1, mask, module.use_bias)
    groups = module.num_groups, module.group_size
    return _shared.group_norm(norm, module.reduction_axes, *groups, _context_of(module))


def _instance_norm(
    module: nn.InstanceNorm, x: ArrayLike, *, mask: ArrayLike | None = None
) -> jax.Array:
    norm = _norm_of(module, x, module.feature_axes, mask, module.use_bias)
    return _shared.instance_norm(norm, _context_of(module))


class BatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm`, computed by `jaxnorm.batch_norm` and `jaxnorm.standardize`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.drop_in.linen as nn
      >>> x = 1e6 + jnp.array([[1.], [3.]])
      >>> norm = nn.BatchNorm(use_running_average=False)
      >>> y, variables = norm.init_with_output(jax.random.key(0), x)
      >>> y.round(3).tolist(), sorted(variables["params"]), sorted(variables["batch_stats"])
      ([[-1.0], [1.0]], ['bias', 'scale'], ['mean', 'var'])

    Reference: Ioffe & Szegedy 2015, Batch Normalization, arXiv:1502.03167.
    """

    @nn.compact
    def __call__(self, x, use_running_average=None, *, mask=None):
        """Normalizes `x`; elements where `mask` is False are not pooled and give 0."""
        return _batch_norm(self, x, use_running_average, mask=mask)


class LayerNorm(nn.LayerNorm):
    """`flax.linen.LayerNorm`, computed by `jaxnorm.layer_norm`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.drop_in.linen as nn
      >>> y, _ = nn.LayerNorm().init_with_output(jax.random.key(0), 1e6 + jnp.array([[1., 3.]]))
      >>> y.round(3).tolist()
      [[-1.0, 1.0]]

    Reference: Ba, Kiros & Hinton 2016, Layer Normalization, arXiv:1607.06450.
    """

    @nn.compact
    def __call__(self, x, *, mask=None):
        """Normalizes `x`; elements where `mask` is False are not pooled and give 0."""
        return _layer_norm(self, x, mask=mask)


class RMSNorm(nn.RMSNorm):
    """`flax.linen.RMSNorm`, computed by `jaxnorm.rms_norm`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.drop_in.linen as nn
      >>> y, _ = nn.RMSNorm().init_with_output(jax.random.key(0), jnp.array([[2., -2.]]))
      >>> y.round(3).tolist()
      [[1.0, -1.0]]

    Reference: Zhang & Sennrich 2019, Root Mean Square Layer Normalization, arXiv:1910.07467.
    """

    @nn.compact
    def __call__(self, x, *, mask=None):
        """Normalizes `x`; elements where `mask` is False are not pooled and give 0."""
        return _rms_norm(self, x, mask=mask)


class GroupNorm(nn.GroupNorm):
    """`flax.linen.GroupNorm`, computed by `jaxnorm.group_norm`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.drop_in.linen as nn
      >>> x = 1e6 + jnp.array([[1., 3., 10., 30.]])
      >>> y, _ = nn.GroupNorm(num_groups=2).init_with_output(jax.random.key(0), x)
      >>> y.round(3).tolist()
      [[-1.0, 1.0, -1.0, 1.0]]

    Reference: Wu & He 2018, Group Normalization, arXiv:1803.08494.
    """

    @nn.compact
    def __call__(self, x, *, mask=None):
        """Normalizes `x`; elements where `mask` is False are not pooled and give 0."""
        return _group_norm(self, x, mask=mask)


class InstanceNorm(nn.InstanceNorm):
    """`flax.linen.InstanceNorm`, computed by `jaxnorm.layer_norm` over the positions.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.drop_in.linen as nn
      >>> x = 1e6 + jnp.array([[[1., 10.], [3., 30.]]])
      >>> y, _ = nn.InstanceNorm().init_with_output(jax.random.key(0), x)
      >>> y.round(3).tolist()
      [[[-1.0, -1.0], [1.0, 1.0]]]

    Reference: Ulyanov, Vedaldi & Lempitsky 2016, Instance Normalization, arXiv:1607.08022.
    """

    @nn.compact
    def __call__(self, x, *, mask=None):
        """Normalizes `x`; elements where `mask` is False are not pooled and give 0."""
        return _instance_norm(self, x, mask=mask)


# By flax's own methods, as interceptors see them.
BODIES = {
    inspect.unwrap(module.__call__): compute
    for module, compute in (
        (nn.BatchNorm, _batch_norm),
        (nn.LayerNorm, _layer_norm),
        (nn.RMSNorm, _rms_norm),
        (nn.GroupNorm, _group_norm),
        (nn.InstanceNorm, _instance_norm),
    )
}
