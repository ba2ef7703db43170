"""Calls of flax's norms that the drop-ins are to answer as flax does."""

import jax
import jax.numpy as jnp
import numpy as np

X = (4, 3, 2, 8)
# Norm, fields, shape of the input, its dtype; the fields are those of linen and NNX alike.
SHARED = {
    "batch": ("BatchNorm", {}, X, "float32"),
    "batch, channels first": ("BatchNorm", {"axis": 1, "momentum": 0.5, "epsilon": 1e-3}, X, "f4"),
    "batch, half": ("BatchNorm", {"dtype": jnp.bfloat16}, X, "bfloat16"),
    "batch, half to single": ("BatchNorm", {}, X, "bfloat16"),
    "batch, bare": ("BatchNorm", {"use_scale": False, "use_bias": False}, X, "float32"),
    # One value in each pool, which jaxnorm's own batch norm refuses.
    "batch, one value": ("BatchNorm", {}, (1, 8), "float32"),
    "layer": ("LayerNorm", {"epsilon": 1e-3}, X, "float32"),
    "layer, half parameters": ("LayerNorm", {"param_dtype": jnp.bfloat16}, X, "bfloat16"),
    "layer, positions": ("LayerNorm", {"reduction_axes": (-2, 1), "use_bias": False}, X, "f4"),
    "layer, twice the same": ("LayerNorm", {"reduction_axes": (-1, 3)}, X, "float32"),
    "layer, of nothing": ("LayerNorm", {"reduction_axes": ()}, X, "float32"),
    "rms": ("RMSNorm", {}, X, "float32"),
    "rms, half": ("RMSNorm", {"dtype": jnp.bfloat16}, X, "bfloat16"),
    "group": ("GroupNorm", {"num_groups": 2}, X, "float32"),
    "group, size": ("GroupNorm", {"num_groups": None, "group_size": 4}, X, "float32"),
    "instance": ("InstanceNorm", {}, X, "float32"),
    "instance, of one position": ("InstanceNorm", {}, (4, 8), "float32"),
}

# Those whose gradients are compared, too.
WITH_GRADIENTS = (
    "batch",
    "batch, one value",
    "layer, positions",
    "layer, of nothing",
    "rms",
    "group",
)
# One value in each pool: gradients are 0.
ONE_VALUE = ("batch, one value", "layer, of nothing")


def draw(rng, shape=X, dtype="float32"):
    return jnp.asarray(rng.normal(0.5, 2, shape), dtype)


def random_init(seed):
    """An initializer whose values depend on the key, the shape and the dtype it is given."""

    def init(key, shape, dtype):
        # No random bits, which are most of a program to compile.
        start = (jax.random.key_data(key) % 1024).astype(jnp.float32).sum() + seed
        places = jnp.arange(np.prod(shape, dtype=int), dtype=jnp.float32).reshape(tuple(shape))
        return (1 + jnp.sin(start + 2 * places)).astype(dtype)

    return init


def results(run, cases):
    """Returns what `run(case, x, dy)` gives for each case, all in one program; maybe with dy."""
    rng = np.random.default_rng(0)
    arrays = {
        name: (draw(rng, shape, dtype), draw(rng, shape) if name in WITH_GRADIENTS else None)
        for name, (_, _, shape, dtype) in cases.items()
    }
    compute = jax.jit(lambda arrays: {n: run(cases[n], *arrays[n]) for n in cases})
    with jax.numpy_dtype_promotion("standard"):
        return compute(arrays)


def assert_same_results(found, case, fields):
    """Compares what `run` gave, of jaxnorm's class and of flax's."""
    mine, theirs = found[case]
    if case in ONE_VALUE:
        # What is left is the rounding of terms as large as 30 / sqrt(epsilon).
        for x, *_ in (mine.pop("gradients"), theirs.pop("gradients")):
            assert jnp.abs(x).max() < 3e4 * 2e-7
    # With a dtype flax's NNX rounds parameters' gradients to it, and statistics in evaluation.
    assert_close(mine, theirs, scale=8, rounded_to=fields.get("dtype"))


def assert_close(ours, theirs, scale=1.0, rounded_to=None):
    """Within rounding: of float32, or of their own dtype where that is narrower, or another."""
    ours, theirs = (jax.tree.leaves_with_path(tree) for tree in (ours, theirs))
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    for (path, a), (_, b) in zip(ours, theirs, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        kind = jnp.finfo(a.dtype if rounded_to is None else rounded_to)
        unit = 4e-6 if kind.bits >= 32 else 4 * float(kind.eps)
        wide = np.complex128 if jnp.iscomplexobj(a) else np.float64
        a, b = (np.asarray(v).astype(wide) for v in (a, b))
        error = np.abs(a - b).max(initial=0)
        assert error <= unit * scale * max(1, np.abs(b).max(initial=0)), (path, error)
