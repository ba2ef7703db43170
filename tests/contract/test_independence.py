"""Contract 11: an example's result is the same to the bit whatever the other examples hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.contract import registry
from tests.support import programs
from tests.support.plans import plan_of, planned_as
from tests.techniques.registry import TECHNIQUES

# What the others become: shifted, far off, constant, not a number.
OTHERS = {
    "shifted": lambda x: x + 50,
    "far": lambda x: 1e4 * x + 1e4,
    "constant": lambda x: np.ones_like(x),
    "nan": lambda x: np.full_like(x, np.nan),
}
# What pools the examples, or nodes of graphs.
POOLED = ("evo_norm_b", "switchable", "batch_instance", "graph", "pair")
OF_EXAMPLES = [t for t in TECHNIQUES if t.public != "demodulate"]  # that is of kernels


def is_apart(norm):
    """Whether each pool lies in one example."""
    if norm.batch_axis is None:
        return False
    shape = norm.shapes["plain"]
    examples = np.unravel_index(norm.pools(shape), shape)[norm.batch_axis]
    return bool((examples == examples[:, :1]).all())


APART = [norm for norm in registry.NORMS if is_apart(norm)]
# Between them they take every path of the core.
CORE = [n for n in APART if n.name in ("layer_norm", "layer_norm_inner", "rms_norm", "group_norm")]


def with_derivatives(function):
    """(x, dx, dy) -> y, its tangent along dx, and the cotangent of x."""

    def run(x, dx, dy):
        y, slope = jax.jvp(function, (x,), (dx,))
        (cotangent,) = jax.vjp(function, x)[1](dy)
        return y, slope, cotangent

    return run


def assert_apart(run, x, rng, axis=0):
    """Asserts that results for the first examples stay when the last example changes."""
    dx, dy = rng.normal(size=(2, *x.shape)).astype(x.dtype)
    first = functools.partial(np.take, indices=range(x.shape[axis] - 1), axis=axis)
    expected = [first(np.asarray(v)) for v in run(x, dx, dy)]
    assert all(np.isfinite(v).all() for v in expected)
    index = (slice(None),) * axis + (-1,)
    for name, change in OTHERS.items():
        other = x.copy()
        other[index] = change(x[index])
        for value, wanted in zip(run(other, dx, dy), expected, strict=True):
            np.testing.assert_array_equal(first(np.asarray(value)), wanted, err_msg=name)


def of_x(norm, rng):
    """`norm` of x alone, and an x of which the rows have means."""
    x, gamma, beta, _ = norm.draw(rng, norm.shapes["plain"])
    return functools.partial(norm, gamma=gamma, beta=beta), x


@pytest.mark.parametrize("norm", APART, ids=[norm.name for norm in APART])
def test_examples_do_not_see_each_other(norm, rng):
    function, x = of_x(norm, rng)
    run = programs.compiled(with_derivatives(function), quickly=norm not in CORE)
    assert_apart(run, x, rng, norm.batch_axis)


@pytest.mark.parametrize("norm", CORE, ids=[norm.name for norm in CORE])
def test_examples_do_not_see_each_other_eagerly(norm, rng):
    function, x = of_x(norm, rng)
    assert_apart(with_derivatives(function), x, rng, norm.batch_axis)


@pytest.mark.parametrize("plan", ["tpu", "tpus", "gpu", "gpus", "cpus"])
@pytest.mark.parametrize("norm", CORE, ids=[norm.name for norm in CORE])
def test_examples_do_not_see_each_other_on_other_platforms(norm, plan, rng):
    function, x = of_x(norm, rng)
    with planned_as(plan_of(plan)):
        run = programs.compiled(with_derivatives(function), quickly=True)
        assert_apart(run, x, rng, norm.batch_axis)
        # In half precision the mean is one number.
        assert_apart(run, np.asarray(x, jnp.bfloat16), rng, norm.batch_axis)


@pytest.mark.parametrize("technique", OF_EXAMPLES, ids=[t.name for t in OF_EXAMPLES])
def test_techniques_do_not_mix_examples(technique, rng):
    (x, *parameters), _ = technique.draw(rng)

    def function(x):
        return technique.function(x, *parameters)

    run = programs.compiled(with_derivatives(function), quickly=True)
    if technique.name.startswith(POOLED):
        with pytest.raises(AssertionError):
            assert_apart(run, x, rng)
    else:
        assert_apart(run, x, rng)


def test_rows_in_one_kernel_do_not_see_each_other(rng):
    """Of so many that XLA on CPU makes one kernel of their norm."""
    norm = next(norm for norm in CORE if norm.name == "layer_norm")
    x = rng.normal(0.5, 2, (5000, 64)).astype(np.float32)
    assert_apart(programs.compiled(with_derivatives(norm), quickly=False), x, rng)
