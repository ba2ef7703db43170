"""`everywhere()`: what computes by jaxnorm inside, whatever is around the norms, and what does not.

At a mean of a million standard deviations flax's results are far off, so the results tell.
"""

import threading

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm.drop_in.linen as drop_in
import jaxnorm.linen as jnn
from jaxnorm.tools import freeze

pytestmark = pytest.mark.quickly_compiled

KEY = jax.random.key(0)


@pytest.fixture
def x(rng):
    return rng.normal(1e6, 1, (4, 16)).astype(np.float32)


def is_exact(y, x, axis=-1, epsilon=1e-6):
    wide = np.asarray(x, np.float64)
    center, var = wide.mean(axis, keepdims=True), wide.var(axis, keepdims=True)
    error = np.abs(np.asarray(y) - (wide - center) / np.sqrt(var + epsilon)).max()
    assert error < 4e-6 or error > 1e-3  # nothing in between
    return bool(error < 4e-6)


class Exact(nn.LayerNorm):
    """A class that changes what a norm is called, not what it computes."""

    use_fast_variance: bool = True


class Doubled(nn.LayerNorm):
    """A class that computes by flax's own method, and more."""

    def __call__(self, x):
        return 2 * super().__call__(x)


class Constant(nn.LayerNorm):
    """A class that computes by itself."""

    @nn.compact
    def __call__(self, x):
        return jnp.full_like(x, 7)


def scanned(x):
    """A norm that is made inside each step of a loop."""

    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x, nn.LayerNorm()(x)

    loop = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
    return loop()(x, None)[1][1]


def remat(x):
    return nn.remat(nn.LayerNorm)()(x)


def mapped(x):
    rows = nn.vmap(nn.LayerNorm, variable_axes={"params": None}, split_rngs={"params": False})
    return rows()(x)


def compiled(x):
    return nn.jit(nn.LayerNorm)()(x)


def within_attention(x):
    """The norms that attention makes for queries and keys."""
    attention = nn.MultiHeadDotProductAttention(num_heads=1, normalize_qk=True)
    return attention(x[None])[0]


class Net(nn.Module):
    make: object

    @nn.compact
    def __call__(self, x):
        return self.make(x)


@pytest.mark.parametrize("make", [scanned, remat, mapped, compiled], ids=lambda f: f.__name__)
def test_norms_within_lifted_transformations_are_exact(make, x):
    net = Net(make)
    with drop_in.everywhere():
        y, variables = jax.jit(net.init_with_output)(KEY, x)
        gradient = jax.jit(jax.grad(lambda x: (net.apply(variables, x) * x[:1]).sum()))(x)
    assert is_exact(y, x) and np.isfinite(gradient).all()
    z, outside = jax.jit(net.init_with_output)(KEY, x)
    jax.tree.map(np.testing.assert_array_equal, outside, variables)
    assert not is_exact(z, x)


def test_classes_that_derive_from_norms(x):
    with drop_in.everywhere():
        exact, doubled, constant = (
            norm.init_with_output(KEY, x)[0] for norm in (Exact(), Doubled(), Constant())
        )
    assert is_exact(exact, x) and is_exact(doubled / 2, x) and (constant == 7).all()


def test_norms_inside_layers_of_flax_are_found(x, monkeypatch):
    seen, body = [], drop_in._layer_norm
    method = next(m for m, f in drop_in.BODIES.items() if f is body)
    watch = lambda module, x, **options: seen.append(module.name) or body(module, x, **options)  # noqa: E731
    monkeypatch.setitem(drop_in.BODIES, method, watch)
    with drop_in.everywhere():
        jax.eval_shape(Net(within_attention).init, KEY, x)
    assert seen == ["query_ln", "key_ln"]


def test_what_is_compiled_outside_is_not_used_inside_nor_the_other_way_round(x):
    norm = nn.BatchNorm(use_running_average=False, momentum=0.5)
    variables = norm.init(KEY, x)
    step = jax.jit(lambda v, x: norm.apply(v, x, mutable=["batch_stats"]))
    found = [step(variables, x)]
    with drop_in.everywhere():
        found.append(step(variables, x))
        with drop_in.everywhere():
            found.append(step(variables, x))
        found.append(step(variables, x))
        # As each thread enters it for itself, another has not.
        thread = threading.Thread(target=lambda: found.append(step(variables, x)))
        thread.start()
        thread.join()
    found.append(step(variables, x))
    inside = [is_exact(y, x, 0, 1e-5) for y, _ in found]
    assert inside == [False, True, True, True, False, False]
    mean, var = found[1][1]["batch_stats"].values()
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, wide.mean(0) / 2, rtol=1e-6)
    np.testing.assert_allclose(var, (1 + wide.var(0)) / 2, rtol=1e-5)


def test_it_ends_with_an_error_and_decorates(x):
    norm = nn.LayerNorm()
    with pytest.raises(RuntimeError), drop_in.everywhere():
        raise RuntimeError
    assert not is_exact(norm.init_with_output(KEY, x)[0], x)

    @drop_in.everywhere()
    def run():
        return norm.init_with_output(KEY, x)[0]

    assert is_exact(run(), x) and is_exact(run(), x)
    assert not is_exact(norm.init_with_output(KEY, x)[0], x)


def test_interceptors_inside_see_the_norms(x):
    """Such as that of `freeze`, which would otherwise freeze nothing, without a word."""
    norm, names = nn.BatchNorm(use_running_average=False), []
    variables = norm.init(KEY, x)

    def note(next_function, args, kwargs, context):
        names.append(context.method_name)
        return next_function(*args, **kwargs)

    with drop_in.everywhere(), freeze("*"), nn.intercept_methods(note):
        y, new = norm.apply(variables, x, mutable=["batch_stats"])
    assert names == ["__call__"]
    chex.assert_trees_all_equal(new["batch_stats"], variables["batch_stats"])
    with drop_in.everywhere(), nn.intercept_methods(note):
        y, new = norm.apply(variables, x, mutable=["batch_stats"])
    expected = drop_in.BatchNorm(use_running_average=False).apply(variables, x, mutable=True)
    chex.assert_trees_all_equal((y, new["batch_stats"]), (expected[0], expected[1]["batch_stats"]))


def test_other_modules_are_as_they_were(x):
    """Those of jaxnorm, the drop-ins, and interceptors that were there before."""
    names = []

    def note(next_function, args, kwargs, context):
        names.append((type(context.module).__module__, context.method_name))
        return next_function(*args, **kwargs)

    norms = jnn.LayerNorm(), drop_in.LayerNorm(), nn.LayerNorm(), nn.Dense(3)
    with nn.intercept_methods(note):
        before = [norm.init_with_output(KEY, x) for norm in norms]
        with drop_in.everywhere():
            inside = [norm.init_with_output(KEY, x) for norm in norms]
    assert names[: len(names) // 2] == names[len(names) // 2 :]
    for i in (0, 1, 3):
        jax.tree.map(np.testing.assert_array_equal, before[i], inside[i])
    assert is_exact(inside[2][0], x) and not is_exact(before[2][0], x)
