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
from flax import errors, nnx

from jaxnorm.tools.models.batches import split_arrays
from jaxnorm.tools.models.bridges import ToLinen, ToNNX, making
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
    is_called: bool  # whether `call` was given
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
        except Exception as error:
            self._explain(error, args)
            raise

    def _explain(self, error: Exception, args: tuple) -> None:
        """Raises an error that says what to do about another, if that is known."""
        line = f"{self.label} cannot be run on the arguments given: {_first_line(error)} "
        (first, *more) = args or (None,)
        if not (self.is_called or more) and isinstance(first, tuple | list | Mapping):
            raise TypeError(
                f"{line}It was called with {_describe(first)}; say which part of that the model "
                f"takes: call=lambda model, batch: model(batch[{_first_key(first)!r}])."
            ) from error
        if isinstance(error, TypeError | errors.FlaxError):
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"{line}Give the variables of this very model, and its arguments; what else the "
                "call needs is said by call=lambda net, *args: net(*args, train=False)."
            ) from error


class LinenProgram(Program):
    """A linen module and its variables."""

    def __init__(self, model: nn.Module, variables: Mapping[str, Any], call: Call | None, rngs):
        self.model, self.state, self.rngs = model, dict(variables), rngs
        self.label, self.is_called = type(model).__name__, call is not None
        self.key = same(model), same(call)
        self._call = call or _call

    def run(self, state: Any, args: tuple, hook: Hook, key: Any = None) -> Any:
        root: Any = None

        def start(model: nn.Module, *args: Any) -> Any:
            nonlocal root
            root = model.scope and model.scope.root
            return self._call(model, *args)

        def is_own(module: nn.Module) -> bool:
            # What `call` applies by itself is mutable as it says.
            return module.scope is not None and module.scope.root is root

        intercept = _interceptor(hook, (), is_own)
        apply = nn.apply(start, self.model, mutable=["batch_stats"])
        with nn.intercept_methods(intercept), _hooked(key):
            return apply(state, *args, rngs=self.rngs)[0]

    def leaf_path(self, path: Path, name: str) -> Path:
        collection = "batch_stats" if name in ("mean", "var", "count") else "params"
        return (collection, *path, name)


class NnxProgram(Program):
    """An NNX model."""

    def __init__(self, model: nnx.Module, call: Call | None, evaluate: bool):
        self.label, self.is_called = type(model).__name__, call is not None
        watched = nnx.clone(model)
        if evaluate:
            watched.eval()
        _watch(watched, ())
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
            f"{_describe(model)}.{_remedy_of_model(model)}"
        )
    variables = given[0] if given else None
    known = {"params", "batch_stats"}
    if isinstance(variables, Mapping) and (not variables or known & set(variables)):
        return LinenProgram(model, variables, call, rngs), given[1:]
    got = sorted(variables) if isinstance(variables, Mapping) else _describe(variables)
    remedy = "They come right after a linen module; an NNX model needs none."
    if hasattr(variables, "params"):
        remedy = 'Give {"params": state.params, "batch_stats": state.batch_stats}.'
    elif isinstance(variables, Mapping):
        remedy = 'If these are parameters: {"params": ..., "batch_stats": ...}.'
    raise TypeError(
        f"{tool}: variables must hold the collections params and batch_stats, as model.init "
        f"returns them, got {got}. {remedy}"
    )


def _remedy_of_model(model: Any) -> str:
    owner = getattr(model, "__self__", None)
    if isinstance(owner, nn.Module | nnx.Module):
        return " Give the model itself, not its method."
    if isinstance(model, type) and issubclass(model, nn.Module | nnx.Module):
        return f" Give a model: {model.__name__}(...)."
    return ""


def as_it_is(visit: Visit, run: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Is the hook that changes nothing."""
    del visit
    return run(*args, **kwargs)


def names_of(path: Any) -> Path:
    """Returns the names in a path of `jax.tree_util`."""
    return tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _describe(value: Any) -> str:
    """Returns what errors call a value that was given in the place of another."""
    if value is None:
        return "nothing"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(getattr(value, "__self__", None), nn.Module | nnx.Module):
        return f"the method {value.__name__} of {type(value.__self__).__name__}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {sorted(map(str, value))}"
    size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"a {type(value).__name__}{size}"


def _first_key(batch: Any) -> Any:
    if not isinstance(batch, Mapping):
        return 0
    return next((key for key, value in batch.items() if hasattr(value, "dtype")), "x")


def _call(model, *args):
    return model(*args)


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0]
    return line if line.endswith(".") else f"{line}."


def _interceptor(hook: Hook, start: Path, is_own: Callable[[nn.Module], bool]) -> Any:
    """Returns what hands over the calls of a linen model that lies at `start`.

    Args:
      hook: takes them.
      start: the path of the model.
      is_own: whether a module is to evaluate, with all that it calls.
    """
    evaluated: list[bool] = []  # of the modules that are being called

    def intercept(run, args, kwargs, context):
        module = context.module
        path = (*start, *module.path)
        evaluated.append(evaluated[-1] if evaluated else is_own(module))
        try:
            with contextlib.ExitStack() as stack:
                if evaluated[-1]:
                    stack.enter_context(_evaluating(module))
                if context.method_name != "__call__":
                    return run(*args, **kwargs)
                if isinstance(module, ToLinen):
                    stack.enter_context(making(module, lambda made: _watch(made, path)))
                    stack.enter_context(_hooking(hook))
                function = inspect.unwrap(context.orig_method.func)
                return hook(Visit(module, path, function), run, args, kwargs)
        finally:
            evaluated.pop()

    return intercept


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


def _watch(model: nnx.Module, start: Path) -> None:
    """Makes the modules of a model, which lies at `start`, ones that hand their calls over."""
    for place, module in list(nnx.iter_modules(model)):
        if callable(module):
            path = (*start, *map(str, place))
            object.__setattr__(module, "__class__", _watched(type(module), path))


@functools.cache
def _watched(base: Any, path: Path) -> Any:
    """Returns a class of NNX modules that hands its calls over, as linen's interceptors do."""

    def watch(call):
        @functools.wraps(call)
        def watched(self, *args, **kwargs):
            run = functools.partial(call, self)
            hook = getattr(_hooks, "hook", None)
            if hook is None:
                return run(*args, **kwargs)
            visit = Visit(self, path, inspect.unwrap(call))
            if not isinstance(self, ToNNX):
                return hook(visit, run, args, kwargs)
            with nn.intercept_methods(_interceptor(hook, path, lambda module: True)):
                return hook(visit, run, args, kwargs)

        return watched

    return type(base.__name__, override(base, watch), {"__call__": watch(base.__call__)})
