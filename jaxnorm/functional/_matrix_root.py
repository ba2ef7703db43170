"""(A + epsilon I)^(-1/2) of positive semidefinite matrices, with derivatives of every order."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._core import residuals

# GPUs and TPUs multiply float32 matrices in a narrower format unless told otherwise.
matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def inverse_root(a: jax.Array, epsilon: float) -> jax.Array:
    """Returns (a + epsilon I)^(-1/2), Hermitian, by eigenvalues.

    The derivative is that of the matrix function, not of the eigenvectors, which have none where
    eigenvalues repeat: with S = (a + epsilon I)^(1/2) it solves S dS + dS S = da, and that of
    the result P = S^-1 is -P dS P (Daleckii & Krein 1965). In the directions in which
    a + epsilon I is 0 the result and its derivative are 0.

    Args:
      a: Hermitian matrices [..., n, n]; eigenvalues below -epsilon / 2 are rounding errors.
      epsilon: added to the eigenvalues.
    """
    squares, vectors = jnp.linalg.eigh(lax.stop_gradient(a))
    values = jnp.sqrt(jnp.maximum(squares + epsilon, epsilon / 2))
    # All that is kept for the backward pass: both roots are made of them again.
    return _roots(a, residuals.save(vectors), residuals.save(values))[0]


@jax.custom_jvp
def _roots(a, vectors, values):
    """Returns the inverse root and the root of `a`, whose eigenvectors are given as constants."""
    del a  # the derivative is with respect to it
    positive = values > 0
    inverse = jnp.where(positive, 1 / jnp.where(positive, values, 1), 0)
    return _compose(vectors, inverse), _compose(vectors, values)


@_roots.defjvp
def _roots_jvp(primals, tangents):
    a, vectors, values = primals
    inverse, root = _roots(a, vectors, values)
    droot = _solve_lyapunov(root, tangents[0], vectors, values)
    return (inverse, root), (-matmul(matmul(inverse, droot), inverse), droot)


def _solve_lyapunov(root, b, vectors, values) -> jax.Array:
    """Returns X such that root X + X root = b; linear in b, differentiable in both."""
    sums = values[..., :, None] + values[..., None, :]
    positive = sums > 0
    weights = jnp.where(positive, 1 / jnp.where(positive, sums, 1), 0)

    def solve(vectors, b):
        inner = matmul(matmul(_adjoint(vectors), b), vectors)
        return matmul(matmul(vectors, inner * weights.astype(b.dtype)), _adjoint(vectors))

    return lax.custom_linear_solve(
        lambda x: matmul(root, x) + matmul(x, root),
        b,
        solve=lambda _, b: solve(vectors, b),
        # The transposed equation has the transposed, that is the conjugated root.
        transpose_solve=lambda _, b: solve(vectors.conj(), b),
    )


def _compose(vectors, values) -> jax.Array:
    return matmul(vectors * values[..., None, :].astype(vectors.dtype), _adjoint(vectors))


def _adjoint(matrix: jax.Array) -> jax.Array:
    return jnp.swapaxes(matrix, -1, -2).conj()


def inverse_root_by_iteration(a: jax.Array, epsilon: float, num_iterations: int) -> jax.Array:
    """Returns (a + epsilon I)^(-1/2), Hermitian, by Newton's iteration.

    With A = (a + epsilon I) / trace: P <- (3 P - P^3 A) / 2 from P = I, then P / sqrt(trace), in
    the coupled form, which does not amplify rounding errors: with Y = A P,
    W = (3 I - P Y) / 2, Y <- Y W, P <- W P (Higham 2008, equation 6.35).
    """
    eye = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
    a = a + epsilon * eye
    trace = jnp.trace(a, axis1=-2, axis2=-1).real[..., None, None]
    positive = trace > 0
    trace = jnp.where(positive, trace, 1)

    def step(_, state):
        y, p = state
        w = (3 * eye - matmul(p, y)) / 2
        return matmul(y, w), matmul(w, p)

    _, p = lax.fori_loop(0, num_iterations, step, (a / trace.astype(a.dtype), eye))
    scale = jnp.where(positive, lax.rsqrt(trace), 0)
    return p * scale.astype(a.dtype)
