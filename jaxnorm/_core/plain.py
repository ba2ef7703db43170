"""Textbook formulas in everyday operations, for programs that read other programs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

# Part of what JAX looks traced and compiled functions up by, in every thread for itself.
_plain = jax.make_user_context(False)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Computes what is traced inside from its textbook formula, by everyday JAX operations.

    mean = sum(x) / n, var = sum(|x - mean|^2) / n, y = (x - mean) / sqrt(var + epsilon) * gamma +
    beta: no primitive of jaxnorm's, no `cond`, optimization barrier, `checkpoint` or
    `reduce_precision`. For programs that read jaxprs and know only JAX's own operations: exporters
    to ONNX, Taylor mode (`jax.experimental.jet`), bound propagation, `checkify`. It holds for every
    function and module of jaxnorm, in this thread, nests, and what was traced outside is not used
    again inside, nor the other way round.

    It costs memory: the backward pass keeps the input several times, in float32. And exactness:
    where the mean is more than 1e3 standard deviations the result is off by more than 1e-4, since
    a mean that is rounded to float32 is subtracted once.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> rms_norm = lambda x: jaxnorm.rms_norm(x, epsilon=4.0)
      >>> with jaxnorm.plain():
      ...     program = jax.make_jaxpr(rms_norm)(jnp.array([2., 4.]))
      >>> "rsqrt" in str(program), "checkpoint" in str(program)
      (True, False)
    """
    with _plain(True):
        yield


def is_plain() -> bool:
    """Whether this is inside `plain()`."""
    return _plain.value
