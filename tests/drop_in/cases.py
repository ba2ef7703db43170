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
    # Nothing is pooled: every value is its own mean.
    "batch, one example": ("BatchNorm", {}, (8,), "float32"),
    # One value in each pool, which jaxnorm's own batch norm refuses.
    "batch, one value": ("BatchNorm", {}, (1, 8), "float32"),
    "layer": ("LayerNorm", {"epsilon": 1e-3}, X, "float32"),
    "layer, half": ("LayerNorm", {"dtype": jnp.float16}, X, "float16"),
    "layer, half parameters": ("LayerNorm", {"param_dtype": jnp.bfloat16}, X, "bfloat16"),
    "layer, half and single": ("LayerNorm", {"param_dtype": jnp.bfloat16}, X, "float32"),
    "layer, positions": ("LayerNorm", {"reduction_axes": (-2, 1), "use_bias": False}, X, "f4"),
    "layer, twice the same": ("LayerNorm", {"reduction_axes": (-1, 3)}, X, "float32"),
    "layer, of nothing": ("LayerNorm", {"reduction_axes": ()}, X, "float32"),
    "layer, fast": ("LayerNorm", {"use_fast_variance": True}, X, "float32"),
    "rms": ("RMSNorm", {}, X, "float32"),
    "rms, half": ("RMSNorm", {"dtype": jnp.bfloat16}, X, "bfloat16"),
    "rms, of nothing": ("RMSNorm", {"reduction_axes": (), "use_scale": False}, X, "float32"),
    "group": ("GroupNorm", {"num_groups": 2}, X, "float32"),
    "group, size": ("GroupNorm", {"num_groups": None, "group_size": 4}, X, "float32"),
    "group, half": ("GroupNorm", {"num_groups": 2, "dtype": jnp.bfloat16}, X, "bfloat16"),
    "group, of one position": ("GroupNorm", {"num_groups": 4}, (4, 8), "float32"),
    "instance": ("InstanceNorm", {}, X, "float32"),
    "instance, of one position": ("InstanceNorm", {}, (4, 8), "float32"),
}


def draw(rng, shape=X, dtype="float32"):
    return jnp.asarray(rng.normal(0.5, 2, shape), dtype)


def random_init(seed):
    """An initializer whose values depend on the key, the shape and the dtype it is given."""
    return lambda key, shape, dtype: (
        jax.random.normal(jax.random.fold_in(key, seed), tuple(shape)) + 1
    ).astype(dtype)


def results(run, cases):
    """Returns what `run(case, x, dy)` gives for each case, all in one program."""
    rng = np.random.default_rng(0)
    arrays = {
        name: (draw(rng, shape, dtype), draw(rng, shape))
        for name, (_, _, shape, dtype) in cases.items()
    }
    compute = jax.jit(lambda arrays: {n: run(cases[n], *arrays[n]) for n in cases})
    with jax.numpy_dtype_promotion("standard"):
        return compute(arrays)


def assert_close(ours, theirs, scale=1.0):
    """Within rounding: of float32, or of the results' own dtype where that is narrower."""
    ours, theirs = (jax.tree.leaves_with_path(tree) for tree in (ours, theirs))
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    for (path, a), (_, b) in zip(ours, theirs, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        unit = 4e-6 if jnp.finfo(a.dtype).bits >= 32 else 4 * float(jnp.finfo(a.dtype).eps)
        wide = np.complex128 if jnp.iscomplexobj(a) else np.float64
        a, b = (np.asarray(v).astype(wide) for v in (a, b))
        error = np.abs(a - b).max(initial=0)
        assert error <= unit * scale * max(1, np.abs(b).max(initial=0)), (path, error)
