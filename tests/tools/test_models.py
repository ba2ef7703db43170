"""The tools on models as users write them: what one finds by hand."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from jaxnorm import tools
from tests.models import diffusion, language, resnet, vit
from tests.tools.test_fold import disturb, primitives

pytestmark = pytest.mark.quickly_compiled

BLOCKS = ("ResidualBlock_0", "ResidualBlock_1")
RESNET_NORMS = {
    "norm_init": "Conv_0",
    **{f"{block}/BatchNorm_{i}": f"{block}/Conv_{i}" for block in BLOCKS for i in range(2)},
    "ResidualBlock_1/norm_proj": "ResidualBlock_1/conv_proj",
}
VIT_NORMS = [
    *(f"block_0/LayerNorm_{i}" for i in range(2)),
    "encoder_norm",
]
HEADS = ("attention/query_norm", "attention/key_norm")
LANGUAGE_NORMS = [
    *(f"blocks/0/{n}" for n in ("attention_norm", *HEADS, "mlp_norm")),
    "final_norm",
]
UNET_NORMS = [f"{b}/{n}" for b in ("middle", "up") for n in ("norm_in", "norm_out")] + ["norm"]


def built(make):
    """An NNX model with values of which none is computed."""
    graph, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graph, disturb(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), state)))


@pytest.fixture(scope="module")
def models():
    """Each model with the arguments before its input, an input, its norms, and its calls."""

    def linen(module, model):
        x = module.make_batch(size=4)[0]
        shapes = jax.eval_shape(partial(module.init, model), (x,))
        return disturb(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)), x

    net, transformer = resnet.ResNet(), vit.VisionTransformer(depth=1)
    evaluate = {"call": lambda net, x: net(x, train=False)}
    variables, images = linen(resnet, net)
    more, patches = linen(vit, transformer)
    words = built(lambda: language.LanguageModel(language.Config(depth=1), rngs=nnx.Rngs(0)))
    tokens = language.make_batch(size=4)
    unet = built(lambda: diffusion.UNet(rngs=nnx.Rngs(0)))
    noise = diffusion.make_batch(size=4)
    timed = {"call": lambda net, x: net(x, np.linspace(0.1, 0.9, len(x), dtype=np.float32))}
    return {
        "resnet": ((net, variables), images, list(RESNET_NORMS), evaluate),
        "vit": ((transformer, more), patches, VIT_NORMS, evaluate),
        "language": ((words,), tokens, LANGUAGE_NORMS, {}),
        "diffusion": ((unet,), noise, UNET_NORMS, timed),
    }


EACH = pytest.mark.parametrize("name", ["resnet", "vit", "language", "diffusion"])


@EACH
def test_norm_params(models, name):
    model, x, norms, call = models[name]
    mask = tools.norm_params(*model, *((x,) if len(model) == 2 else ()), **call)
    leaves = jax.tree_util.tree_leaves_with_path(mask)
    found = {
        jax.tree_util.keystr(path[:-1], simple=True, separator="/") for path, leaf in leaves if leaf
    }
    # The norms before the modulation have no parameters.
    assert found == {norm for norm in norms if not norm.endswith("norm_out")}


def test_fold(models):
    (net, variables), x, _, call = models["resnet"]
    folded = tools.fold(net, variables, x, **call)
    assert (folded.kept, {norm: layer for layer, norm in folded.pairs}) == ([], RESNET_NORMS)
    program = jax.make_jaxpr(folded.apply)(folded.variables, x)
    assert not {"rsqrt", "sub"} & set(primitives(program.jaxpr))
    larger = np.tile(x, (1, 2, 1, 1))
    expected = jax.jit(partial(net.apply, train=False))(variables, larger)
    y = jax.jit(folded.apply)(folded.variables, larger)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    for name in ("vit", "language", "diffusion"):
        model, x, _, call = models[name]
        with pytest.raises(ValueError, match="calls no batch norm of jaxnorm or flax"):
            tools.fold(*model, x, **call)


@EACH
def test_find_mixing(models, name):
    model, x, norms, call = models[name]
    assert tools.find_mixing(*model, x, **call) == []
    if len(model) == 2:
        train = {"call": lambda net, x: net(x, train=True), "rngs": {"dropout": jax.random.key(0)}}
        mixing = set(norms) if name == "resnet" else set()
        assert set(tools.find_mixing(*model, x, **train)) == mixing


@EACH
def test_inspect(models, name):
    model, x, norms, call = models[name]
    seen = tools.inspect(*model, [x], **call)
    assert sorted(layer.path for layer in seen.layers) == sorted(norms)
    stale = [f for f in seen.findings if "otherwise than training" in f]
    assert len(stale) == (len(norms) if name == "resnet" else 0)
    assert sorted(seen.running) == (sorted(norms) if name == "resnet" else [])
