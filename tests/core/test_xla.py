"""What compilers do that the core relies on: `jaxnorm._core.xla` holds the table."""

import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from jaxnorm._core.plan import MANY_ROWS
from jaxnorm._core.xla import BEHAVIOURS, SUMS_COPY

# Before jaxlib 0.12 the library takes single sums alone.
NEW = jax.version.__version_info__ >= (0, 12)


def kernels(function, *arguments):
    """Returns how many kernels a program has, and how many of them are the library's."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    entry = text[text.index("ENTRY") :]
    return len(re.findall(r" fusion\(", entry)), entry.count("__ynn_fusion")


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=[b.test for b in BEHAVIOURS])
def test_each_behaviour_has_its_test(behaviour):
    module, test = behaviour.test.rsplit(".", 1)
    assert callable(getattr(importlib.import_module(f"tests.{module}"), test))
    assert re.fullmatch(r"\d+\.\d+\.\d+", behaviour.seen)


def test_sums_go_to_the_library():
    """Each as one kernel: what the core spends on statistics is three of them."""
    x = jax.ShapeDtypeStruct((21600, 96), jnp.float32)
    mean = jax.ShapeDtypeStruct((1, 96), jnp.float32)
    assert kernels(lambda x: jnp.sum(x, 0), x)[1] == 1
    assert kernels(lambda x, m: jnp.sum((x - m) ** 2, 0), x, mean)[1] == 1
    if not SUMS_COPY:
        # The mean, that of the remainder, and that of its square.
        assert kernels(lambda x: jaxnorm.batch_norm(x, axis=0)[0], x)[1] == 3


@pytest.mark.skipif(not NEW, reason="before jaxlib 0.12 rows are several kernels")
def test_rows_become_one_kernel():
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jax.ShapeDtypeStruct((MANY_ROWS, 256), dtype)
        gamma = jax.ShapeDtypeStruct((256,), jnp.float32)
        assert kernels(jaxnorm.layer_norm, x, gamma, gamma) == (1, 1)
        assert kernels(jaxnorm.rms_norm, x, gamma) == (1, 1)
        # A selection, which a guard against infinite means would be, makes several of it.
        assert kernels(lambda x: jaxnorm.layer_norm(jnp.where(x > 0, x, 0)), x)[0] > 1


@pytest.mark.parametrize("rows", [8, MANY_ROWS])
def test_a_nan_stays(rows, rng):
    """In all of its row: `maximum` in the library would make a number of it."""
    x = rng.standard_normal((rows, 96)).astype(np.float32)
    x[3, 5] = np.nan
    for norm in (jaxnorm.layer_norm, jaxnorm.rms_norm):
        y = np.asarray(jax.jit(norm)(x))
        assert np.isnan(y[3]).all()
        assert np.isfinite(np.delete(y, 3, 0)).all()


@pytest.mark.skipif(SUMS_COPY, reason="before jaxlib 0.10.2 barriers do not keep XLA from it")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_no_copy_of_the_input(dtype):
    """Behind barriers each pass reads x as it is, instead of x in float32 or x - mean."""
    x = jax.ShapeDtypeStruct((64, 30, 30, 96), dtype)
    norm = jax.jit(jaxnorm.instance_norm)
    temporary = norm.lower(x).compile().memory_analysis().temp_size_in_bytes
    assert temporary < x.size * x.dtype.itemsize / 4


@pytest.mark.parametrize("rows", [16, MANY_ROWS])
@pytest.mark.parametrize("size", [7, 77, 1000])
def test_constant_rows_give_exactly_beta(rows, size, rng):
    """By an exact division, where there are many."""
    beta = np.float32(0.3)
    norm = jax.jit(lambda x: jaxnorm.layer_norm(x, None, beta))
    x = rng.standard_normal((rows, 1)) * 10.0 ** rng.integers(-20, 20, (rows, 1))
    x = np.broadcast_to(x.astype(np.float32), (rows, size))
    np.testing.assert_array_equal(norm(x), beta)
    np.testing.assert_array_equal(norm(x.astype(jnp.bfloat16)), np.asarray(beta, jnp.bfloat16))


@pytest.mark.parametrize("rows", [16, MANY_ROWS])
def test_many_rows_are_exact(rows, rng):
    """Whether they are one kernel or several: at every mean, and beyond what float32 can add."""
    norm = jax.jit(jaxnorm.layer_norm)
    for mean in (0.0, 1.0, 1e2, -1e4, 1e6):
        x = rng.standard_normal((rows, 96)).astype(np.float32) + np.float32(mean)
        wide = x.astype(np.float64)
        wanted = wide - wide.mean(-1, keepdims=True)
        wanted /= np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(norm(x), wanted, atol=4e-6)
    for signs in (np.ones(96), (-1) ** np.arange(96), np.sign(np.arange(96) - 40.5)):
        x = np.full((rows, 96), 3.4e38) * signs
        assert np.isfinite(norm(x.astype(np.float32))).all()
