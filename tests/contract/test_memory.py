"""Contract 6: kept for the backward pass are the input, per-group statistics and the parameters."""

import contextlib
import functools
import io
import re

import jax
import jax.numpy as jnp
import numpy as np

from tests.contract import registry
from tests.support import programs

DTYPES = {"f32": 4, "bf16": 2, "f16": 2, "c64": 8, "bool": 1, "i32": 4, "f64": 8}


def allowed_bytes(norm, x, gamma, beta, mask):
    parameters = sum(p.nbytes for p in (gamma, beta, mask) if p is not None)
    number = 8 if jnp.iscomplexobj(x) else 4
    return 1.05 * x.nbytes + number * norm.count_statistics(x.shape) + parameters


def printed_bytes(f, *args):
    """The bytes in JAX's own list of what the backward pass of `f` keeps."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        jax.ad_checkpoint.print_saved_residuals(f, *args)
    lines = out.getvalue().strip().splitlines()
    found = [re.match(r"(\w+)\[([\d,]*)\]", line) for line in lines]
    assert found and all(found), lines
    return sum(
        DTYPES[dtype] * int(np.prod([int(s) for s in sizes.split(",") if s]))
        for dtype, sizes in (match.groups() for match in found)
    )


def kept_bytes(arrays):
    """The bytes of the distinct buffers among `arrays`."""
    buffers = {a.unsafe_buffer_pointer(): a.nbytes for a in arrays if isinstance(a, jax.Array)}
    return sum(buffers.values())


def handed_over(f, *args):
    """The bytes that a program of the forward pass alone returns for the backward pass.

    An array that it returns twice, or is given and returns, is one buffer: counted once.
    """
    program = jax.make_jaxpr(lambda *args: jax.vjp(f, *args)[1])(*args).jaxpr
    kept = {id(v): v.aval for v in program.outvars}
    return sum(aval.size * aval.dtype.itemsize for aval in kept.values())


@registry.norms("memory")
def test_only_the_input_and_statistics_are_kept(norm, rng):
    for shape, dtype in ((norm.shapes["plain"], jnp.float32), (norm.shapes["large"], jnp.bfloat16)):
        x, gamma, beta, _ = norm.draw(rng, shape, dtype)
        allowed = allowed_bytes(norm, x, gamma, beta, None)
        assert printed_bytes(norm, x, gamma, beta) <= allowed
        assert x.nbytes / 2 < handed_over(norm, x, gamma, beta) <= allowed


@registry.norms("memory", core=True)
def test_what_runs_holds_what_its_program_hands_over(norm, rng):
    x, gamma, beta, _ = norm.draw(rng, norm.shapes["plain"], jnp.bfloat16)
    compiled = jax.jit(jax.vjp, static_argnums=0, compiler_options=programs.QUICKLY)
    for forward in (compiled, jax.vjp):
        y, vjp = forward(norm, x, gamma, beta)
        held = kept_bytes(jax.tree.leaves(vjp))
        assert y.dtype == x.dtype and held <= allowed_bytes(norm, x, gamma, beta, None)
        assert held == handed_over(norm, x, gamma, beta)


@registry.norms("memory")
def test_little_is_kept_with_a_mask_in_every_dtype(norm, rng):
    cases = [(jnp.bfloat16, jnp.float32), (jnp.float16, None)]
    if "complex" not in norm.exempt:
        cases.append((jnp.complex64, None))
    for dtype, result in cases:
        x, gamma, beta, mask = norm.draw(rng, norm.shapes["plain"], dtype, mask=True)
        options = {"dtype": result} if "dtype" in norm.takes else {}
        f = functools.partial(norm, mask=mask, **options)
        allowed = allowed_bytes(norm, x, gamma, beta, mask)
        assert handed_over(f, x, gamma, beta) <= allowed
