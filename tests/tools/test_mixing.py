"""Which layers let one example reach another: the structure says it, and numbers agree."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxnorm
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx
from jaxnorm import tools

pytestmark = pytest.mark.quickly_compiled

N = 4
X = np.random.default_rng(0).normal(size=(N, 6, 6, 2)).astype(np.float32)


def conv(x, w, groups=1):
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", None, None, dims, groups)


def integers(x, n):
    """Data that are indices."""
    return jnp.clip(jnp.floor(3 * jnp.abs(x)), 0, n - 1).astype(jnp.int32)


def attend(x):
    """Attention along the axis before the last, from the first to the last of them."""
    scores = jnp.einsum("...qc,...kc->...qk", x, x)
    mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    scores = jnp.where(jnp.broadcast_to(mask, scores.shape), scores, -jnp.inf)
    return jnp.einsum("...qk,...kc->...qc", jax.nn.softmax(scores), x)


def positive(x):
    rows = x.reshape(N, 9, 8)
    return jnp.einsum("nab,nac->nbc", rows, rows) + jnp.broadcast_to(jnp.eye(8), (N, 8, 8))


def loop_until(x):
    """As long as a number says that data decide, for each example by itself."""
    return lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, 2 * s[1]), (0, x))[1]


ROW, W = jnp.arange(N), jnp.ones((2, 3))
APART = {
    "bits and back": lambda x: lax.bitcast_convert_type(
        lax.bitcast_convert_type(lax.bitcast_convert_type(x, jnp.int32), jnp.uint8), jnp.float32
    ),
    "convolution": lambda x: conv(x, jnp.ones((3, 3, 2, 4))),
    "grouped": lambda x: conv(x, jnp.ones((3, 3, 1, 4)), 2),
    "kernels of each": lambda x: jax.vmap(
        lambda x: conv(x[None], jnp.ones((3, 3, 2, 2)) * x.sum())[0]
    )(x),
    "pooling": lambda x: (
        nn.max_pool(x, (2, 2), (2, 2))
        + lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    ),
    "layer norm": lambda x: (
        jaxnorm.layer_norm(x, axis=(1, 2, 3)) + jaxnorm.group_norm(x, num_groups=2)
    ),
    "attention": lambda x: attend(x.reshape(N, 36, 2)),
    "tokens": lambda x: jax.nn.gelu(x.reshape(N * 36, 2) @ jnp.ones((2, 3))).reshape(N, 36, 3),
    "channels first": lambda x: jnp.transpose(x, (3, 1, 0, 2)).cumsum(1)[::-1].max((0, 1)),
    "sorted": lambda x: jnp.sort(x, 1) + jnp.take_along_axis(x, jnp.argsort(x, 1), 1),
    "best": lambda x: lax.top_k(x.reshape(N, -1), 3)[0],
    "index of each": lambda x: x[ROW, integers(x[:, 0, 0, 0], 6)],
    "table": lambda x: jnp.arange(10.0)[integers(x, 10)],
    "pieces": lambda x: jnp.stack([*jnp.unstack(x, axis=1)], 1) + jnp.tile(x[:, :1], (1, 6, 1, 1)),
    "one hot": lambda x: jax.nn.one_hot(x.argmax(1), 6),
    "parts": lambda x: jnp.concatenate(
        [*jnp.split(x, 3, 1)[::-1], jnp.pad(x, [(0, 0), (1, 2), (0, 0), (0, 0)])], 1
    ),
    "permuted and back": lambda x: (2 * x[jnp.array([2, 0, 3, 1])])[jnp.array([1, 3, 0, 2])],
    "one by one": lambda x: lax.map(lambda x: x - x.mean(), x),
    "steps": lambda x: lax.scan(
        lambda c, x: (c + x, c * x), x[:, 0], jnp.moveaxis(x, 1, 0), reverse=True
    )[0],
    "counted": lambda x: lax.fori_loop(0, N, lambda i, y: y.at[i].set(x[i] / x[i].sum()), x),
    "written": lambda x: (
        x.at[ROW, 0].add(x[:, 1]).at[:, 3].set(0)
        + lax.dynamic_update_slice(x, x[:, :1], (0, 2, 0, 0))
    ),
    "sums of segments": lambda x: jax.ops.segment_sum(x.reshape(N * 6, 12), jnp.repeat(ROW, 6), N),
    "linear algebra": lambda x: (
        jnp.linalg.solve(positive(x), x.reshape(N, 8, 9))
        + jnp.linalg.cholesky(positive(x))[..., :1]
    ),
    "spectrum": lambda x: jnp.abs(jnp.fft.fft2(x, axes=(1, 2))),
    "branches": lambda x: lax.cond(True, lambda x: x, lambda x: x[::-1], x),
    "a loop": loop_until,
    "cut off": lambda x: jnp.where(jnp.arange(N)[:, None, None, None] < 4, x, x[::-1]),
    "nothing of them": lambda x: jnp.ones((N, 3)) + jax.random.normal(jax.random.key(0), (N, 3)),
    "unused": lambda x: (x, x.mean(0))[0],
    "unused in a function": lambda x: jax.jit(lambda x: (x, x.mean(0)))(x)[0],
    "unused in a loop": lambda x: lax.scan(lambda c, _: (2 * c, c.mean(0)), x, None, 2)[0],
    "gradients": lambda x: jax.grad(lambda x: jnp.sin(x.reshape(N * 36, 2) @ W).sum())(x),
}
MIXED = {
    "mean": lambda x: x - x.mean(0, keepdims=True),
    "batch norm": lambda x: jaxnorm.batch_norm(x, axis=(0, 1, 2))[0],
    "ghost batch norm": lambda x: jaxnorm.ghost_batch_norm(
        x, axis=(0, 1, 2), num_virtual_batches=2
    )[0],
    "mapped": lambda x: jax.vmap(
        lambda x: jaxnorm.batch_norm(x, axis=(0, 1), axis_name="n")[0], axis_name="n"
    )(x),
    "attention between": lambda x: attend(jnp.moveaxis(x, 0, 2)),
    "mixup": lambda x: 0.9 * x + 0.1 * x[::-1],
    "other order": lambda x: x[::-1],
    "rolled": lambda x: jnp.roll(x, 1, 0),
    "so far": lambda x: x.cumsum(0),
    "ranks": lambda x: jnp.argsort(x, 0).astype(jnp.float32),
    "pairs": lambda x: jaxnorm.layer_norm(x.reshape(N // 2, -1)).reshape(x.shape),
    "largest": lambda x: x / x.max(),
    "index": lambda x: x[integers(x[:, 0, 0, 0], N)],
    "along examples": lambda x: conv(jnp.moveaxis(x, 0, 1), jnp.ones((3, 3, 2, 2))),
    "carried": lambda x: lax.scan(lambda c, x: (c + x, c), jnp.zeros_like(x[0]), x)[1],
    "all decide": lambda x: lax.cond(x.sum() > 0, lambda x: x, lambda x: -x, x),
    "until all": lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x),
    "kernel of data": lambda x: conv(x, jnp.ones((3, 3, 2, 2)) * x[0, 0, 0, 0]),
    "similarity": lambda x: x.reshape(N, -1) @ x.reshape(N, -1).T,
    "a loss": lambda x: x.mean(),
}


class Function(nn.Module):
    function: str
    mixed: bool

    def __call__(self, x):
        return (MIXED if self.mixed else APART)[self.function](x)


@pytest.mark.parametrize("name", APART)
def test_examples_apart_are_found_apart(name):
    assert tools.find_mixing(Function(name, False), {"params": {}}, X) == []


@pytest.mark.parametrize("name", MIXED)
def test_examples_that_are_mixed_are_found_mixed(name):
    assert tools.find_mixing(Function(name, True), {}, X) == [""]  # as init returns them


def test_numbers_agree():
    """The first example's output, where all others are changed."""
    other = X.copy()
    other[1:] += 1 + np.abs(X[1:])

    @jax.jit
    def run(x):
        first = {name: function(x) for name, function in (APART | MIXED).items()}
        return {name: value[0] if value.ndim else value for name, value in first.items()}

    a, b = run(X), run(other)
    same = {name for name in a if np.allclose(a[name], b[name], rtol=1e-5, atol=1e-5)}
    # Of these, what comes first sees nothing of what comes later.
    assert same == {*APART, "so far", "carried", "kernel of data", "index"}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        x = nn.relu(nn.remat(nn.BatchNorm)(use_running_average=not train, name="first")(x))
        split = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
        x = nn.scan(Block, length=2, **split)(train, name="blocks")(x, None)[0]
        x = nn.Dropout(0.5, deterministic=not train)(nn.GroupNorm(2, name="group")(x))
        x = nn.MultiHeadDotProductAttention(2, name="attention")(x.reshape(len(x), 36, 4))
        x = nn.MultiHeadDotProductAttention(2, name="between")(jnp.swapaxes(x, 0, 1))
        x = jnp.swapaxes(x, 0, 1).mean(1)
        return jnn.BatchNorm(eval_statistics="batch", name="last")(x, use_running_average=not train)


class Block(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x, _):
        x = jnn.AdaptiveNorm(jnn.BatchNorm(use_running_average=not self.train), name="ada")(
            x, x.mean((1, 2))
        )
        return nn.LayerNorm()(x), None


def test_the_innermost_layers_are_named_each_by_itself():
    x = X[:3]
    variables = jax.eval_shape(lambda: Net().init(jax.random.key(0), x, False))
    found = tools.find_mixing(Net(), variables, x, rngs={"dropout": jax.random.key(0)})
    assert found == ["first", "blocks/BatchNorm_0", "between", "last"]
    found = tools.find_mixing(Net(), variables, x, call=lambda net, x: net(x, train=False))
    assert found == ["between", "last"]
    with tools.freeze("*"):
        found = tools.find_mixing(Net(), variables, x, rngs={"dropout": jax.random.key(0)})
    assert found == ["between"]


def test_of_an_nnx_model_in_the_mode_that_it_is_in():
    norms = [jnx.BatchNorm(2), nnx.relu, nnx.BatchNorm(2, rngs=nnx.Rngs(0)), jnx.RMSNorm(2)]
    model = nnx.Sequential(*norms)
    batch = {"image": X, "flag": True}
    call = {"call": lambda net, batch: nnx.remat(lambda n, x: n(x))(net, batch["image"])}
    assert tools.find_mixing(model, batch, **call) == ["layers/0", "layers/2"]
    assert not norms[0].use_running_average and (norms[0].mean[...] == 0).all()
    model.eval()
    assert tools.find_mixing(model, batch, **call) == []
    assert tools.find_mixing(model, X, call=lambda net, x: net(x - x.mean())) == [""]


def test_errors():
    model = nn.Dense(2)
    with pytest.raises(ValueError) as error:
        tools.find_mixing(model, {"params": {}}, {"a": X, "b": X[:1]})
    assert str(error.value) == (
        "x must hold arrays of two examples or more along axis 0, the same number in all, got "
        "shapes [(4, 6, 6, 2), (1, 6, 6, 2)]."
    )
    with pytest.raises(ValueError, match="two examples or more along axis 0"):
        tools.find_mixing(model, {"params": {}}, X[:1])
    with pytest.raises(TypeError, match="find_mixing takes one x after the model and its variabl"):
        tools.find_mixing(model, {"params": {}}, X, True)
    with pytest.raises(ValueError, match="Dense cannot be run on the arguments given"):
        tools.find_mixing(model, {}, X)


def test_the_groups_that_are_suggested_hold_8_channels_where_there_are_as_many():
    (formula,) = re.findall(r"`(max\(.*\))` groups", " ".join(tools.find_mixing.__doc__.split()))
    for channels in range(1, 200):
        groups = eval(formula, {"C": channels})
        assert channels % groups == 0 and 1 <= groups <= 32
        assert groups == 1 or channels // groups >= 8
    assert [eval(formula, {"C": c}) for c in (4, 16, 24, 64, 256, 1024)] == [1, 2, 3, 8, 32, 32]
