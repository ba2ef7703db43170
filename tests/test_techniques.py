"""What the contract demands, of the techniques whose form its registry does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from tests.technique import derivatives
from tests.techniques import TECHNIQUES
from tests.test_contract_memory import kept_bytes
from tests.test_contract_plain import FORBIDDEN, primitives

techniques = pytest.mark.parametrize("technique", TECHNIQUES, ids=[t.name for t in TECHNIQUES])


def bound(expected):
    """What the contract allows between two float32 evaluations."""
    return 4e-6 * max(1, np.abs(expected).max() / 3)


def options(mask):
    return {} if mask is None else {"mask": mask}


@techniques
def test_values_and_gradients(technique, rng):
    arrays, mask = technique.draw(rng)
    steps = [jnp.asarray(rng.normal(size=a.shape), jnp.float32) for a in arrays]
    dy = jnp.asarray(rng.normal(size=technique.expected(arrays).shape), jnp.float32)
    run = derivatives(technique)
    for m in (None, mask) if technique.masked else (None,):
        for mean in technique.means:
            moved = [arrays[0] + np.float32(mean), *arrays[1:]]
            y, gradients, tangent = run(moved, m, dy, steps)
            expected = technique.expected(moved, m)
            np.testing.assert_allclose(y, expected, atol=bound(expected), rtol=0)
            # Each term of the sum is within a few roundings of its size.
            terms = [np.asarray(g * s, np.float64) for g, s in zip(gradients, steps, strict=True)]
            size = sum(np.abs(t).sum() for t in terms)
            total = sum(t.sum() for t in terms)
            assert abs(np.sum(np.asarray(dy, np.float64) * tangent) - total) <= 4e-6 * size
            if mean == 0:
                slope = technique.slope(moved, steps, dy, m)
                assert abs(total - slope) <= 4e-6 * size + 1e-6 * abs(slope)


@techniques
def test_what_is_masked_reaches_nothing(technique, rng):
    if not technique.masked:
        with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
            technique.function(*technique.draw(rng)[0], mask=jnp.ones(technique.shape, bool))
        return
    arrays, mask = technique.draw(rng)
    steps = [jnp.asarray(rng.normal(size=a.shape), jnp.float32) for a in arrays]
    dy, run = jnp.ones(technique.shape, jnp.float32), derivatives(technique)
    full = np.broadcast_to(mask, technique.shape)
    dirty_steps = [jnp.where(full, steps[0], jnp.nan), *steps[1:]]
    clean = run([jnp.where(full, arrays[0], 0), *arrays[1:]], mask, dy, steps)
    for poison in (np.nan, np.inf):
        dirty = [jnp.where(full, arrays[0], np.float32(poison)), *arrays[1:]]
        found = run(dirty, mask, jnp.where(full, dy, np.float32(poison)), dirty_steps)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(clean), strict=True):
            np.testing.assert_array_equal(a, b)
    y, gradients, tangent = clean
    for value in (y, gradients[0], tangent):
        assert np.isfinite(value).all() and not np.asarray(value)[~full].any()
    nothing = run(arrays, jnp.zeros_like(mask), dy, steps)
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(nothing))
    assert not np.asarray(nothing[0]).any()


@techniques
def test_half_precision_is_one_rounding_from_float32(technique, rng):
    arrays, mask = technique.draw(rng)
    arrays[0] = arrays[0].astype(jnp.bfloat16)

    @jax.jit
    def both(arrays):
        wide = [arrays[0].astype(jnp.float32), *arrays[1:]]
        return technique.function(*arrays, **options(mask)), technique.function(
            *wide, **options(mask)
        )

    y, exact = both(arrays)
    assert (y.dtype, exact.dtype) == (jnp.bfloat16, jnp.float32)
    # One rounding to 8 bits.
    np.testing.assert_allclose(np.float32(y), exact, atol=bound(exact), rtol=2.0**-8)
    if technique.has_dtype:
        result = technique.function(*arrays, **options(mask), dtype=jnp.float32)
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, exact, atol=bound(exact), rtol=1e-6)


@techniques
def test_plain_and_mapped(technique, rng):
    arrays, mask = technique.draw(rng)

    def gradient(*arrays):
        f = lambda *a: technique.function(*a, **options(mask))  # noqa: E731
        y, transpose = jax.vjp(f, *arrays)
        return y, transpose(jnp.cos(y))

    with jaxnorm.plain():
        program = jax.make_jaxpr(gradient)(*arrays)
        plain = jax.jit(gradient)(*arrays)
    found = primitives(program.jaxpr)
    assert not found & FORBIDDEN
    assert not {name for name in found if name.startswith("normalize")}
    stacked = [jnp.stack([a, 2 * a + 1], -1) for a in arrays]
    axes = (-1,) * len(arrays)
    mapped = jax.jit(jax.vmap(gradient, in_axes=axes, out_axes=-1))(*stacked)
    for value, other in zip(jax.tree.leaves(plain), jax.tree.leaves(mapped), strict=True):
        np.testing.assert_allclose(
            value, other[..., 0], atol=2e-5 * max(1, np.abs(value).max()), rtol=0
        )
    expected = technique.expected([2 * a + 1 for a in arrays], mask)
    np.testing.assert_allclose(mapped[0][..., 1], expected, atol=bound(expected))


@techniques
def test_finite_at_zero_and_constant_input(technique, rng):
    arrays, mask = technique.draw(rng)
    steps = [jnp.ones_like(a) for a in arrays]
    dy, run = jnp.ones_like(technique.function(*arrays)), derivatives(technique)
    for constant in technique.finite_at:
        same = [jnp.full(technique.shape, constant, jnp.float32), *arrays[1:]]
        for m in {id(m): m for m in (None, mask)}.values():
            for value in jax.tree.leaves(run(same, m, dy, steps)):
                assert np.isfinite(value).all(), constant


@techniques
def test_little_is_kept_for_the_backward_pass(technique, rng):
    arrays, mask = technique.draw(rng)
    arrays[0] = arrays[0].astype(jnp.bfloat16)
    f = lambda *a: technique.function(*a, **options(mask))  # noqa: E731
    y, transpose = jax.jit(lambda *a: jax.vjp(f, *a))(*arrays)
    kept = kept_bytes(jax.tree.leaves(transpose))
    # In float32 the input alone would be twice its bytes; beside it there are a few numbers for
    # each pool, which in these small examples are at most a third of the elements.
    given = sum(a.nbytes for a in arrays) + (0 if mask is None else mask.nbytes)
    assert kept <= given + 1.4 * arrays[0].nbytes
    assert y.dtype == jnp.bfloat16


@techniques
def test_integer_input(technique, rng):
    arrays, _ = technique.draw(rng)
    wrong = [arrays[0].astype(jnp.int32), *arrays[1:]]
    with pytest.raises(TypeError, match="must have a floating-point or complex dtype, got int32"):
        technique.function(*wrong)
