"""Statistics that come back from a checkpoint as mappings, as without a target they do."""

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as checkpoint
import pytest

import jaxnorm
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx
from tests.contract.test_errors import message

X = jnp.asarray(np.random.default_rng(0).normal(3, 2, (4, 5, 3)), jnp.float32)
MOMENTS = jaxnorm.moments(X, axis=(0, 1), mask=jnp.ones((4, 5, 1), bool))
_, WHITENING = jaxnorm.whiten(X, axis=(0, 1))
AXES = {"axis": (0, 1), "epsilon": 1e-5}
USES = {
    "standardize": lambda m: jaxnorm.standardize(X, m, **AXES),
    "unstandardize": lambda m: jaxnorm.unstandardize(X, m, **AXES),
    "mix_moments": lambda m: (
        jaxnorm.mix_moments(m, MOMENTS, weight=0.3),
        jaxnorm.mix_moments(MOMENTS, m, weight=0.3),
    ),
    "update_moments": lambda m: (
        jaxnorm.update_moments(m, MOMENTS, momentum=0.9),
        jaxnorm.update_moments(MOMENTS, m, momentum=0.9),
    ),
    "merge_moments": lambda m: jaxnorm.merge_moments(m, MOMENTS, m),
    "batch_norm_step": lambda m: (
        jaxnorm.batch_norm_step(X, m, training=True, axis=(0, 1)),
        jaxnorm.batch_norm_step(X, m, training=False, axis=(0, 1)),
    ),
    "batch_renorm": lambda m: jaxnorm.batch_renorm(X, m, r_max=3.0, d_max=5.0, axis=(0, 1)),
    "blended_batch_norm": lambda m: jaxnorm.blended_batch_norm(X, m, weight=0.3, axis=(0, 1)),
    "cumulative_norm": lambda m: jaxnorm.cumulative_norm(
        X, axis=0, initial=jax.tree.map(lambda v: v, m)
    ),
    "batch_instance_norm": lambda m: jaxnorm.batch_instance_norm(X, 0.5, batch_moments=m),
    "RevIN": lambda m: jnx.RevIN(3).denormalize(X, moments=_for_each_series(m)),
    "RevIN, linen": lambda m: jnn.RevIN().init_with_output(
        jax.random.key(0), X, moments=_for_each_series(m), method="denormalize"
    )[0],
    "decorrelate": lambda m: jaxnorm.decorrelate(X, m, axis=(0, 1)),
    "update_whitening": lambda m: (
        jaxnorm.update_whitening(m, WHITENING, momentum=0.9),
        jaxnorm.update_whitening(WHITENING, m, momentum=0.9),
    ),
}


def _for_each_series(m):
    return jax.tree.map(lambda value: jnp.broadcast_to(value, (4, 3)), m)


def _through_orbax(value, folder):
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "step", value)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "step")


def _through_msgpack(value):
    return flax.serialization.msgpack_restore(flax.serialization.to_bytes(value))


@pytest.mark.parametrize("name", USES)
def test_mappings_are_taken(name):
    value = WHITENING if "decor" in name or "whiten" in name else MOMENTS
    restored = _through_msgpack(value)
    assert type(restored) is dict
    backwards = dict(reversed(restored.items()))
    chex.assert_trees_all_equal(USES[name](backwards), USES[name](value))


@pytest.mark.filterwarnings("ignore")  # orbax's own
def test_as_orbax_gives_them_back(tmp_path):
    restored = _through_orbax({"moments": MOMENTS, "whitening": WHITENING}, tmp_path)
    assert type(restored["moments"]) is dict
    for name, value in (("standardize", "moments"), ("decorrelate", "whitening")):
        given = {"moments": MOMENTS, "whitening": WHITENING}[value]
        chex.assert_trees_all_equal(USES[name](restored[value]), USES[name](given))


def test_other_mappings():
    text = (
        "moments must be Moments, or a mapping of mean, var, count as one comes back from a "
        "checkpoint, got a mapping of mean, var."
    )
    with pytest.raises(TypeError, match=message(text)):
        jaxnorm.standardize(X, {"mean": X, "var": X}, **AXES)
    with pytest.raises(TypeError, match="running must be Moments, or a mapping"):
        jaxnorm.batch_norm_step(X, {"0": X, "1": X, "2": X}, training=True, axis=0)
    with pytest.raises(TypeError, match="whitening must be Whitening, or a mapping of mean, proj"):
        jaxnorm.decorrelate(X, {"mean": X}, axis=(0, 1))
