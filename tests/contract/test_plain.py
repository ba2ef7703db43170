"""Inside `plain()` every norm is its textbook formula, in everyday operations alone."""

import functools
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.jet import jet

import jaxnorm
import jaxnorm.linen as jnn
from tests.contract import registry
from tests.support import programs

# What programs that read jaxprs need not know: all of ours, and how others are kept exact and lean.
FORBIDDEN = {
    "cond",
    "optimization_barrier",
    "checkpoint",
    "remat2",
    "reduce_precision",
    "name",
}


def primitives(jaxpr):
    """The names of the primitives of a jaxpr and of those inside it."""
    found = set()
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        for inner in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            found |= primitives(inner) if hasattr(inner, "eqns") else set()
    return found


@registry.norms("plain")
def test_equals_its_formula_in_everyday_operations(norm, rng):
    """Values and gradients, of two passes: data have a mean of a quarter of their deviation."""
    given = norm.draw(rng, norm.shapes["plain"], mask=True)
    dy = np.float32(rng.normal(size=given[0].shape))
    both = programs.with_gradients(norm)
    with jaxnorm.plain():
        program = jax.make_jaxpr(both)(*given, dy)
        plain = programs.compiled(both, quickly=True)(*given, dy)
    found = primitives(program.jaxpr)
    assert not found & FORBIDDEN
    assert not {name for name in found if name.startswith("normalize")}
    outside = programs.one_of_three(norm)(*given, dy)
    exact = norm.expected(*given)
    np.testing.assert_allclose(plain[0], exact, atol=4e-6 * max(1, np.abs(exact).max() / 3))
    for value, other in zip(jax.tree.leaves(plain), jax.tree.leaves(outside), strict=True):
        np.testing.assert_allclose(value, other, atol=2e-5 * max(1, np.abs(other).max()), rtol=0)


def is_everyday(function, *arguments):
    found = primitives(jax.make_jaxpr(function)(*arguments).jaxpr)
    return not found & FORBIDDEN and not {p for p in found if p.startswith("normalize")}


MODULES = {
    "BatchNorm": lambda: jnn.BatchNorm(),
    "BatchNorm renorm": lambda: jnn.BatchNorm(train_statistics="renorm", num_virtual_batches=2),
    "BatchNorm mixture": lambda: jnn.BatchNorm(train_statistics=0.5, momentum=None),
    "LayerNorm": lambda: jnn.LayerNorm(),
    "RMSNorm": lambda: jnn.RMSNorm(cast_before_gamma=True, dtype=jnp.bfloat16),
    "GroupNorm": lambda: jnn.GroupNorm(num_groups=2),
    "InstanceNorm": lambda: jnn.InstanceNorm(),
    "DecorrelatedBatchNorm": lambda: jnn.DecorrelatedBatchNorm(method="iterative"),
    "WeightNorm": lambda: jnn.WeightNorm(nn.Dense(3)),
    "SpectralNorm": lambda: jnn.SpectralNorm(nn.Dense(3)),
    "WeightStandardization": lambda: jnn.WeightStandardization(nn.Dense(3)),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_in_both_modes(name, rng):
    """Evaluation of batch norm is everyday outside too."""
    module = MODULES[name]()
    x = np.float32(rng.normal(size=(4, 3, 6)))
    modes = [{}]
    if "Batch" in name:
        modes = [{"use_running_average": mode} for mode in (True, False)]
    elif name == "SpectralNorm":
        modes = [{"update_stats": mode} for mode in (True, False)]
    init = functools.partial(module.init, jax.random.key(0), **modes[0])
    variables = jax.eval_shape(init, x)
    for mode in modes:

        def loss(variables, x, mode=mode):
            y, _ = module.apply(variables, x, mutable=["batch_stats"], **mode)
            return y.astype(jnp.float32).sum()

        with jaxnorm.plain():
            assert is_everyday(jax.grad(loss), variables, x)
        evaluates = name.startswith("BatchNorm") and mode["use_running_average"]
        assert is_everyday(jax.grad(loss), variables, x) == evaluates


@pytest.mark.parametrize("kind", ["scan", "cond", "checkpoint", "jit of grad", "vmap"])
def test_bodies_that_jax_traces_by_itself_are_plain_too(kind):
    """The same function objects inside and outside: JAX keeps what it traced of them."""
    x = jnp.arange(8.0).reshape(2, 4)

    def norm(x):
        return jaxnorm.layer_norm(x)

    def body(x, _):
        return norm(x), None

    function = {
        "scan": lambda x: jax.lax.scan(body, x, None, 2),
        "cond": lambda x: jax.lax.switch(x[0, 0].astype(int), [norm, norm], x),
        "checkpoint": jax.checkpoint(norm),
        "jit of grad": jax.jit(jax.grad(lambda x: norm(x)[0, 0])),
        "vmap": jax.vmap(norm),
    }[kind]

    def has_primitives():
        found = primitives(jax.make_jaxpr(function)(x).jaxpr)
        return bool({p for p in found if p.startswith("normalize")})

    assert has_primitives()
    with jaxnorm.plain():
        assert not has_primitives()
    assert has_primitives()


def test_no_cache_mixes_what_was_traced_inside_and_outside():
    x = jnp.arange(8.0).reshape(2, 4)
    traced = []

    @jax.jit
    def norm(x):
        traced.append(None)
        return jaxnorm.layer_norm(x)

    def is_plain():
        return "normalize_tangent" not in str(
            jax.make_jaxpr(lambda x: jax.jvp(norm, (x,), (x,)))(x)
        )

    assert not is_plain()
    with jaxnorm.plain():
        assert is_plain()
        with jaxnorm.plain():
            assert is_plain()
        assert is_plain()
        seen = []
        other = threading.Thread(target=lambda: seen.append(is_plain()))
        other.start()
        other.join()
        assert seen == [False]
    assert not is_plain()
    count = len(traced)
    norm(x)
    with jaxnorm.plain():
        norm(x)
    assert len(traced) == count  # each is traced once, and found again
    with pytest.raises(RuntimeError, match="inside"), jaxnorm.plain():
        raise RuntimeError("inside")
    assert not is_plain()


def test_taylor_mode(rng):
    """jet's coefficients, of which the second is the second derivative along a line."""
    x, v = np.float32(rng.normal(size=(2, 3, 5)))
    norms = {
        "layer": jaxnorm.layer_norm,
        "rms": jaxnorm.rms_norm,
        "batch": lambda x: jaxnorm.batch_norm(x, axis=0)[0],
        "group": lambda x: jaxnorm.group_norm(x, num_groups=1),
        "weight": lambda x: jaxnorm.weight_norm(x, axis=0),
    }
    for norm in norms.values():

        def along(t, norm=norm):
            return norm(x + t * v)

        def both(x, v, t, norm=norm, along=along):
            with jaxnorm.plain():
                y, (first, second) = jet(norm, (x,), ((v, jnp.zeros_like(v)),))
            slope = jax.jacfwd(along)
            return (y, first, second), (along(t), slope(t), jax.jacfwd(slope)(t))

        found, expected = programs.compiled(both, quickly=True)(x, v, 0.0)
        for value, wanted, atol in zip(found, expected, (1e-5, 1e-4, 2e-3), strict=True):
            np.testing.assert_allclose(value, wanted, atol=atol)
