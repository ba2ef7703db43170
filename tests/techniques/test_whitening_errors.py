"""The errors that whitening raises."""

import functools
import re

import jax.numpy as jnp
import pytest

import jaxnorm


def raises(error, message):
    # JAX may add a note on its own line.
    return pytest.raises(error, match="^" + re.escape(message) + "(\n|$)")


def test_errors():
    x = jnp.ones((5, 4))
    whiten = functools.partial(jaxnorm.whiten, axis=0)
    with raises(
        TypeError,
        "x must have a floating-point or complex dtype, got int32; convert it first, for example "
        "with x.astype(jnp.float32).",
    ):
        whiten(jnp.ones((5, 4), jnp.int32))
    with raises(
        ValueError,
        "axis=(0, 1) and feature_axes=-1 of the input of shape (5, 4) have an axis in common; "
        "examples are pooled, units are not.",
    ):
        whiten(x, axis=(0, 1))
    with raises(
        ValueError,
        "num_groups=3 does not divide the 4 units on axes (1,) of the input of shape (5, 4); "
        "choose a divisor of 4.",
    ):
        whiten(x, num_groups=3)
    with raises(ValueError, 'method must be "zca" or "iterative", got \'pca\'.'):
        whiten(x, method="pca")
    with raises(ValueError, "num_iterations must be at least 0, got -1."):
        whiten(x, num_iterations=-1)
    with raises(ValueError, "epsilon must be finite and at least 0, got -1."):
        whiten(x, epsilon=-1)
    with raises(
        ValueError,
        "mask of shape (5, 4) varies along feature_axes=(1,) of the input of shape (5, 4); "
        "whitening combines the units of an example, so that it needs all or none of them: give "
        "the mask size 1 there.",
    ):
        whiten(x, mask=jnp.ones((5, 4), bool))
    with raises(
        ValueError,
        "gamma of shape (5,) does not fit an input of shape (5, 4): expected (4,), the sizes of "
        "the feature axes (1,) in ascending order, or rank 2 with every size 1 or the input's, or "
        "one value of rank 0. Pass feature_axes to say which axes gamma varies along.",
    ):
        whiten(x, jnp.ones(5))
    with raises(
        NameError,
        "axis_name='d' is not bound here. Call this inside jax.vmap or jax.shard_map with an axis "
        "of that name, or leave axis_name out: a jitted function of sharded arrays pools over all "
        "devices without it.",
    ):
        whiten(x, axis_name="d")
    for mean, projection, name, got, expected in (
        (jnp.ones(3), jnp.ones((2, 2, 2)), "mean", (3,), (4,)),
        (jnp.ones(4), jnp.ones((2, 3, 3)), "projection", (2, 3, 3), (2, 2, 2)),
    ):
        with raises(
            ValueError,
            f"whitening.{name} of shape {got} does not fit an input of shape (5, 4) pooled over "
            f"axes (0,), with units on axes (1,): expected {expected}.",
        ):
            jaxnorm.decorrelate(x, (mean, projection, 1.0), axis=0)
    start = jaxnorm.Whitening(jnp.zeros(4), jnp.eye(4)[None], jnp.zeros(()))
    with raises(ValueError, "momentum must lie in [0, 1], got 2."):
        jaxnorm.update_whitening(start, start, momentum=2)
