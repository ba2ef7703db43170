"""How jaxnorm and its peers in JAX are called: each as its users do."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp

from jaxnorm.cli.peers.case import EPSILON, MOMENTUM, Case
from jaxnorm.cli.peers.jax_peer import JaxPeer, Normalization
from jaxnorm.cli.peers.peer import import_peer


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
