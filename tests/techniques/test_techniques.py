"""What the contract demands, of the techniques whose form its registry does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from tests.contract.test_memory import handed_over
from tests.contract.test_plain import FORBIDDEN, primitives
from tests.support.programs import QUICKLY
from tests.techniques.registry import TECHNIQUES
from tests.techniques.technique import derivatives, mapped, one_of_three, with_gradients

techniques = pytest.mark.parametrize("technique", TECHNIQUES, ids=[t.name for t in TECHNIQUES])


def bound(expected):
    """What the contract allows between two float32 evaluations."""
    return 4e-6 * max(1, np.abs(expected).max() / 3)


def options(mask):
    return {} if mask is None else {"mask": mask}


def draw_steps(rng, technique, arrays):
    """A cotangent and tangents."""
    shapes = (technique.expected(arrays).shape, *(a.shape for a in arrays))
    dy, *steps = (np.float32(rng.normal(size=shape)) for shape in shapes)
    return dy, steps


def check(technique, found, moved, dy, steps, mask=None, slope=True):
    """Compares values with the formula, tangents with gradients, and these with its slope."""
    y, gradients, *tangent = jax.tree.map(np.asarray, found)
    expected = technique.expected(moved, mask)
    np.testing.assert_allclose(y, expected, atol=bound(expected), rtol=0)
    # Each term of the sum is within a few roundings of its size.
    terms = [np.asarray(g, np.float64) * s for g, s in zip(gradients, steps, strict=True)]
    size = sum(np.abs(t).sum() for t in terms)
    total = sum(t.sum() for t in terms)
    for t in tangent:
        assert abs(np.sum(np.asarray(dy, np.float64) * t) - total) <= 4e-6 * size
    if slope:
        slope = technique.slope(moved, steps, dy, mask)
        assert abs(total - slope) <= 4e-6 * size + 1e-6 * abs(slope)


@techniques
def test_values_and_gradients(technique, rng):
    arrays, _ = technique.draw(rng)
    dy, steps = draw_steps(rng, technique, arrays)
    for mean in technique.means:
        moved = [arrays[0] + np.float32(mean), *arrays[1:]]
        found = derivatives(technique)(moved, dy, steps)
        check(technique, found, moved, dy, steps, slope=mean == 0)


@techniques
def test_mapped_and_masked(technique, rng):
    """Each lane of a program that is mapped over all arrays, and given a mask that all share."""
    arrays, mask = technique.draw(rng)
    lanes = []
    for i, (scale, shift) in enumerate([(1, 0), (2, 1), (0.5, 0.25)]):
        mean = technique.means[i % len(technique.means)]
        moved = [np.float32(scale * a + shift) for a in arrays]
        moved[0] += np.float32(mean)
        lanes.append((moved, *draw_steps(rng, technique, arrays)))
    stacked = jax.tree.map(lambda *v: np.stack(v, -1), *lanes)
    found = jax.tree.map(np.asarray, mapped(technique)(mask, *stacked))
    for i, lane in enumerate(lanes):
        of_lane = jax.tree.map(lambda v, i=i: v[..., i], found)
        check(technique, of_lane, *lane, mask, slope=technique.means[i % len(technique.means)] == 0)


@techniques
def test_what_is_masked_reaches_nothing(technique, rng):
    arrays, mask = technique.draw(rng)
    if not technique.masked:
        with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
            technique.function(*arrays, mask=np.ones(technique.shape, bool))
        return
    dy, steps = draw_steps(rng, technique, arrays)
    full = np.broadcast_to(mask, technique.shape)

    def run(there):
        x, there_dy, step = (
            np.where(full, v, np.float32(there)) for v in (arrays[0], dy, steps[0])
        )
        return one_of_three(technique, mask, [x, *arrays[1:]], there_dy, [step, *steps[1:]])

    clean = run(0)
    for poison in (np.nan, np.inf):
        for a, b in zip(*map(jax.tree.leaves, (run(poison), clean)), strict=True):
            np.testing.assert_array_equal(a, b)
    y, gradients, tangent = clean
    for value in (y, gradients[0], tangent):
        assert np.isfinite(value).all() and not value[~full].any()
    nothing = one_of_three(technique, np.zeros_like(mask), arrays, dy, steps)
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(nothing))
    assert not nothing[0].any()


@techniques
def test_half_precision_is_one_rounding_from_the_formula(technique, rng):
    arrays, mask = technique.draw(rng)
    arrays[0] = arrays[0].astype(jnp.bfloat16)
    dtypes = [{}, {"dtype": jnp.float32}] if technique.has_dtype else [{}]

    def with_each(arrays):
        return [technique.function(*arrays, **options(mask), **dtype) for dtype in dtypes]

    y, *wide = jax.jit(with_each, compiler_options=QUICKLY)(arrays)
    exact = technique.expected(arrays, mask)
    assert y.dtype == jnp.bfloat16
    # One rounding to 8 bits.
    np.testing.assert_allclose(np.float32(y), exact, atol=bound(exact), rtol=2.0**-8)
    for result in wide:
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, exact, atol=bound(exact), rtol=1e-6)


@techniques
def test_plain(technique, rng):
    arrays, mask = technique.draw(rng)
    dy, steps = draw_steps(rng, technique, arrays)
    gradient = with_gradients(technique, mask)
    with jaxnorm.plain():
        program = jax.make_jaxpr(gradient)(arrays, dy)
        plain = jax.jit(gradient, compiler_options=QUICKLY)(arrays, dy)
    found = primitives(program.jaxpr)
    assert not found & FORBIDDEN
    assert not {name for name in found if name.startswith("normalize")}
    *outside, _ = one_of_three(technique, mask, arrays, dy, steps)
    for value, other in zip(*map(jax.tree.leaves, (plain, outside)), strict=True):
        np.testing.assert_allclose(value, other, atol=2e-5 * max(1, np.abs(value).max()), rtol=0)


@techniques
def test_finite_at_zero_and_constant_input(technique, rng):
    arrays, mask = technique.draw(rng)
    dy = np.ones_like(technique.expected(arrays), np.float32)
    steps = [np.ones_like(a) for a in arrays]
    for constant in technique.finite_at:
        same = [np.full(technique.shape, constant, np.float32), *arrays[1:]]
        alone = derivatives(technique)(same, dy, steps)
        masked = one_of_three(technique, mask, same, dy, steps)
        for value in jax.tree.leaves((alone, masked)):
            assert np.isfinite(value).all(), constant


@techniques
def test_little_is_kept_for_the_backward_pass(technique, rng):
    arrays, mask = technique.draw(rng)
    arrays[0] = arrays[0].astype(jnp.bfloat16)
    kept = handed_over(lambda *a: technique.function(*a, **options(mask)), *arrays)
    # In float32 the input alone would be twice its bytes; beside it there are a few numbers for
    # each pool, which in these small examples are at most a third of the elements.
    given = sum(a.nbytes for a in arrays) + (0 if mask is None else mask.nbytes)
    assert kept <= given + 1.4 * arrays[0].nbytes


@techniques
def test_integer_input(technique, rng):
    arrays, _ = technique.draw(rng)
    wrong = [arrays[0].astype(np.int32), *arrays[1:]]
    with pytest.raises(TypeError, match="must have a floating-point or complex dtype, got int32"):
        technique.function(*wrong)
