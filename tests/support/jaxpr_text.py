"""What tests compare without compiling anything, and start from with little."""

import functools
import re

import jax
import numpy as np
from jax.interpreters import partial_eval


def program(function, *args):
    """The program of a function as text, but for what nobody uses of it.

    The same text is the same function: it gives the same bits, under any transformation.
    """
    closed = jax.make_jaxpr(function)(*args)
    used = [True] * len(closed.out_avals)
    traced, _ = partial_eval.dce_jaxpr(closed.jaxpr, used, instantiate=True)
    # Arrays that it holds are names in the text.
    read = {id(v) for eqn in traced.eqns for v in eqn.invars}
    held = zip(closed.jaxpr.constvars, closed.consts, strict=True)
    values = [np.asarray(value).tolist() for var, value in held if id(var) in read]
    return f"{text(traced)} {values}"


def text(traced):
    """A traced program as text, without where in memory its functions are."""
    return re.sub(r"0x[0-9a-f]+", "", str(traced))


def drawn(module, *args, seed=0, **options):
    """Variables of a linen module, of any value: parameters of both signs, others positive."""
    rng = np.random.default_rng(seed)
    key = jax.random.key(0)
    shapes = jax.eval_shape(functools.partial(module.init, **options), key, *args)
    ways = {"params": lambda shape: rng.normal(0, 0.5, shape)}
    return {
        kind: jax.tree.map(
            lambda s, kind=kind: ways.get(kind, lambda n: 0.5 + rng.random(n))(s.shape).astype(
                s.dtype
            ),
            tree,
        )
        for kind, tree in shapes.items()
    }


def initialized(module, *args, **options):
    """Variables of a linen module as they start, made by one program."""
    return jax.jit(functools.partial(module.init, **options))(jax.random.key(0), *args)
