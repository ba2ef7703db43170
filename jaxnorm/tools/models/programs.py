"""Models as pure functions of their state, with a look at each of their layers as it is called."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import errors, nnx

from jaxnorm.tools.models.norms import instead, override
from jaxnorm.tools.models.same import same

Path = tuple[str, ...]
Call = Callable[..., Any]  # (model, *arguments) -> output

# Part of what JAX looks traced functions up by: a model that jits parts of itself must not take
# what was traced with one hook for what is traced with another.
_hooked = jax.make_user_context(None)
_hooks = threading.local()


class Visit(NamedTuple):
    """A module that is being called.

    Attributes:
      module: it; of linen bound to its variables.
      path: its place in the model.
      function: what is called: its class's own `__call__`, or a further one that this calls by
        `super()`.
    """

    module: Any
    path: Path
    function: Any

    @property
    def name(self) -> str:
        return "/".join(self.path)

    def value(self, name: str) -> jax.Array | None:
        """Returns one of its parameters or statistics, if it has that."""
        if isinstance(self.module, nnx.Module):
            variable = getattr(self.module, name, None)
            return variable[...] if isinstance(variable, nnx.Variable) else None
        for collection in ("params", "batch_stats"):
            if self.module.has_variable(collection, name):
                return nn.meta.unbox(self.module.get_variable(collection, name))
        return None


Hook = Callable[[Visit, Callable[..., Any], tuple, dict], Any]  # takes the call's place


class Program:
    """A model, its state, and how it is called."""

    state: Any
    label: str
    rngs: Any = None
    key: Any  # equal for programs that are the same but for their state

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def run(self, state: Any, args: tuple, hook: Hook, key: Any = None) -> Any:
        """Returns the model's output; `key` says which runs are the same but for the arguments."""
        raise NotImplementedError

    def leaf_path(self, path: Path, name: str) -> Path:
        """Returns where in the state a parameter or statistic lies."""
        raise NotImplementedError

    def trace(self, hook: Hook, args: tuple, finish: Any = lambda output, args: output) -> Any:
        """Returns the jaxpr of the output, of all arrays of the state and the arguments.

        Of what `finish` makes of the output and the arguments, if that is given.
        """
        arrays, rebuild = split_arrays(args)

        def run(state, arrays):
            return finish(self.run(state, rebuild(arrays), hook, object()), rebuild(arrays))

        try:
            return jax.make_jaxpr(run)(self.state, arrays)
        except (TypeError, errors.FlaxError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"{self.label} cannot be run on the arguments given: {_first_line(error)} Give the "
                "variables of this very model, and its arguments; what else the call needs is "
                "said by call=lambda net, *args: net(*args, train=False)."
            ) from error


class LinenProgram(Program):
    """A linen module and its variables."""

    def __init__(self, model: nn.Module, variables: Mapping[str, Any], call: Call | None, rngs):
        self.model, self.state, self.rngs = model, dict(variables), rngs
        self.label = type(model).__name__
        self.key = same(model), same(call)
        self._apply = nn.apply(call or _call, model, mutable=["batch_stats"])

    def run(self, state: Any, args: tuple, hook: Hook, key: Any = None) -> Any:
        def intercept(run, args, kwargs, context):
            module = context.module
            with _evaluating(module):
                if context.method_name != "__call__":
                    return run(*args, **kwargs)
                function = inspect.unwrap(context.orig_method.func)
                return hook(Visit(module, module.path, function), run, args, kwargs)

        with nn.intercept_methods(intercept), _hooked(key):
            return self._apply(state, *args, rngs=self.rngs)[0]

    def leaf_path(self, path: Path, name: str) -> Path:
        collection = "batch_stats" if name in ("mean", "var", "count") else "params"
        return (collection, *path, name)


class NnxProgram(Program):
    """An NNX model."""

    def __init__(self, model: nnx.Module, call: Call | None, evaluate: bool):
        self.label = type(model).__name__
        watched = nnx.clone(model)
        if evaluate:
            watched.eval()
        for place, module in list(nnx.iter_modules(watched)):
            if callable(module):
                path = tuple(map(str, place))
                object.__setattr__(module, "__class__", _watched(type(module), path))
        self.graph, self.state = nnx.split(watched)
        self.key = same(self.graph), same(call)
        self._call = call or _call

    def run(self, state: Any, args: tuple, hook: Hook, key: Any = None) -> Any:
        with _hooking(hook), _hooked(key):
            return self._call(nnx.merge(self.graph, state, copy=True), *args)

    def leaf_path(self, path: Path, name: str) -> Path:
        return (*path, name)


def take_model(
    tool: str,
    model: Any,
    given: tuple,
    call: Call | None = None,
    rngs: Any = None,
    *,
    evaluate: bool = True,
) -> tuple[Any, tuple]:
    """Returns the program of a model, and the arguments that are left.

    Args:
      tool: whose errors these are.
      model: a linen module, or an NNX model.
      given: the arguments: of a linen module its variables come first.
      call: (model, *arguments) -> output.
      rngs: of a linen module.
      evaluate: whether an NNX model is put into the mode that `model.eval()` sets.
    """
    if isinstance(model, nnx.Module):
        if rngs is not None:
            raise ValueError("rngs is for linen modules; an NNX model holds its own.")
        return NnxProgram(model, call, evaluate), given
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{tool} takes a flax.linen module and its variables, or a flax.nnx model, got "
            f"{type(model).__name__}."
        )
    variables = given[0] if given else None
    known = {"params", "batch_stats"}
    if isinstance(variables, Mapping) and (not variables or known & set(variables)):
        return LinenProgram(model, variables, call, rngs), given[1:]
    got = sorted(variables) if isinstance(variables, Mapping) else type(variables).__name__
    raise TypeError(
        f"{tool}: variables must hold the collections params and batch_stats, as model.init "
        f"returns them, got {got}. They come right after a linen module; an NNX model needs none."
    )


class Rebuild:
    """Puts arrays back into the tree that they were taken from, beside its other leaves.

    Those that come from trees alike but for arrays and texts, such as names of files, are equal.
    """

    def __init__(self, structure: Any, rest: dict[int, Any]):
        self._structure, self._rest = structure, rest
        texts = (str, bytes, np.ndarray)
        self._key = tuple(
            (i, type(leaf), None if isinstance(leaf, texts) else leaf) for i, leaf in rest.items()
        )

    def __call__(self, arrays: Mapping[int, Any]) -> Any:
        leaves = {**self._rest, **arrays}
        return self._structure.unflatten([leaves[i] for i in range(len(leaves))])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rebuild):
            return False
        return (self._structure, self._key) == (other._structure, other._key)

    def __hash__(self) -> int:
        return hash((self._structure, self._key))


def split_arrays(tree: Any, *, numbers: bool = False) -> tuple[dict[int, Any], Rebuild]:
    """Returns the arrays of a tree, and what puts others in their place.

    Flags and texts stay as they are, arrays of texts, too; and numbers, if they are not wanted.
    """
    leaves, structure = jax.tree.flatten(tree)

    def is_array(leaf: Any) -> bool:
        if isinstance(leaf, int | float | complex):
            return numbers and not isinstance(leaf, bool)
        return hasattr(leaf, "dtype") and getattr(leaf.dtype, "kind", "") not in "OSUM"

    arrays = {i: leaf for i, leaf in enumerate(leaves) if is_array(leaf)}
    rest = {i: leaf for i, leaf in enumerate(leaves) if i not in arrays}
    return arrays, Rebuild(structure, rest)


def one_iterable(tool: str, model: Any, rest: tuple) -> Any:
    """Returns the iterable of batches, of the arguments behind a model and its variables."""
    if len(rest) != 1:
        variables = "" if isinstance(model, nnx.Module) else " and its variables"
        raise TypeError(
            f"{tool} takes one iterable of batches after the model{variables}, got {len(rest)} "
            "more arguments."
        )
    return rest[0]


def as_it_is(visit: Visit, run: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Is the hook that changes nothing."""
    del visit
    return run(*args, **kwargs)


def names_of(path: Any) -> Path:
    """Returns the names in a path of `jax.tree_util`."""
    return tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _call(model, *args):
    return model(*args)


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0]
    return line if line.endswith(".") else f"{line}."


def _evaluating(module: nn.Module) -> Any:
    """Lets the code of a module find `batch_stats` immutable, as it is in evaluation.

    It is mutable, for calls that are to train: models that tell by this evaluate.
    """

    def is_mutable(name: str) -> bool:
        return name != "batch_stats" and type(module).is_mutable_collection(module, name)

    return instead(module, {"is_mutable_collection": is_mutable})


@contextlib.contextmanager
def _hooking(hook: Hook) -> Iterator[None]:
    before = getattr(_hooks, "hook", None)
    _hooks.hook = hook
    try:
        yield
    finally:
        _hooks.hook = before


@functools.cache
def _watched(base: Any, path: Path) -> Any:
    """Returns a class of NNX modules that hands its calls over, as linen's interceptors do."""

    def watch(call):
        @functools.wraps(call)
        def watched(self, *args, **kwargs):
            run = functools.partial(call, self)
            hook = getattr(_hooks, "hook", None)
            visit = Visit(self, path, inspect.unwrap(call))
            return run(*args, **kwargs) if hook is None else hook(visit, run, args, kwargs)

        return watched

    return type(base.__name__, override(base, watch), {"__call__": watch(base.__call__)})
