"""Layers of a model that rest, whatever its code says."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from jaxnorm.tools.models.norms import OWN_BATCH, affine_names, instead, is_norm, override

# What makes a call use the running statistics and leave them as they are.
_FLAGS = {"use_running_average": True, "update_stats": False}
# How norms are called; the last two are of RevIN.
_METHODS = ("__call__", "normalize", "denormalize")
# Part of what JAX looks traced functions up by: what was traced outside is not used inside.
_frozen = jax.make_user_context(())


@contextlib.contextmanager
def freeze(*patterns: Any, affine: bool = False) -> Iterator[None]:
    """Freezes the normalization layers of a model whose code says something else.

    Inside, each layer whose path matches a pattern normalizes by its running statistics and does
    not update them; all others work as ever. For fine-tuning: on small batches, or where a part of
    a pretrained model shall stay what it was. It holds for what is traced inside, also under jit:
    a step that was compiled outside is compiled anew. Layers are made (`init`) as ever.

    Args:
      *patterns: shell-style patterns of paths such as `encoder/BatchNorm_0`; "*" also stands for
        several steps: `encoder/*`, `*Norm_1`. Of an NNX model, the model comes first:
        `freeze(model, "encoder/*")`.
      affine: whether gamma and beta rest, too: no gradient reaches them. Then the patterns are
        of all normalizations, those without running statistics included. (An optimizer may still
        change what has gradient 0: by weight decay, or by momentum of before.)

    Raises:
      ValueError: there is no pattern, or one matches none of the layers that were called inside
        (of an NNX model: that it has); the error lists their paths.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> from jaxnorm import tools
      >>> norm, x = jnn.BatchNorm(use_running_average=False), jnp.array([[1.], [3.]])
      >>> variables = norm.init(jax.random.key(0), x)
      >>> def step(x):
      ...     y, new = norm.apply(variables, x, mutable=["batch_stats"])
      ...     return y.round(2).tolist(), new["batch_stats"]["mean"].tolist()
      >>> step(x)
      ([[-1.0], [1.0]], [0.019999999552965164])
      >>> with tools.freeze("*"):
      ...     step(x)
      ([[1.0], [3.0]], [0.0])
    """
    models = [p for p in patterns[:1] if isinstance(p, nnx.Module)]
    patterns = patterns[len(models) :]
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(
            f"patterns must be strings, at least one, such as 'encoder/*' or '*Norm_1', got "
            f"{patterns!r}. '*' freezes all layers; an NNX model comes before its patterns."
        )
    seen: set[str] = set()
    with _frozen((*_frozen.value, patterns, affine)):
        frozen = _nnx(models[0], patterns, affine) if models else _linen(patterns, affine, seen)
        with frozen:
            yield
    if not models:
        _check_matched(patterns, seen)


def _linen(patterns, affine: bool, seen: set[str]) -> Any:
    def intercept(run, args, kwargs, context):
        module = context.module
        if context.method_name not in _METHODS or not _can_rest(module, affine):
            return run(*args, **kwargs)
        path = "/".join(module.path)
        seen.add(path)
        if module.is_initializing() or not _matches(path, patterns):
            return run(*args, **kwargs)
        return _run_frozen(run, module, context.orig_method.func, args, kwargs, affine)

    return nn.intercept_methods(intercept)


@contextlib.contextmanager
def _nnx(model: nnx.Module, patterns, affine: bool) -> Iterator[None]:
    modules = {
        "/".join(map(str, place)): module
        for place, module in nnx.iter_modules(model)
        if _can_rest(module, affine)
    }
    _check_matched(patterns, set(modules) or {""})
    chosen = [module for path, module in modules.items() if _matches(path, patterns)]
    classes = [type(module) for module in chosen]
    for module, kind in zip(chosen, classes, strict=True):
        object.__setattr__(module, "__class__", _frozen_class(kind, affine))
    try:
        yield
    finally:
        for module, kind in zip(chosen, classes, strict=True):
            object.__setattr__(module, "__class__", kind)


@functools.cache
def _frozen_class(base: Any, affine: bool) -> Any:
    def frozen(method: Any) -> Any:
        @functools.wraps(method)
        def call(self, *args, **kwargs):
            return _run_frozen(functools.partial(method, self), self, method, args, kwargs, affine)

        return call

    own = {name: frozen(getattr(base, name)) for name in _METHODS if hasattr(base, name)}
    return type(base.__name__, override(base, frozen), own)


def _can_rest(module: Any, affine: bool) -> bool:
    if isinstance(module, nn.SpectralNorm | nnx.SpectralNorm):
        return True
    return is_norm(module) and (affine or any(hasattr(module, name) for name in _FLAGS))


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _check_matched(patterns: tuple[str, ...], seen: set[str]) -> None:
    """Nothing is seen where a compiled function is called again, for which this was checked."""
    for pattern in patterns:
        if seen and not any(_matches(path, (pattern,)) for path in seen):
            raise ValueError(
                f"the pattern {pattern!r} matches no layer that can be frozen. Patterns are of "
                f"whole paths; these are there: {', '.join(sorted(seen))}. Layers without running "
                "statistics are there with affine=True."
            )


def _run_frozen(
    run: Callable[..., Any], module: Any, method: Any, args, kwargs, affine: bool
) -> Any:
    bound = inspect.signature(method).bind(module, *args, **kwargs)
    fields: dict[str, Any] = {}
    for name, value in _FLAGS.items():
        if name in bound.signature.parameters:
            bound.arguments[name] = value
            # flax's own modules take it from one place only.
            fields |= {name: None} if hasattr(module, name) else {}
        elif hasattr(module, name):
            fields[name] = value
    if isinstance(module, OWN_BATCH):
        fields["frozen"] = "all" if affine else "statistics"
    if affine:
        fields |= _detached(module)
    with instead(module, fields):
        return run(*bound.args[1:], **bound.kwargs)


def _detached(module: Any) -> dict[str, Any]:
    """Returns attributes under which no gradient reaches gamma and beta."""
    names = affine_names(module)
    if isinstance(module, nnx.Module):
        own = {name: getattr(module, name, None) for name in names}
        return {
            name: value.replace(jax.lax.stop_gradient(value[...]))
            for name, value in own.items()
            if isinstance(value, nnx.Param)
        }

    def param(name, *args, **kwargs):
        value = type(module).param(module, name, *args, **kwargs)
        return jax.lax.stop_gradient(value) if name in names else value

    return {"param": param}
