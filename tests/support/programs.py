"""The compiled programs of an entry: each answers for several points of the contract.

Compiling is nearly all that the contract costs. So tests that differ only in data share a program,
one that differentiates returns its value too, and one that is mapped tells what masks do.
"""

import functools

import jax
import numpy as np

# Without LLVM's passes, which take half of the time: for what is tested to be right, not exact.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def forward(norm, quickly=False, **options):
    """(x, gamma, beta, mask) -> y, with statistics that nothing else needs."""
    return cached(functools.partial, norm, quickly, **options)


def derivatives(norm, quickly=False, **options):
    """(x, gamma, beta, mask, dy) -> y, (dx, dgamma, dbeta)."""
    return cached(with_gradients, norm, quickly, **options)


def mapped(norm):
    """`derivatives` of each of the inputs along axis 1 of x, all else being shared."""
    return cached(with_gradients_mapped, norm, True)


def one_of_three(norm):
    """`derivatives`, of one of three equal inputs of `mapped`."""

    def call(x, *given):
        return jax.tree.map(lambda v: np.asarray(v)[1], mapped(norm)(np.stack([x] * 3, 1), *given))

    return call


@functools.cache
def cached(program, norm, quickly, **options):
    """What `compiled` makes of a program of `norm`: the same for the same arguments."""
    return compiled(program(norm, **options), quickly)


def compiled(function, quickly):
    """`function` compiled, if `quickly` without LLVM's passes."""
    return jax.jit(function, compiler_options=QUICKLY if quickly else None)


def with_gradients_mapped(norm):
    """`with_gradients` over axis 1 of x, to be compiled."""
    return jax.vmap(with_gradients(norm), in_axes=(1, None, None, None, None))


def with_gradients(norm, **options):
    """(x, gamma, beta, mask, dy) -> y, (dx, dgamma, dbeta), to be compiled."""

    def program(x, gamma, beta, mask, dy):
        y, vjp = jax.vjp(lambda *given: norm(*given, mask, **options), x, gamma, beta)
        return y, vjp(dy)

    return program


def first_and_second(norm, ways):
    """(x, gamma, beta, mask, dy, tangents) -> y, its tangent, and curvatures.

    These are gradients of the slope of sum(dy * y) along the tangents, in each of the ways.
    """

    def program(x, gamma, beta, mask, dy, tangents):
        primals = (x, gamma, beta)

        def f(*primals):
            return norm(*primals, mask)

        def pull(*primals):
            return jax.vjp(f, *primals)[1](dy)

        def push(*primals):
            return jax.jvp(f, primals, tangents)[1]

        by_way = {
            "forward over reverse": lambda: jax.jvp(pull, primals, tangents)[1],
            "reverse over reverse": lambda: jax.vjp(pull, *primals)[1](tangents),
            "reverse over forward": lambda: jax.vjp(push, *primals)[1](dy),
        }
        return *jax.jvp(f, primals, tangents), [by_way[way]() for way in ways]

    return program
