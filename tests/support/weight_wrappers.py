"""What the tests of the wrappers of weights share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

KEY = jax.random.key(0)
# A float32 matrix product of a few dozen terms of order 1.
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def images(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)
