"""Models as pure functions of their state, with a look at each of their layers as it is called."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import errors, nnx

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
    """

    module: Any
    path: Path

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
        self._apply = nn.apply(call or _call, model, mutable=["batch_stats"])

    def run(self, state: Any, args: tuple, hook: Hook, key: Any = None) -> Any:
        def intercept(run, args, kwargs, context):
            if context.method_name != "__call__":
                return run(*args, **kwargs)
            return hook(Visit(context.module, context.module.path), run, args, kwargs)

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


def split_arrays(tree: Any) -> tuple[dict[int, Any], Callable[[dict[int, Any]], Any]]:
    """Returns the arrays of a tree, and what puts others in their place; flags stay as they are."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype")}

    def rebuild(arrays):
        return structure.unflatten([arrays.get(i, leaf) for i, leaf in enumerate(leaves)])

    return arrays, rebuild


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

    @functools.wraps(base.__call__)
    def call(self, *args, **kwargs):
        run = functools.partial(base.__call__, self)
        hook = getattr(_hooks, "hook", None)
        return run(*args, **kwargs) if hook is None else hook(Visit(self, path), run, args, kwargs)

    return type(base.__name__, (base,), {"__call__": call})
