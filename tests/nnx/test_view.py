"""The modes of modules: views, `train`, `eval` and `set_attributes` act alike."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm.drop_in.nnx
import jaxnorm.nnx as jnx
from tests.nnx.twins import values

pytestmark = pytest.mark.quickly_compiled

X = np.random.default_rng(0).normal(5.0, 2.0, (8, 4)).astype(np.float32)


def spectral(num_features):
    layer = nnx.Linear(num_features, num_features, rngs=nnx.Rngs(0))
    return jnx.SpectralNorm(layer, rngs=nnx.Rngs(1), warmup_steps=0)


def whitened(num_features):
    return jnx.DecorrelatedBatchNorm(num_features, num_groups=2)


def batch_channel(num_features):
    return jnx.BatchChannelNorm(num_features, num_groups=2)


MODED = {
    "BatchNorm": jnx.BatchNorm,
    "BatchChannelNorm": batch_channel,
    "BatchInstanceNorm": jnx.BatchInstanceNorm,
    "DecorrelatedBatchNorm": whitened,
    "EvoNormB0": jnx.EvoNormB0,
    "InputNorm": jnx.InputNorm,
    "SpectralNorm": spectral,
    "SwitchableNorm": jnx.SwitchableNorm,
}


def test_the_modules_that_have_a_mode_are_these():
    modules = {name: getattr(jnx, name) for name in jnx.__all__}
    assert MODED.keys() == {n for n, m in modules.items() if hasattr(m, "use_running_average")}
    assert MODED.keys() == {n for n, m in modules.items() if hasattr(m, "set_view")}


def call(norm):
    # Positions, for those that normalize each example besides.
    return norm(X.reshape(2, 4, 4)), values(norm, nnx.BatchStat)


@pytest.mark.parametrize("name", MODED)
def test_a_view_evaluates_as_eval_does_and_shares_the_statistics(name):
    norm = MODED[name](4)
    call(norm)
    start = values(norm, nnx.BatchStat)
    view = nnx.view(norm, use_running_average=True)
    assert view.use_running_average and not norm.use_running_average
    switched, assigned = nnx.clone(norm), nnx.clone(norm)
    switched.eval()
    assigned.set_attributes(use_running_average=True)
    expected = call(switched)
    for evaluated in (view, assigned, nnx.view(norm, only=type(norm), use_running_average=True)):
        chex.assert_trees_all_equal(call(evaluated), expected)
    chex.assert_trees_all_equal(values(norm, nnx.BatchStat), start)
    # And back: a view of the view trains, and moves what the model has.
    training = nnx.view(view, use_running_average=False)
    assert not training.use_running_average and view.use_running_average
    switched.train()
    chex.assert_trees_all_equal(call(training), call(switched))
    chex.assert_trees_all_equal(values(norm, nnx.BatchStat), values(switched, nnx.BatchStat))
    same = jax.tree.map(np.array_equal, values(norm, nnx.BatchStat), start)
    assert not all(jax.tree.leaves(same))


class Net(nnx.Module):
    def __init__(self, *norms):
        self.norms = nnx.List(norms)
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        self.adaptive = jnx.AdaptiveNorm(jnx.BatchNorm(4), 4, rngs=nnx.Rngs(0))

    def __call__(self, x):
        for norm in self.norms:
            x = norm(x)
        return self.adaptive(self.dropout(x), jnp.ones((8, 4)))


def test_a_view_of_a_model_reaches_every_norm():
    rngs = nnx.Rngs(0)
    norms = (jnx.BatchNorm(4), nnx.BatchNorm(4, rngs=rngs), spectral(4))
    net = Net(*norms, jaxnorm.drop_in.nnx.BatchNorm(4, rngs=rngs))
    start = values(net, nnx.BatchStat)
    view = nnx.view(net, deterministic=True, use_running_average=True)
    jitted = nnx.jit(lambda net, x: net(x))
    chex.assert_trees_all_close(view(X), jitted(view, X), atol=1e-5)
    chex.assert_trees_all_equal(values(net, nnx.BatchStat), start)
    assert "use_running_average" in nnx.view_info(net)
    with pytest.raises(ValueError, match=r"Unused keys found in nnx.view: \['use_runing_average"):
        nnx.view(net, use_runing_average=True)
