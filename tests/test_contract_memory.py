"""Contract 6: kept for the backward pass are the input, per-group statistics and the parameters."""

import contextlib
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import registry

DTYPES = {"f32": 4, "bf16": 2, "f16": 2, "c64": 8, "bool": 1, "i32": 4, "f64": 8}

# A mean in two parts, a variance and a count for each pool, in float32.
STATISTICS = 4 * 4


def allowed_bytes(norm, x, gamma, beta, mask):
    parameters = sum(p.nbytes for p in (gamma, beta, mask) if p is not None)
    return 1.05 * x.nbytes + STATISTICS * len(norm.pools(x.shape)) + parameters


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


@registry.paths("memory")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_only_the_input_and_statistics_are_kept(norm, shape, dtype, rng):
    x, gamma, beta, _ = norm.draw(rng, shape, dtype)
    allowed = allowed_bytes(norm, x, gamma, beta, None)
    assert printed_bytes(norm, x, gamma, beta) <= allowed
    # What jax.vjp really holds, eagerly and when forward and backward are jitted apart.
    for forward in (jax.vjp, jax.jit(jax.vjp, static_argnums=0)):
        y, vjp = forward(norm, x, gamma, beta)
        assert kept_bytes(jax.tree.leaves(vjp)) <= allowed
        assert y.dtype == dtype


@registry.norms("memory")
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.complex64], ids=["float16", "complex64"])
def test_little_is_kept_in_the_other_dtypes(norm, dtype, rng):
    if dtype == jnp.complex64 and "complex" in norm.exempt:
        dtype = jnp.float32
    x, gamma, beta, mask = norm.draw(rng, norm.shapes["large"], dtype, mask=True)
    allowed = allowed_bytes(norm, x, gamma, beta, mask)
    assert printed_bytes(lambda *args: norm(*args, mask), x, gamma, beta) <= allowed


@registry.norms("memory")
def test_little_is_kept_with_a_mask_and_another_result_dtype(norm, rng):
    x, gamma, beta, mask = norm.draw(rng, norm.shapes["large"], jnp.bfloat16, mask=True)
    options = {"dtype": jnp.float32} if "dtype" in norm.takes else {}
    _, vjp = jax.jit(lambda *args: jax.vjp(lambda *a: norm(*a, mask, **options), *args))(
        x, gamma, beta
    )
    assert kept_bytes(jax.tree.leaves(vjp)) <= allowed_bytes(norm, x, gamma, beta, mask)
