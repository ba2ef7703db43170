"""Contract 7: every transformation gives what the plain function gives."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from tests import registry

# Two float32 evaluations of values of size 3, each within the contract's 4e-6.
close = functools.partial(chex.assert_trees_all_close, atol=8e-6, rtol=2e-6)


def small(norm, rng, dtype=np.float32, mask=True):
    return norm.draw(rng, norm.shapes["plain"], dtype, mask=mask)


def assert_dx_close(dx, exact):
    """Compares dx, whose largest elements set the size of its errors."""
    exact = np.asarray(exact, np.float32)
    close(dx, exact, atol=8e-6 * max(1.0, float(np.abs(exact).max())))


def loss(norm, weight, x, gamma, beta, mask):
    return jnp.sum(weight * norm(x, gamma, beta, mask))


@registry.norms("transforms")
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

    @jax.jit
    def mapped(*arguments):
        return [jax.vmap(norm, in_axes=axes)(*map(stack, arguments, axes)) for axes in expected]

    close(mapped(xs, gammas, betas, masks), list(map(np.float32, expected.values())))


@registry.norms("transforms")
def test_nested_vmap(norm, rng):
    draws = [small(norm, rng) for _ in range(6)]
    xs = jnp.stack([d[0] for d in draws]).reshape(2, 3, *draws[0][0].shape)
    _, gamma, beta, mask = draws[0]
    inner = jax.vmap(norm, in_axes=(1, None, None, None), out_axes=-1)
    outer = jax.jit(jax.vmap(inner, in_axes=(0, None, None, None)))
    y = outer(jnp.moveaxis(xs, 1, 2), gamma, beta, mask)
    expected = [[norm.expected(x, gamma, beta, mask) for x in row] for row in xs]
    close(jnp.moveaxis(y, -1, 1), np.asarray(expected, np.float32))


@registry.norms("transforms")
def test_vmap_of_grad_and_grad_of_vmap(norm, rng):
    draws = [small(norm, rng) for _ in range(3)]
    x = jnp.stack([d[0] for d in draws], 1)
    _, gamma, beta, mask = draws[0]
    weight = jnp.asarray(rng.normal(size=draws[0][0].shape), jnp.float32)

    @jax.jit
    def both(x, gamma, beta):
        gradient = jax.grad(functools.partial(loss, norm, weight), (0, 1, 2))
        per_example = jax.vmap(gradient, in_axes=(1, None, None, None))(x, gamma, beta, mask)

        def total(x, gamma, beta):
            mapped = jax.vmap(norm, in_axes=(1, None, None, None))(x, gamma, beta, mask)
            return jnp.sum(mapped * jnp.broadcast_to(weight, mapped.shape))

        return per_example, jax.grad(total, (0, 1, 2))(x, gamma, beta)

    (dx, *dparams), (dx_total, *dparams_total) = both(x, gamma, beta)
    exact = [norm.expected_vjp(d[0], gamma, beta, mask, weight) for d in draws]
    assert_dx_close(dx, np.stack([e[0] for e in exact]))
    assert_dx_close(jnp.moveaxis(dx_total, 1, 0), dx)
    for i, (each, total) in enumerate(zip(dparams, dparams_total, strict=True), 1):
        if each is not None:
            close(each, np.stack([e[i] for e in exact]).astype(np.float32), atol=1e-4)
            close(total, each.sum(0), atol=1e-4)


@registry.norms("transforms")
def test_forward_mode_is_the_transpose_of_reverse_mode(norm, rng):
    x, gamma, beta, mask = small(norm, rng)
    primals = (x, gamma, beta)
    draw = lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype)  # noqa: E731
    tangents, dy = jax.tree.map(draw, primals), draw(x)
    f = lambda *args: norm(*args, mask)  # noqa: E731

    @jax.jit
    def forward(primals, tangents):
        y, linear = jax.linearize(f, *primals)
        return jax.jvp(f, primals, tangents), (y, linear(*tangents))

    (y, tangent), linearized = forward(primals, tangents)
    chex.assert_trees_all_close(linearized, (y, tangent), atol=4e-6, rtol=4e-6)
    close(y, np.float32(norm.expected(x, gamma, beta, mask)))
    # <dy, J v> = <J^T dy, v>, with J^T from the closed form.
    exact = norm.expected_vjp(x, gamma, beta, mask, dy)
    terms = [
        np.asarray(e * np.asarray(t)).ravel()
        for e, t in zip(exact, tangents, strict=True)
        if t is not None
    ]
    terms = np.concatenate(terms)
    seen = float(np.sum(np.asarray(dy, np.float64) * np.asarray(tangent)))
    np.testing.assert_allclose(seen, terms.sum(), atol=4e-6 * np.abs(terms).sum())


@registry.norms("second_order", variants=False)
def test_second_order_in_both_modes(norm, rng):
    # Without a mask; those with one are in test_hessians_agree and in test_contract_masks.py.
    with jax.enable_x64(True):
        x, gamma, beta, _ = norm.draw(rng, norm.shapes["five"], np.float64)
        arguments = [jnp.asarray(a, jnp.float64) for a in (x, gamma, beta) if a is not None]

        @jax.jit
        def f(*arguments):
            given = iter(arguments)
            x_gamma_beta = [None if a is None else next(given) for a in (x, gamma, beta)]
            # A larger epsilon keeps the third derivatives small, which bound the error of the
            # finite differences.
            return norm(*x_gamma_beta, epsilon=0.1)

        check_grads(f, arguments, order=2, modes=("fwd", "rev"), atol=1e-4, rtol=1e-4)


@registry.norms("second_order", variants=False)
def test_hessians_agree(norm, rng):
    x, gamma, beta, mask = norm.draw(rng, norm.shapes["five"], mask=True)
    weight = jnp.asarray(rng.normal(size=x.shape), jnp.float32)

    @jax.jit
    def hessians(x):
        f = lambda x: loss(norm, weight, x, gamma, beta, mask)  # noqa: E731
        jacobians = [
            jacobian(lambda x: norm(x, gamma, beta, mask)) for jacobian in (jax.jacfwd, jax.jacrev)
        ]
        second = [jax.jacfwd(jax.grad(f)), jax.jacrev(jax.grad(f)), jax.jacrev(jax.jacfwd(f))]
        return [j(x) for j in jacobians], [h(x) for h in [jax.hessian(f), *second]]

    first, second = hessians(x)
    chex.assert_trees_all_close(*first, atol=8e-6, rtol=8e-6)
    scale = max(1.0, float(jnp.abs(second[0]).max()))
    for other in second[1:]:
        chex.assert_trees_all_close(second[0] / scale, other / scale, atol=2e-5)


@registry.norms("transforms", variants=False)
def test_remat_and_scan_over_layers(norm, rng):
    # In float64, as three layers amplify a rounding by the product of their slopes.
    with jax.enable_x64(True):
        check_remat_and_scan(norm, *small(norm, rng, np.float64))


def check_remat_and_scan(norm, x, gamma, beta, mask):
    stacked = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p, p + 0.1]), (gamma, beta))

    def layer(x, parameters):
        return norm(jnp.tanh(x) + x, *parameters, mask)

    def scanned(step, x, stacked):
        return jax.lax.scan(lambda x, p: (step(x, p), None), x, stacked, length=3)[0]

    def looped(x, stacked):
        for i in range(3):
            x = layer(x, jax.tree.map(lambda p, i=i: p[i], stacked))
        return x

    @jax.jit
    def all_ways(x, stacked):
        def derivatives(f):
            return jax.value_and_grad(lambda *args: jnp.sum(jnp.sin(f(*args))), (0, 1))(x, stacked)

        return [
            derivatives(looped),
            derivatives(functools.partial(scanned, layer)),
            derivatives(functools.partial(scanned, jax.checkpoint(layer))),
        ]

    plain, scan, remat = all_ways(x, stacked)
    # The gradients of gamma and beta are float32, as these are.
    chex.assert_trees_all_close(plain, scan, remat, atol=1e-6, rtol=1e-6)


@registry.norms("transforms")
def test_eval_shape(norm, rng):
    x, gamma, beta, mask = small(norm, rng, jnp.bfloat16)
    result = jax.eval_shape(norm, x, gamma, beta, mask)
    assert (result.shape, result.dtype) == (x.shape, jnp.bfloat16)


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
    for part in (x,) if norm.batch_axis is None else (x, x[:6]):
        y, dx = revived.call(part)
        close(y, np.float32(norm.expected(part, gamma, beta)))
        exact = norm.expected_vjp(part, gamma, beta, None, jnp.cos(part))[0]
        assert_dx_close(dx, exact)
