"""Contract 7: every transformation gives what the plain function gives."""

import functools
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np

from tests.contract import registry
from tests.contract.test_masks import assert_blind
from tests.support import programs

quickly = functools.partial(jax.jit, compiler_options=programs.QUICKLY)

# Two float32 evaluations of values of size 3, each within the contract's 4e-6.
close = functools.partial(chex.assert_trees_all_close, atol=8e-6, rtol=2e-6)


def small(norm, rng, dtype=np.float32, mask=True):
    return norm.draw(rng, norm.shapes["plain"], dtype, mask=mask)


def assert_dx_close(dx, exact):
    """Compares dx, whose largest elements set the size of its errors."""
    exact = np.asarray(exact, np.float32)
    close(dx, exact, atol=8e-6 * max(1.0, float(np.abs(exact).max())))


@registry.norms("transforms", core=True)
def test_vmap_over_any_axis_with_any_argument_shared(norm, rng):
    draws = [small(norm, rng) for _ in range(3)]
    xs, gammas, betas, masks = zip(*draws, strict=True)
    rank = xs[0].ndim
    expected = {}
    patterns = [(0, None, None, None), (rank, 0, None, 0), (1, None, 1, None), (-1, 1, 0, -1)]
    patterns += [(None, 0, None, None), (None, None, 0, None), (None, None, None, 0)]

    def stack(values, axis):
        if values[0] is None:
            return None
        return values[0] if axis is None else jnp.stack(values, axis)

    for pattern in patterns:
        # An axis is in_axes of an argument that the function does not take: None.
        axes = tuple(
            None if values[0] is None else axis
            for values, axis in zip((xs, gammas, betas, masks), pattern, strict=True)
        )
        if axes == (None,) * 4:
            continue
        expected[axes] = np.stack(
            [
                norm.expected(
                    *(v[0] if a is None else v[i] for v, a in zip(draw, axes, strict=True))
                )
                for i, draw in enumerate([(xs, gammas, betas, masks)] * 3)
            ]
        )

    @quickly
    def mapped(*arguments):
        return [jax.vmap(norm, in_axes=axes)(*map(stack, arguments, axes)) for axes in expected]

    close(mapped(xs, gammas, betas, masks), list(map(np.float32, expected.values())))


@registry.norms("transforms", core=True)
def test_nested_vmap(norm, rng):
    draws = [small(norm, rng) for _ in range(6)]
    xs = np.stack([d[0] for d in draws]).reshape(2, 3, *draws[0][0].shape)
    _, gamma, beta, mask = draws[0]
    inner = jax.vmap(norm, in_axes=(1, None, None, None), out_axes=-1)
    outer = quickly(jax.vmap(inner, in_axes=(0, None, None, None)))
    y = outer(np.moveaxis(xs, 1, 2), gamma, beta, mask)
    expected = [[norm.expected(x, gamma, beta, mask) for x in row] for row in xs]
    close(np.moveaxis(y, -1, 1), np.asarray(expected, np.float32))


@registry.norms("transforms")
def test_vmap_of_grad_and_grad_of_vmap(norm, rng):
    # gamma is shared; masks too, over examples that lie along an axis of their own.
    draws = [small(norm, rng) for _ in range(3)]
    x = np.stack([d[0] for d in draws], 1)
    _, gamma, beta, mask = draws[0]
    dy = rng.normal(size=draws[0][0].shape).astype(np.float32)

    def total(x, gamma, beta):
        y, vjp = jax.vjp(jax.vmap(norm, in_axes=(1, None, None, None)), x, gamma, beta, mask)
        return y, vjp(jnp.broadcast_to(dy, y.shape))[:3]

    y, (dx, *parameters) = programs.mapped(norm)(x, gamma, beta, mask, dy)
    exact = [norm.expected_vjp(d[0], gamma, beta, mask, dy) for d in draws]
    close(y, np.float32([norm.expected(d[0], gamma, beta, mask) for d in draws]))
    assert_dx_close(dx, np.stack([e[0] for e in exact]))
    for i, each in enumerate(parameters, 1):
        if each is not None:
            close(each, np.stack([e[i] for e in exact]).astype(np.float32), atol=1e-4)
    if norm.name in registry.CORE:
        _, (dx_total, *parameters_total) = quickly(total)(x, gamma, beta)
        assert_dx_close(np.moveaxis(dx_total, 1, 0), dx)
        for each, whole in zip(parameters, parameters_total, strict=True):
            if each is not None:
                close(whole, np.sum(each, 0), atol=1e-4)


@registry.norms("transforms", core=True)
def test_linearize_is_jvp(norm, rng):
    x, gamma, beta, mask = small(norm, rng)
    primals = (x, gamma, beta)
    tangents = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), primals)
    f = lambda *args: norm(*args, mask)  # noqa: E731

    @quickly
    def forward(primals, tangents):
        y, linear = jax.linearize(f, *primals)
        return jax.jvp(f, primals, tangents), (y, linear(*tangents))

    chex.assert_trees_all_close(*forward(primals, tangents), atol=4e-6, rtol=4e-6)


@registry.norms("transforms")
def test_first_and_second_derivatives(norm, rng):
    """In both modes, in float64: values and tangents, and where it applies, derivatives of those.

    The closed form gives the first ones; its differences along a step give the second ones.
    """
    second_order = "second_order" not in norm.exempt
    with jax.enable_x64(True):
        x, gamma, beta, mask = norm.draw(rng, norm.shapes["five"], np.float64, mask=True)
        gamma, beta = (None if p is None else p.astype(np.float64) for p in (gamma, beta))
        primals = (x, gamma, beta)
        dy, *tangents = (None if a is None else rng.normal(size=a.shape) for a in (x, *primals))
        ways = ("forward over reverse", "reverse over reverse", "reverse over forward")
        if norm.name not in registry.CORE:
            ways = ways[:2]
        program = programs.first_and_second(norm, ways if second_order else ())
        compiled = quickly(program)
        given = (*primals, mask, dy, tuple(tangents))
        if mask is None:
            y, tangent, curvatures = compiled(*given)
        else:
            y, tangent, curvatures = assert_blind(compiled, *given)
        tangent = np.asarray(tangent)
        np.testing.assert_allclose(y, norm.expected(*primals, mask), atol=1e-12)
        # <dy, J v> = <J^T dy, v>, with J^T from the closed form.
        exact = norm.expected_vjp(*primals, mask, dy)
        terms = np.concatenate([np.ravel(e * t) for e, t in pairs(exact, tangents)])
        assert abs(np.sum(dy * tangent) - terms.sum()) <= 1e-12 * np.abs(terms).sum()
        if second_order:
            by_steps = differences(norm, primals, tangents, mask, dy)
            scale = max(1.0, *(np.abs(e).max() for e in by_steps if e is not None))
            for found in curvatures:
                for value, wanted in pairs(found, by_steps):
                    np.testing.assert_allclose(value, wanted, atol=1e-6 * scale, rtol=0)


def pairs(left, right):
    """The pairs of those given."""
    return [(a, b) for a, b in zip(left, right, strict=True) if b is not None]


def differences(norm, primals, tangents, mask, dy, step=1e-5):
    """The derivative of the closed form's gradients along the tangents."""

    def gradients(step):
        moved = (
            None if p is None else p + step * t for p, t in zip(primals, tangents, strict=True)
        )
        return norm.expected_vjp(*moved, mask, dy)

    return [
        None if ahead is None else (ahead - behind) / (2 * step)
        for ahead, behind in zip(gradients(step), gradients(-step), strict=True)
    ]


@registry.norms("transforms")
def test_remat_and_scan_over_layers(norm, rng):
    """Layers in a scan that keeps their inputs alone, against the closed form layer by layer."""
    # In float64, as three layers amplify a rounding by the product of their slopes.
    with jax.enable_x64(True):
        x, gamma, beta, mask = norm.draw(rng, norm.shapes["five"], np.float64, mask=True)
        stacked = jax.tree.map(lambda p: np.stack([p, 0.5 * p, p + np.float32(0.1)]), (gamma, beta))

        @jax.checkpoint
        def layer(x, parameters):
            return norm(jnp.tanh(x) + x, *parameters, mask), None

        @quickly
        def scanned(x, stacked):
            return jax.value_and_grad(
                lambda *given: jnp.sum(jnp.sin(jax.lax.scan(layer, *given, length=3)[0])), (0, 1)
            )(x, stacked)

        value, (dx, slopes) = jax.tree.map(np.asarray, scanned(x, stacked))
        inputs, parameters = [np.asarray(x)], []
        for i in range(3):
            parameters.append(jax.tree.map(operator.itemgetter(i), stacked))
            before = np.tanh(inputs[-1]) + inputs[-1]
            inputs.append(norm.expected(before, *parameters[-1], mask))
        np.testing.assert_allclose(value, np.sin(inputs[-1]).sum(), atol=1e-6, rtol=1e-6)
        dy = np.cos(inputs[-1])
        for i in reversed(range(3)):
            before = np.tanh(inputs[i]) + inputs[i]
            exact = norm.expected_vjp(before, *parameters[i], mask, dy)
            for found, wanted in pairs(slopes, exact[1:]):
                # The gradients of gamma and beta are float32, as these are.
                np.testing.assert_allclose(found[i], wanted, atol=1e-6, rtol=1e-6)
            dy = exact[0] * (2 - np.tanh(inputs[i]) ** 2)
        np.testing.assert_allclose(dx, dy, atol=1e-6, rtol=1e-6)


@registry.norms("transforms")
def test_export_with_a_symbolic_batch_size(norm, rng):
    x, gamma, beta, _ = small(norm, rng)
    sizes = ", ".join(
        norm.batch_size if a == norm.batch_axis else str(s) for a, s in enumerate(x.shape)
    )
    symbolic = jax.ShapeDtypeStruct(jax.export.symbolic_shape(sizes), x.dtype)

    def forward_and_gradient(x):
        y, vjp = jax.vjp(lambda x: norm(x, gamma, beta), x)
        return y, vjp(jnp.cos(x))[0]

    exported = jax.export.export(jax.jit(forward_and_gradient))(symbolic)
    revived = jax.export.deserialize(exported.serialize())
    part = x if norm.batch_axis is None else x[:6]
    y, dx = quickly(revived.call)(part)
    close(y, np.float32(norm.expected(part, gamma, beta)))
    exact = norm.expected_vjp(part, gamma, beta, None, np.cos(part))[0]
    assert_dx_close(dx, exact)
