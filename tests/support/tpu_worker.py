"""Compiles programs for TPU v5e, which need not be there.

Run as `python -m tests.support.tpu_worker`; prints each program's name before it is compiled and,
after, one line of JSON. libtpu's compiler takes the process with it where it dies.
"""

import contextlib
import json
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxnorm.linen as jnn
from jaxnorm.cli.bench import nets
from jaxnorm.cli.bench.chips import make_target
from jaxnorm.cli.bench.compiled import compile_norm, make_step
from jaxnorm.cli.bench.nets import CLASSES, PACKAGES, make_norm, make_update
from jaxnorm.cli.errors import UserError
from jaxnorm.cli.peers.case import Case
from jaxnorm.cli.peers.jax_libraries import load_flax, load_jaxnorm
from jaxnorm.cli.peers.jax_peer import foreign_code

ROWS, FEW_ROWS, IMAGES = (8, 128, 256), (8, 16, 128), (8, 8, 8, 64)
HEADS = 2
# Each norm, written out and in a scan, in both dtypes at least once. The compiler has died of
# layer norm and of batch norm in a scan in float32.
BLOCKS = (
    ("layer", ROWS, "float32", "scan"),
    ("layer", FEW_ROWS, "bfloat16", "written out"),
    ("rms", FEW_ROWS, "bfloat16", "written out"),
    ("batch", IMAGES, "float32", "scan"),
    ("batch", IMAGES, "bfloat16", "written out"),
    ("group", IMAGES, "bfloat16", "scan"),
    ("group", IMAGES, "float32", "written out"),
)
REMATERIALIZED = (("layer", FEW_ROWS, "float32", "scan"),)
NORMS = (("batch", (64, 8, 8, 128)), ("layer", (256, 128)))


class Masked(nn.Module):
    """Dense layers in a scan, before norms that leave out the positions after each example's end.

    Attributes:
      norm: the normalization.
    """

    norm: str

    @nn.compact
    def __call__(self, x):
        """Returns the logits of sequences (N, T, C)."""
        mask = jnp.arange(x.shape[1])[:, None] < x.shape[1] - jnp.arange(len(x))[:, None, None]
        make = make_norm(self.norm, "float32", jnn)

        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return x + nn.relu(make()(nn.Dense(x.shape[-1])(x), mask=mask)), None

        stacked = {"params": 0, "batch_stats": 0}
        x, _ = nn.scan(Layer, stacked, split_rngs={"params": True}, length=3)()(x, None)
        return nn.Dense(CLASSES)(x.mean(1))


class Recurrent(nn.Module):
    """A recurrent cell with layer norm."""

    @nn.compact
    def __call__(self, x):
        """Returns the logits of sequences (N, T, C)."""
        return nn.Dense(CLASSES)(nn.RNN(jnn.LayerNormGRUCell(128))(x)[:, -1])


def compile_block(target, norm, shape, dtype, layers):
    step = make_step(Case(norm, shape, dtype), layers, PACKAGES["jaxnorm"], target)
    return [target.compile(*step)]


def compile_rematerialized(target, *case):
    """Compiles a step that keeps of each block its input alone."""
    usual = nets.TransformerBlock, nets.BottleneckBlock
    nets.TransformerBlock, nets.BottleneckBlock = map(nn.remat, usual)
    try:
        return compile_block(target, *case)
    finally:
        nets.TransformerBlock, nets.BottleneckBlock = usual


def compile_model(target, model):
    shape = FEW_ROWS
    with foreign_code():
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    variables = jax.tree.map(lambda leaf: target.array(leaf.shape, leaf.dtype), variables)
    parameters = variables.pop("params")
    x, labels = target.array(shape, jnp.float32), target.array(shape[:1], jnp.int32)
    return [target.compile(make_update(model), parameters, variables, x, labels)]


def compile_both(explicit, norm, shape):
    """Compiles a norm of a batch that is divided over four chips, ours and flax.linen's."""
    target = make_target("v5e", 4, explicit)
    case = Case(norm, shape, "float32")
    return [
        compile_norm(peer, case, False, False, target) for peer in (load_jaxnorm(), load_flax())
    ]


def list_programs(target):
    """Returns what compiles each program, by name."""
    programs = {" ".join(map(str, case)): partial(compile_block, target, *case) for case in BLOCKS}
    for case in REMATERIALIZED:
        name = f"{' '.join(map(str, case))}, checkpoint"
        programs[name] = partial(compile_rematerialized, target, *case)
    for norm in ("layer", "batch"):
        programs[f"{norm}, masks"] = partial(compile_model, target, Masked(norm))
    programs["layer, recurrent"] = partial(compile_model, target, Recurrent())
    return programs


def list_divided():
    """Returns what compiles each pair of programs for four chips, by name."""
    return {
        f"{norm}, four chips, {'explicit axes' if explicit else 'jit'}": partial(
            compile_both, explicit, norm, shape
        )
        for norm, shape in NORMS
        for explicit in (False, True)
    }


def main():
    nets.HEADS = HEADS
    try:
        target = make_target("v5e", 1, False)
    except UserError as error:
        print(json.dumps({"unavailable": str(error)}))
        return
    for name, compile_all in (list_programs(target) | list_divided()).items():
        print(name, flush=True)
        with contextlib.redirect_stdout(None):
            results = [each._asdict() for each in compile_all()]
        print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
