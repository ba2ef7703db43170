"""recalibrate, of models with flax's own batch norms, or the drop-in's."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm.drop_in.linen
import jaxnorm.drop_in.nnx
import jaxnorm.linen as jnn
from jaxnorm import tools
from tests.support.jaxpr_text import drawn

pytestmark = pytest.mark.quickly_compiled


def make_batches(rng):
    """Of 6, 6 and 1 examples."""
    return [jnp.asarray(rng.normal(3, 2, (n, 3)), jnp.float32) for n in (6, 6, 1)]


class Model(nn.Module):
    norm: type[nn.Module]

    @nn.compact
    def __call__(self, x, train=True):
        for width in (4, 2):
            x = nn.Dense(width)(x)
            x = self.norm(use_running_average=not train, momentum=0.9)(x)
        return x


class BatchNorm(jnn.BatchNorm):
    """jaxnorm's, with flax's names of parameters, and named as flax's."""

    param_names: tuple[str, str] = ("scale", "bias")


@functools.cache
def recalibrated(norm, passes):
    batches = make_batches(np.random.default_rng(0))

    def call(model, x):
        return model(x, train=False)

    variables = drawn(Model(nn.BatchNorm), batches[0])
    return tools.recalibrate(Model(norm), variables, batches, call=call, passes=passes)


@pytest.mark.parametrize(
    ("norm", "passes"), [(nn.BatchNorm, 1), (jaxnorm.drop_in.linen.BatchNorm, 2)]
)
def test_linen(norm, passes):
    got, expected = recalibrated(norm, passes), recalibrated(BatchNorm, passes)
    for want, value in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [nnx.BatchNorm, jaxnorm.drop_in.nnx.BatchNorm])
def test_nnx(norm, rng):
    x = rng.normal(3, 2, (11, 3)).astype(np.float32)
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), norm(4, rngs=nnx.Rngs(1)))
    hidden = np.asarray(model.layers[0](x), np.float64)
    tools.recalibrate(model, [x[:5], x[5:10], x[10:]])
    found = model.layers[1]
    assert type(found) is norm
    np.testing.assert_allclose(found.mean[...], hidden.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.var[...], hidden.var(0), rtol=1e-5)


@pytest.mark.parametrize("dtype", [bool, jnp.int32, jnp.float32])
def test_masks_and_channels_first(dtype, rng):
    x = jnp.asarray(rng.normal(3, 2, (5, 2, 4)), jnp.float32)
    mask = rng.random((5, 1, 4)) < 0.6
    norm = nn.BatchNorm(use_running_average=True, axis=1)
    variables = drawn(norm, x)
    stats = tools.recalibrate(
        norm,
        variables,
        [(x, mask.astype(dtype))],
        call=lambda norm, batch: norm(batch[0], mask=batch[1]),
    )
    kept = np.asarray(x, np.float64).swapaxes(1, 2)[mask[:, 0]]
    np.testing.assert_allclose(stats["mean"], kept.mean(0), rtol=1e-6)
    np.testing.assert_allclose(stats["var"], kept.var(0), rtol=1e-5)
