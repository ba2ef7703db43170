"""The compiled programs of an entry: each answers for several points of the contract.

Compiling is nearly all that the contract costs. So tests that differ only in data share a program,
and one that differentiates returns its value too.
"""

import functools

import jax

# Without LLVM's passes, which take half of the time: for what is tested to be right, not exact.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.cache
def forward(norm, **options):
    """(x, gamma, beta, mask) -> y, with statistics that nothing else needs."""
    return jax.jit(functools.partial(norm, **options))


@functools.cache
def derivatives(norm, **options):
    """(x, gamma, beta, mask, dy) -> y, (dx, dgamma, dbeta)."""

    def program(x, gamma, beta, mask, dy):
        y, vjp = jax.vjp(lambda *given: norm(*given, mask, **options), x, gamma, beta)
        return y, vjp(dy)

    return jax.jit(program)


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
