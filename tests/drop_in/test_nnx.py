"""`jaxnorm.drop_in.nnx`: flax.nnx's classes, variables and results, exact and lean."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm.drop_in.nnx as ours
from tests.contract.test_memory import handed_over
from tests.drop_in.cases import (
    SHARED,
    X,
    assert_close,
    assert_same_results,
    draw,
    random_init,
    results,
)

pytestmark = pytest.mark.quickly_compiled

NAMES = ("BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm")
CASES = SHARED | {
    # Nothing is pooled: every value is its own mean.
    "batch, one example": ("BatchNorm", {}, (8,), "float32"),
    "layer, two features": ("LayerNorm", {"feature_axes": (3, 1)}, X, "float32"),
    "instance, all features": ("InstanceNorm", {"feature_axes": (1, 2, 3)}, X, "float32"),
}
every_norm = pytest.mark.parametrize("name", NAMES)


def values(norm):
    return nnx.to_pure_dict(nnx.state(norm))


def make(library, name, fields, shape):
    """A norm with random parameters, in training, which flax computes in two passes."""
    axes = fields.get("axis", fields.get("feature_axes", -1))
    sizes = [shape[axis] for axis in np.atleast_1d(axes)]
    fields = {"use_fast_variance": False} | fields
    fields["scale_init"], fields["scale_metadata"] = random_init(1), {"mine": "s"}
    if name != "RMSNorm":
        fields["bias_init"], fields["bias_metadata"] = random_init(2), {"mine": "b"}
    return getattr(library, name)(int(np.prod(sizes)), rngs=nnx.Rngs(0), **fields)


def run(case, x, dy):
    """State before and after, result and gradients, of jaxnorm's class and of flax's."""
    name, fields, shape, _ = case
    found = []
    for library in (ours, nnx):
        norm = make(library, name, fields, shape)
        graph, params, rest = nnx.split(norm, nnx.Param, ...)

        def apply(params, x, graph=graph, rest=rest):
            norm = nnx.merge(graph, params, rest, copy=True)
            return norm(x), values(norm)

        result = {"before": values(norm)}
        if dy is None:
            result["y"], result["after"] = apply(params, x)
        else:
            y, transpose, result["after"] = jax.vjp(apply, params, x, has_aux=True)
            gradients, dx = transpose(dy.astype(y.dtype))
            result |= {"y": y, "gradients": (dx, nnx.to_pure_dict(gradients))}
        if name == "BatchNorm":
            norm.eval()
            result["evaluated"] = norm(x)
        found.append(result)
    return found


@pytest.fixture(scope="module")
def found():
    with pytest.warns(UserWarning, match="InstanceNorm.* got one value in each channel"):
        return results(run, CASES)


@pytest.mark.parametrize("case", CASES)
def test_variables_results_and_gradients_are_those_of_flax(case, found):
    assert_same_results(found, case, CASES[case][1])


@every_norm
def test_a_norm_is_one_of_flax_with_its_arguments_and_metadata(name):
    mine, theirs = (getattr(library, name) for library in (ours, nnx))
    assert issubclass(mine, theirs) and mine.__init__ is theirs.__init__
    first, second = (
        [(p.name, p.kind, p.default) for p in inspect.signature(c.__call__).parameters.values()]
        for c in (mine, theirs)
    )
    assert first == second
    fields = {"num_groups": 2} if name == "GroupNorm" else {}
    norms = (make(library, name, dict(fields), X) for library in (ours, nnx))
    metadata = [
        {"/".join(path): (type(v), v.get_metadata()) for path, v in nnx.to_flat_state(nnx.state(n))}
        for n in norms
    ]
    assert metadata[0] == metadata[1] and "scale" in metadata[0]


@every_norm
def test_it_is_exact_where_flax_is_not_and_keeps_the_input_alone(name, rng):
    """At a mean of a million standard deviations, from bfloat16 to float32 too."""
    fields = {"num_groups": 2} if name == "GroupNorm" else {}
    x = jnp.asarray(rng.normal(1e6, 1, (4, 16, 8)), jnp.float32)
    axes = {"BatchNorm": (0, 1), "InstanceNorm": (1,)}.get(name, (-1,))
    wide = np.asarray(x, np.float64)
    if name == "GroupNorm":
        wide, axes = wide.reshape(4, 16, 2, 4), (1, 3)
    center = 0 if name == "RMSNorm" else wide.mean(axes, keepdims=True)
    epsilon = 1e-5 if name == "BatchNorm" else 1e-6
    square = ((wide - center) ** 2).mean(axes, keepdims=True)
    expected = ((wide - center) / np.sqrt(square + epsilon)).reshape(x.shape)
    y = getattr(ours, name)(8, **fields, rngs=nnx.Rngs(0))(x)
    np.testing.assert_allclose(y, expected, atol=4e-6, rtol=0)

    # The promoted result is float32; what is kept is the input as it came.
    x = draw(rng, (8, 32, 128), "bfloat16")
    norm = getattr(ours, name)(128, **fields, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(norm, nnx.Param, ...)
    statistics = {"BatchNorm": 128, "InstanceNorm": 8 * 128, "GroupNorm": 16}.get(name, 256)

    def apply(params, x):
        return nnx.merge(graph, params, rest, copy=True)(x)

    with jax.numpy_dtype_promotion("standard"):
        assert jax.eval_shape(apply, params, x).dtype == jnp.float32
        kept = handed_over(apply, params, x)
    assert kept <= 1.05 * x.nbytes + 4 * 3 * statistics + 4 * 2 * 2 * 128


def test_train_and_eval_choose_and_the_call_wins(rng):
    x = draw(rng, (6, 4))
    norm, other = (library.BatchNorm(4, rngs=nnx.Rngs(0)) for library in (ours, nnx))
    for call in (
        lambda n: n(x),
        lambda n: n(x, True),
        lambda n: (n.eval(), n(x))[1],
        lambda n: n(x, use_running_average=False),
        lambda n: (n.train(), n(x))[1],
    ):
        mine, theirs = ((call(n), values(n)) for n in (norm, other))
        assert_close(mine, theirs, scale=2)
    with pytest.raises(ValueError, match="use_running_average"):
        ours.BatchNorm(4, use_running_average=None, rngs=nnx.Rngs(0))(x)


def test_what_flax_rounds_beforehand_is_not_rounded_here(rng):
    """In half precision flax's NNX rounds the input first; a `promote_dtype` given is asked."""
    x = draw(rng, (4, 8)) + 100
    asked = []

    def promote(arrays, *, dtype=None, **options):
        asked.append([None if a is None else a.dtype.name for a in arrays])
        return nnx.nn.dtypes.promote_dtype(arrays, dtype=dtype, **options)

    exact = np.asarray(ours.LayerNorm(8, rngs=nnx.Rngs(0))(x))

    @functools.partial(jax.jit, static_argnums=(0, 2))
    def run(library, x, options):
        return library.LayerNorm(8, dtype=jnp.bfloat16, rngs=nnx.Rngs(0), **dict(options))(x)

    with jax.numpy_dtype_promotion("standard"):
        y = {
            name: run(library, x, tuple(options.items()))
            for name, library, options in (
                ("ours", ours, {}),
                ("asked", ours, {"promote_dtype": promote}),
                ("flax", nnx, {"use_fast_variance": False}),
            )
        }
    error = {name: np.abs(np.asarray(v, np.float32) - exact).max() for name, v in y.items()}
    assert error["ours"] < 0.01 < 0.05 < min(error["asked"], error["flax"])
    assert_close(y["asked"], y["flax"])
    assert asked == [["float32", "float32", "float32"]]
    rms = ours.RMSNorm(8, promote_dtype=promote, use_scale=False, rngs=nnx.Rngs(0))
    batch = ours.BatchNorm(8, promote_dtype=promote, use_bias=False, rngs=nnx.Rngs(0))
    for norm in (rms, batch):
        nnx.eval_shape(lambda x, norm=norm: nnx.clone(norm)(x), x)
    assert asked[1:] == [["float32", None], ["float32"] * 4 + [None]]


def test_masks_groups_and_errors(rng):
    x, mask = draw(rng, (4, 3, 8)), rng.random((4, 3, 1)) < 0.7
    mask[:, 0] = True

    @jax.jit
    def run(x, mask):
        pairs = []
        for name, fields in (("LayerNorm", {"reduction_axes": (1, 2)}), ("BatchNorm", {})):
            mine, theirs = (
                getattr(library, name)(8, rngs=nnx.Rngs(0), **fields)(x, mask=mask)
                for library in (ours, nnx)
            )
            pairs.append((mine, jnp.where(mask, theirs, 0)))
        # As the mask of RMS norm may be given in its place.
        norm = ours.RMSNorm(8, rngs=nnx.Rngs(0))
        pairs.append((norm(x, mask), norm(x, mask=mask)))
        # With other axes than flax takes for granted, groups keep their own statistics.
        y, pooled = (
            library.GroupNorm(8, 2, reduction_axes=-1, rngs=nnx.Rngs(0))(x)
            for library in (ours, nnx)
        )
        expected = ours.GroupNorm(8, 2, rngs=nnx.Rngs(0))(x.reshape(12, 8)).reshape(x.shape)
        return [*pairs, (y, expected)], pooled

    pairs, pooled = jax.device_get(run(x, mask))
    for at, (mine, expected) in enumerate(pairs):
        assert_close(mine, expected, scale=2 if at < 2 else 1)
    assert np.abs(pooled - pairs[-1][0]).max() > 0.1
    with pytest.raises(ValueError, match="reduction_axes must contain the last axis"):
        ours.GroupNorm(8, 2, reduction_axes=(0, 1), rngs=nnx.Rngs(0))(x)
    with pytest.raises(ValueError, match="The channel axes cannot include the leading"):
        ours.InstanceNorm(8, feature_axes=(0,), rngs=nnx.Rngs(0))(x)
