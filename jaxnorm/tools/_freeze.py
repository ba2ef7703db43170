"""Layers of a model that rest, whatever its code says."""

from __future__ import annotations

import contextlib
import copyreg
import fnmatch
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from jaxnorm.tools.models.bridges import ToLinen, ToNNX, linen_paths, making
from jaxnorm.tools.models.calls import watching
from jaxnorm.tools.models.norms import OWN_BATCH, affine_names, instead, is_norm, override

# What makes a call use the running statistics and leave them as they are.
_FLAGS = {"use_running_average": True, "update_stats": False}
# How norms are called; the last two are of RevIN.
_METHODS = ("__call__", "normalize", "denormalize")
# Part of what JAX looks traced functions up by: what was traced outside is not used inside.
_frozen = jax.make_user_context(())
# The contexts in which layers were called: what was traced there is run again unseen.
_met: set[Any] = set()


@contextlib.contextmanager
def freeze(*patterns: Any, affine: bool = False) -> Iterator[None]:
    """Freezes the normalization layers of a model whose code says something else.

    Inside, each layer whose path matches a pattern normalizes by its running statistics and does
    not update them; all others work as ever. For fine-tuning: on small batches, or where a part of
    a pretrained model shall stay what it was. It holds for what is traced inside, also under jit:
    a step that `jax.jit` or `nnx.jit` compiled outside is compiled anew; a program that was
    compiled ahead of time (`lower(...).compile()`) stays what it is. Layers are made (`init`) as
    ever.

    Of an NNX model it holds for the model, and for copies that are made of it inside, until the
    block ends: then these train again as the model does. (In a later block with the same patterns
    they rest again.) What was made of it before is not frozen: copies, and functions with a copy,
    by `nnx.split` or `nnx.cached_partial`; make them inside.

    Args:
      *patterns: shell-style patterns of paths such as `encoder/BatchNorm_0`; "*" also stands for
        several steps: `encoder/*`, `*Norm_1`. Of an NNX model, the model comes first:
        `freeze(model, "encoder/*")`.
      affine: whether gamma and beta rest, too: no gradient reaches them. Then the patterns are
        of all normalizations, those without running statistics included. (An optimizer may still
        change what has gradient 0: by weight decay, or by momentum of before.)

    Raises:
      ValueError: there is no pattern, or one matches none of the layers that were called inside
        (of an NNX model: that it has); the error lists their paths. No layer of linen was called
        inside, and no NNX model is given.

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
    with _nnx(models[0], patterns, affine) if models else _linen(patterns, affine):
        yield


class _Freezing:
    """What a block of `freeze` asks of layers, as long as it is entered.

    Attributes:
      patterns: of the paths of the layers.
      affine: whether gamma and beta rest, too.
      blocks: how many such blocks are entered now. Frozen copies of a model rest in these alone.
    """

    def __init__(self, patterns: tuple[str, ...], affine: bool):
        self.patterns, self.affine, self.blocks = patterns, affine, 0

    def __reduce__(self) -> Any:
        return type(self), (self.patterns, self.affine)

    @contextlib.contextmanager
    def entered(self) -> Iterator[Any]:
        """Is in force inside; yields what JAX looks traced functions up by."""
        self.blocks += 1
        try:
            with _frozen((*_frozen.value, self)):
                yield _frozen.value
        finally:
            self.blocks -= 1


@functools.cache
def _freezing(patterns: tuple[str, ...], affine: bool, layers: Any) -> _Freezing:
    """Returns the same for models with the same layers, which can share what is compiled."""
    del layers
    return _Freezing(patterns, affine)


@contextlib.contextmanager
def _linen(patterns: tuple[str, ...], affine: bool) -> Iterator[None]:
    freezing, seen = _freezing(patterns, affine, None), set()
    with freezing.entered() as key:

        def note(path: str) -> None:
            seen.add(path)
            _met.add(key)

        with watching() as strangers, nn.intercept_methods(_interceptor(freezing, (), note)):
            yield
    if key not in _met or (strangers and not seen):
        raise ValueError(
            f"freeze({', '.join(map(repr, patterns))}): no layer of linen that can be frozen was "
            "called inside. An NNX model comes before its patterns: freeze(model, '*'). A program "
            "that was compiled ahead of time stays what it is. Layers without running statistics "
            "are frozen with affine=True."
        )
    _check_matched(patterns, seen)


def _interceptor(freezing: _Freezing, start: tuple[str, ...], note: Callable[[str], Any]) -> Any:
    """Returns what freezes the layers of a linen model that lies at `start`."""

    def intercept(run, args, kwargs, context):
        module, name = context.module, context.method_name
        place = (*start, *module.path)
        if isinstance(module, ToLinen) and name == "__call__":
            resting = not module.is_initializing()
            with making(module, lambda model: _rest(model, freezing, place, note, resting)):
                return run(*args, **kwargs)
        if name not in _METHODS or not _can_rest(module, freezing.affine):
            return run(*args, **kwargs)
        note("/".join(place))
        if module.is_initializing() or not _matches("/".join(place), freezing.patterns):
            return run(*args, **kwargs)
        method = context.orig_method.func
        return _run_frozen(run, module, method, args, kwargs, freezing.affine)

    return intercept


@contextlib.contextmanager
def _nnx(model: nnx.Module, patterns: tuple[str, ...], affine: bool) -> Iterator[None]:
    layers = tuple((*where, type(module)) for *where, module in _layers_of(model, affine))
    freezing, seen = _freezing(patterns, affine, layers), set()
    classes = [(module, type(module)) for _, module in nnx.iter_modules(model)]
    try:
        _rest(model, freezing, (), seen.add)
        _check_matched(patterns, seen or {""})
        with freezing.entered():
            yield
    finally:
        for module, kind in classes:
            object.__setattr__(module, "__class__", kind)


def _layers_of(
    model: nnx.Module, affine: bool
) -> Iterator[tuple[tuple[str, ...], frozenset[tuple[str, ...]], nnx.Module]]:
    """Yields the modules of an NNX model that can rest, or have a linen model that can.

    Each after its path, and those from it to the layers: of itself, or within a linen model.
    """
    for place, module in nnx.iter_modules(model):
        path = tuple(map(str, place))
        if isinstance(module, ToNNX):
            within = linen_paths(module, (nnx.BatchStat, nnx.Param) if affine else nnx.BatchStat)
            yield path, within, module
        elif _can_rest(module, affine):
            yield path, frozenset([()]), module


def _rest(
    model: nnx.Module,
    freezing: _Freezing,
    start: tuple[str, ...],
    note: Callable[[str], Any],
    resting: bool = True,
) -> None:
    """Makes the layers of an NNX model, which lies at `start`, ones that are frozen."""
    for path, within, module in list(_layers_of(model, freezing.affine)):
        place = (*start, *path)
        paths = ["/".join((*place, *rest)) for rest in within]
        for one in paths:
            note(one)
        if resting and any(_matches(one, freezing.patterns) for one in paths):
            kind = _frozen_class(type(module), freezing, place)
            object.__setattr__(module, "__class__", kind)


@functools.cache
def _frozen_class(base: Any, freezing: _Freezing, place: tuple[str, ...]) -> Any:
    """Returns the class of a frozen module; copies of that have it, too, as long as they live."""

    def frozen(method: Any) -> Any:
        @functools.wraps(method)
        def call(self, *args, **kwargs):
            run = functools.partial(method, self)
            if not freezing.blocks:
                return run(*args, **kwargs)
            if isinstance(self, ToNNX):
                with nn.intercept_methods(_interceptor(freezing, place, lambda path: None)):
                    return run(*args, **kwargs)
            return _run_frozen(run, self, method, args, kwargs, freezing.affine)

        return call

    own = {name: frozen(getattr(base, name)) for name in _METHODS if hasattr(base, name)}
    own |= {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return _kind(type(base))(base.__name__, override(base, frozen), {**own, "thawed": base})


@functools.cache
def _kind(metaclass: Any) -> Any:
    """Returns a metaclass of frozen classes, which are pickled as what they are made of."""
    kind = type(metaclass.__name__, (metaclass,), {})
    copyreg.pickle(kind, lambda frozen: (_same, (frozen.thawed,)))
    return kind


def _same(kind: Any) -> Any:
    return kind


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
