"""Running statistics in half precision: what stops says so, and tools give float32 back."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
import jaxnorm.linen as jnn
from jaxnorm import tools

pytestmark = pytest.mark.quickly_compiled

# A constant batch; with momentum 0.9 to 0.999 its mean and variance are reached to the last bit in
# float32 within so many steps.
STEPS = 20_000
X = jnp.asarray(np.random.default_rng(0).normal(2.9, 1.97, (64, 2)), jnp.float32)


def cast(tree, dtype):
    return jax.tree.map(lambda a: a.astype(dtype), tree)


def train(norm, variables):
    """The running statistics after many steps, and the warnings."""

    def step(stats, _):
        _, new = norm.apply({**variables, "batch_stats": stats}, X, mutable=["batch_stats"])
        return new["batch_stats"], None

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stats, _ = jax.jit(lambda s: jax.lax.scan(step, s, None, STEPS))(variables["batch_stats"])
    return stats, [str(w.message) for w in caught]


def errors(stats):
    """How far the statistics are from those of the batch, in parts of these."""
    exact = {"mean": X.mean(0), "var": X.var(0, ddof=1)}
    return {k: float(jnp.abs(cast(stats[k], jnp.float32) / v - 1).max()) for k, v in exact.items()}


class Net(nn.Module):
    """One batch norm, called norm.

    Attributes:
      momentum: of the batch norm.
    """

    momentum: float | None

    @nn.compact
    def __call__(self, x):
        """Normalizes `x`."""
        norm = jnn.BatchNorm(momentum=self.momentum, use_running_average=False, name="norm")
        return norm(x)


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.999])
def test_one_warning_says_where_the_average_stops(momentum):
    norm = Net(momentum)
    variables = cast(norm.init(jax.random.key(0), X), jnp.bfloat16)
    stats, caught = train(norm, variables)
    bound = min(2**-8 / (1 - momentum), 1)
    assert len(caught) == 1
    for text in (
        f"BatchNorm norm keeps running statistics in bfloat16 with momentum={momentum}",
        f"they stop up to {bound:.0%} away",
        "Keep batch_stats in float32 and cast the parameters alone: variables = {**variables",
    ):
        assert text in caught[0]
    assert stats["norm"]["mean"].dtype == jnp.bfloat16
    # The warning is true: it stops further off than rounding alone would leave it, and no further
    # than it says.
    assert 2**-8 < max(errors(stats["norm"]).values()) <= bound

    # What it says to do.
    fixed = {**norm.init(jax.random.key(0), X), "params": variables["params"]}
    stats, caught = train(norm, fixed)
    assert not caught
    assert max(errors(stats["norm"]).values()) < 0.01
    assert stats["norm"]["mean"].dtype == jnp.float32


def test_a_plain_average_says_after_how_many_batches_it_stops():
    norm = Net(None)
    _, caught = train(norm, cast(norm.init(jax.random.key(0), X), jnp.bfloat16))
    assert len(caught) == 1 and "they stop after about 256 batches" in caught[0]


def test_no_warning_where_the_average_comes_within_a_percent():
    """float16 has three bits more; half an average needs few."""
    for momentum, dtype in ((0.9, jnp.float16), (0.5, jnp.bfloat16)):
        norm = Net(momentum)
        stats, caught = train(norm, cast(norm.init(jax.random.key(0), X), dtype))
        assert not caught
        assert max(errors(stats["norm"]).values()) < 0.01


def test_evaluation_and_traced_momentum():
    norm = Net(0.99)
    variables = cast(norm.init(jax.random.key(0), X), jnp.bfloat16)
    evaluate = jnn.BatchNorm(use_running_average=True)
    evaluate.apply({k: v["norm"] for k, v in variables.items()}, X)  # warnings are errors

    def step(momentum):
        running = jaxnorm.Moments(*cast(jaxnorm.init_running(2), jnp.bfloat16))
        return jaxnorm.batch_norm_step(X, running, training=True, axis=0, momentum=momentum)[1]

    with pytest.warns(UserWarning, match="batch_norm_step .* stop before they reach"):
        jax.eval_shape(step, 0.9)


def test_whitening_warns_and_keeps_the_dtype():
    norm = jnn.DecorrelatedBatchNorm(use_running_average=False, momentum=0.99)
    variables = cast(norm.init(jax.random.key(0), X), jnp.bfloat16)
    with pytest.warns(UserWarning, match=r"DecorrelatedBatchNorm \(top level\) keeps running"):
        _, new = norm.apply(variables, X, mutable=["batch_stats"])
    assert {a.dtype for a in jax.tree.leaves(new)} == {jnp.dtype(jnp.bfloat16)}


def test_the_state_of_spectral_norm_does_not_average():
    """Power iteration forgets its rounding: the singular value is right to a percent."""
    layer = jnn.SpectralNorm(nn.Dense(6, use_bias=False), n_steps=1)
    x = jnp.eye(5)
    variables = layer.init(jax.random.key(0), x, update_stats=False)
    kernel = np.asarray(jax.tree.leaves(variables["params"])[0])
    stats = cast(variables["batch_stats"], jnp.bfloat16)
    for _ in range(30):
        _, new = layer.apply(
            {**variables, "batch_stats": stats}, x, update_stats=True, mutable=["batch_stats"]
        )
        stats = new["batch_stats"]
    assert {a.dtype for a in jax.tree.leaves(stats)} == {jnp.dtype(jnp.bfloat16)}
    y = layer.apply({**variables, "batch_stats": stats}, x, update_stats=False)
    np.testing.assert_allclose(y, kernel / np.linalg.norm(kernel, 2), rtol=0.01, atol=1e-3)


def test_tools_return_float32_whatever_they_are_given():
    norm = Net(0.9)
    narrow = cast(norm.init(jax.random.key(0), X), jnp.bfloat16)
    stats = tools.accumulate(narrow["batch_stats"])
    for part in jnp.split(X, 4):
        _, new = norm.apply({**narrow, "batch_stats": stats}, part, mutable=["batch_stats"])
        stats = new["batch_stats"]
    settled = tools.settle(stats, momentum=0.0)
    recalibrated = tools.recalibrate(
        jnn.BatchNorm(use_running_average=True),
        {k: v["norm"] for k, v in narrow.items()},
        jnp.split(X, 4),
    )
    for result in (settled["norm"], recalibrated):
        assert {a.dtype for a in jax.tree.leaves(result)} == {jnp.dtype(jnp.float32)}
    assert max(errors(settled["norm"]).values()) < 1e-5
    np.testing.assert_allclose(recalibrated["mean"], X.mean(0), rtol=1e-5)
