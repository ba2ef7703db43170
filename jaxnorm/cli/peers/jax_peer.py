"""How jaxnorm and its peers in JAX are called: each as its users do, under `jax.jit`."""

from __future__ import annotations

import contextlib
import functools
import importlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxnorm.cli.peers import EPSILON, MOMENTUM, NORMS, Case, Data, Program, Unavailable

# Programs on CPU with fewer bytes of arguments are queued.
QUEUED_BYTES = 1 << 20
# (x, *parameters), of batch norm with running=(mean, var) too -> result, running statistics.
Normalization = Callable[..., tuple[jax.Array, Any]]


class JaxPeer:
    """A library in JAX.

    Attributes:
      build: returns the normalization of a case.
      channels_first: whether it takes images as (N, C, H, W).
    """

    def __init__(
        self,
        name: str,
        version: str,
        build: Callable[[Case], Normalization],
        norms: Sequence[str] = NORMS,
        channels_first: bool = False,
    ):
        self.name, self.version, self.norms = name, version, norms
        self.build, self.channels_first = build, channels_first
        self._jitted = functools.cache(lambda case: jax.jit(self.function(case, True)))

    def programs(self, case: Case, data: Data, backward: bool) -> list[Program]:
        """Compiles the case; see `Peer`."""
        arguments = self._arguments(case, data, backward)
        keywords = self._keywords(data)
        return [compile_program(self.function(case, backward), *arguments, **keywords)]

    def function(self, case: Case, backward: bool) -> Callable[..., Any]:
        """Returns what is compiled: of (x, *parameters), or of (dy, x, *parameters) if `backward`.

        Keywords go to the normalization.
        """
        normalization = self.build(case)
        if not backward:
            return normalization

        def with_cotangents(dy, x, *parameters, **keywords):
            normalize = functools.partial(normalization, **keywords)
            y, pullback, running = jax.vjp(normalize, x, *parameters, has_aux=True)
            # In a model dy depends on y. Unless it does here, XLA takes the backward pass's sums
            # in the kernel that writes y: a program that no model has.
            y, dy = jax.lax.optimization_barrier((y, dy.astype(y.dtype)))
            return y, pullback(dy), running

        return with_cotangents

    def kept_bytes(self, case: Case, data: Data) -> int:
        """Counts the residuals of `jax.vjp`; see `Peer`."""
        normalization = functools.partial(self.build(case), **self._keywords(data))
        x, *parameters = self._arguments(case, data, False)

        def residuals(x, *parameters):
            return jax.tree.leaves(jax.vjp(normalization, x, *parameters, has_aux=True)[1])

        with foreign_code():
            jaxpr = jax.make_jaxpr(residuals)(x, *parameters).jaxpr
        kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
        return sum(v.aval.size * v.aval.dtype.itemsize for v in kept)  # type: ignore[attr-defined]

    def evaluate(self, case: Case, data: Data) -> tuple[np.ndarray, ...]:
        """Returns y, dx and the parameters' cotangents; see `Peer`."""
        with foreign_code():
            arguments = self._arguments(case, data, True)
            y, (dx, *dparameters), _ = self._jitted(case)(*arguments, **self._keywords(data))
        if self._channels_first(case):
            y, dx = (jnp.moveaxis(a, 1, -1) for a in (y, dx))
        return tuple(np.asarray(a).astype(np.float64) for a in (y, dx, *dparameters))

    def _channels_first(self, case: Case) -> bool:
        return self.channels_first and case.kind in ("batch", "group", "instance")

    def _keywords(self, data: Data) -> dict[str, Any]:
        return {"running": jax.device_put(data.running)} if data.running else {}

    def _arguments(self, case: Case, data: Data, backward: bool) -> tuple[jax.Array, ...]:
        x, dy = data.on_device(self._channels_first(case))
        arguments = (x, *jax.device_put(data.parameters))
        return (dy, *arguments) if backward else arguments


@contextlib.contextmanager
def foreign_code() -> Iterator[None]:
    """Runs other libraries under JAX's default promotion, their warnings unheard."""
    with (
        warnings.catch_warnings(),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        warnings.simplefilter("ignore")
        yield


def compile_program(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Program:
    """Traces and compiles a function, nothing of it remembered from before.

    Where its first result can be its first argument, calls of it can be made to depend on each
    other. Small programs on CPU are then queued: waking the thread that waits for a call takes
    as long as the call, or longer, or nothing if it is not asleep yet.
    """
    jax.clear_caches()
    with foreign_code():
        start = time.perf_counter()
        lowered = jax.jit(function).lower(*arguments, **keywords)
        compiled = lowered.compile()
        seconds = time.perf_counter() - start
    first, result = arguments[0], jax.tree.leaves(lowered.out_info)[0]
    repeats = isinstance(first, jax.Array) and first.shape == result.shape
    repeats = repeats and first.dtype == result.dtype
    on_cpu = jax.default_backend() == "cpu"
    size = sum(a.nbytes for a in jax.tree.leaves((arguments, keywords)))

    def call(last=None):
        if last is None or not repeats:
            return compiled(*arguments, **keywords)
        return compiled(last[0], *arguments[1:], **keywords)

    memory = compiled.memory_analysis()
    return Program(
        call=call,
        wait=jax.block_until_ready,
        queues=not on_cpu or (repeats and size < QUEUED_BYTES),
        compile_seconds=seconds,
        temp_bytes=None if memory is None else memory.temp_size_in_bytes,
    )


def import_peer(name: str, distribution: str) -> Any:
    """Imports a library that need not be installed, nor fit the installed JAX.

    Raises:
      Unavailable: it cannot be imported.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name == name:
                raise Unavailable(f"it is not installed (pip install {distribution})") from error
            raise Unavailable(f"its import failed ({error})") from error
        except Exception as error:
            raise Unavailable(f"its import failed ({error})") from error


def load_jaxnorm() -> JaxPeer:
    """Returns the modules of `jaxnorm.linen`."""
    import jaxnorm
    import jaxnorm.linen

    return JaxPeer("jaxnorm", jaxnorm.__version__, _linen(jaxnorm.linen, ("gamma", "beta")))


def load_flax() -> JaxPeer:
    """Returns the modules of `flax.linen`."""
    import flax
    import flax.linen

    return JaxPeer("flax.linen", flax.__version__, _linen(flax.linen, ("scale", "bias")))


def _linen(package: ModuleType, names: tuple[str, str]) -> Callable[[Case], Normalization]:
    def build(case: Case) -> Normalization:
        # Without a dtype, flax.linen's results are float32 whatever the input.
        options = {"epsilon": EPSILON, "dtype": jnp.dtype(case.dtype)}
        match case.kind:
            case "layer":
                module = package.LayerNorm(**options)
            case "rms":
                module = package.RMSNorm(**options)
            case "batch":
                module = package.BatchNorm(momentum=MOMENTUM, use_running_average=False, **options)
            case "group":
                module = package.GroupNorm(num_groups=case.num_groups, **options)
            case _:
                module = package.InstanceNorm(**options)

        def apply(x, *parameters, running=(), mask=None):
            variables = {"params": dict(zip(names, parameters, strict=False))}
            if case.kind != "batch":
                return module.apply(variables, x, mask=mask), ()
            variables["batch_stats"] = dict(zip(("mean", "var"), running, strict=True))
            return module.apply(variables, x, mask=mask, mutable=["batch_stats"])

        return apply

    return build


def load_haiku() -> JaxPeer:
    """Returns Haiku's modules; it has its parameters in the dtype of the input.

    No time of it depends on its running statistics, which are always those of the first step.
    """
    hk = import_peer("haiku", "dm-haiku")

    def build(case: Case) -> Normalization:
        def normalize(x):
            match case.kind:
                case "layer":
                    return hk.LayerNorm(-1, True, True, EPSILON, param_axis=-1)(x)
                case "rms":
                    return hk.RMSNorm(-1, EPSILON, param_axis=-1)(x)
                case "batch":
                    return hk.BatchNorm(True, True, MOMENTUM, EPSILON)(x, is_training=True)
                case "group":
                    return hk.GroupNorm(case.num_groups, eps=EPSILON)(x)
                case _:
                    return hk.InstanceNorm(True, True, EPSILON)(x)

        transformed = hk.without_apply_rng(hk.transform_with_state(normalize))

        def apply(x, *parameters, running=()):
            shapes, state = jax.eval_shape(transformed.init, jax.random.key(0), x)
            state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), state)
            ((module, leaves),) = shapes.items()
            given = dict(zip(("scale", "offset"), parameters, strict=False))
            cast = {n: given[n].reshape(s.shape).astype(s.dtype) for n, s in leaves.items()}
            return transformed.apply({module: cast}, state, x)

        return apply

    return JaxPeer("haiku", hk.__version__, build)


def load_equinox() -> JaxPeer:
    """Returns Equinox's modules, which take one example; it has no module for instance norm.

    Its running statistics are always those of the first step, as Haiku's.
    """
    eqx = import_peer("equinox", "equinox")

    def build(case: Case) -> Normalization:
        channels = case.shape[-1]

        def apply(x, *parameters, running=()):
            if case.kind == "batch":
                make = eqx.nn.make_with_state(eqx.nn.BatchNorm)
                norm, state = make(channels, "batch", eps=EPSILON, momentum=MOMENTUM, mode="batch")
                # Parameters in float32 would make the result float32.
                norm = replace(norm, [p.astype(x.dtype) for p in parameters])
                mapped = jax.vmap(norm, (0, None), (0, None), axis_name="batch")
                y, state = mapped(x, state)
                return y, jax.tree.leaves(state)
            if case.norm in ("group", "instance"):
                groups = case.num_groups if case.norm == "group" else channels
                return jax.vmap(replace(eqx.nn.GroupNorm(groups, channels, EPSILON), parameters))(
                    x
                ), ()
            if case.norm == "layer":
                norm = replace(eqx.nn.LayerNorm(channels, EPSILON), parameters)
            else:
                norm = eqx.nn.RMSNorm(channels, EPSILON, use_bias=False)
                norm = eqx.tree_at(lambda m: m.weight, norm, parameters[0])
            for _ in case.shape[:-1]:
                norm = jax.vmap(norm)
            return norm(x), ()

        def replace(module, parameters):
            return eqx.tree_at(lambda m: (m.weight, m.bias), module, tuple(parameters))

        return apply

    return JaxPeer("equinox", eqx.__version__, build, channels_first=True)


def load_tokamax() -> JaxPeer:
    """Returns tokamax's function, which serves layer and RMS norm."""
    tokamax = import_peer("tokamax", "tokamax")

    def build(case: Case) -> Normalization:
        def apply(x, gamma, beta=None):
            center = case.norm == "layer"
            y = tokamax.layer_norm(x, gamma, beta, epsilon=EPSILON, subtract_mean=center)
            return y, ()

        return apply

    return JaxPeer("tokamax", tokamax.__version__, build, norms=("layer", "rms"))
