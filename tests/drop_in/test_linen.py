"""`jaxnorm.drop_in.linen`: flax.linen's classes, variables and results, exact and lean."""

import dataclasses
import inspect
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import jaxnorm.drop_in.linen as ours
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
from tests.support.jaxpr_text import drawn, initialized

pytestmark = pytest.mark.quickly_compiled

KEY = jax.random.key(0)
NAMES = ("BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm")
CASES = SHARED | {
    "batch, two kept": ("BatchNorm", {"axis": (1, -1)}, X, "float32"),
    "batch, all kept": ("BatchNorm", {"axis": (0, 1)}, (4, 8), "float32"),
    "batch, none kept": ("BatchNorm", {"axis": ()}, (4, 8), "float32"),
    "batch, narrow": (
        "BatchNorm",
        {"force_float32_reductions": False, "param_dtype": jnp.float16, "momentum": 0.5},
        X,
        "float16",
    ),
    "layer, two features": (
        "LayerNorm",
        {"reduction_axes": (1, 2, 3), "feature_axes": (3, 1)},
        X,
        "float32",
    ),
    "layer, one parameter": ("LayerNorm", {"feature_axes": ()}, X, "float32"),
    "layer, integers": ("LayerNorm", {}, X, "int32"),
    "group, all axes": ("GroupNorm", {"num_groups": 2, "reduction_axes": (0, 1, 3)}, X, "float32"),
    "instance, all features": ("InstanceNorm", {"feature_axes": (1, 2, 3)}, X, "float32"),
}
every_norm = pytest.mark.parametrize("name", NAMES)


def make(library, name, fields):
    """A norm with random parameters, in training, which flax computes in two passes."""
    fields = {"use_fast_variance": False} | fields
    fields["scale_init"] = random_init(1)
    if name != "RMSNorm":
        fields["bias_init"] = random_init(2)
    if name == "BatchNorm":
        fields["use_running_average"] = False
    return getattr(library, name)(**fields)


def run(case, x, dy):
    """Variables, result, new statistics and gradients, of jaxnorm's class and of flax's."""
    name, fields, _, _ = case
    found = []
    for library in (ours, nn):
        norm = make(library, name, fields)
        variables = norm.init(KEY, x)

        def apply(params, x, norm=norm, variables=variables):
            return norm.apply({**variables, "params": params}, x, mutable=["batch_stats"])

        params = variables.get("params", {})
        if dy is None:
            y, new = apply(params, x)
            found.append({"variables": variables, "y": y, "new": new})
            continue
        y, transpose, new = jax.vjp(apply, params, x, has_aux=True)
        gradients = transpose(dy.astype(y.dtype))
        found.append({"variables": variables, "y": y, "new": new, "gradients": gradients[::-1]})
    return found


@pytest.fixture(scope="module")
def found():
    with pytest.warns(UserWarning, match="InstanceNorm.* got one value in each channel"):
        return results(run, CASES)


@pytest.mark.parametrize("case", CASES)
def test_variables_results_and_gradients_are_those_of_flax(case, found):
    assert_same_results(found, case, CASES[case][1])


def parameters_of(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@every_norm
def test_a_norm_is_one_of_flax_with_its_fields(name):
    mine, theirs = (getattr(library, name) for library in (ours, nn))
    fields = [
        [(f.name, f.kw_only, f.default) for f in dataclasses.fields(c)] for c in (mine, theirs)
    ]
    assert fields[0] == fields[1] and issubclass(mine, theirs) and mine.__name__ == name
    for method in (lambda c: c, lambda c: c.__call__):
        assert parameters_of(method(mine)) == parameters_of(method(theirs))


@every_norm
def test_it_is_exact_where_flax_is_not_and_keeps_the_input_alone(name, rng):
    """At a mean of a million standard deviations, with flax's quick variance, in bfloat16 too."""
    x = np.asarray(rng.normal(1e6, 1, X), np.float32)
    fields = {"use_running_average": False} if name == "BatchNorm" else {}
    fields |= {"num_groups": 2} if name == "GroupNorm" else {}
    y, _ = jax.jit(getattr(ours, name)(**fields).init_with_output)(KEY, x)
    axes = {"BatchNorm": (0, 1, 2), "InstanceNorm": (1, 2)}.get(name, (-1,))
    wide = x.astype(np.float64)
    if name == "GroupNorm":
        wide, axes = wide.reshape(4, 6, 2, 4), (1, 3)
    center = 0 if name == "RMSNorm" else wide.mean(axes, keepdims=True)
    epsilon = 1e-5 if name == "BatchNorm" else 1e-6
    square = ((wide - center) ** 2).mean(axes, keepdims=True)
    expected = ((wide - center) / np.sqrt(square + epsilon)).reshape(X)
    np.testing.assert_allclose(y, expected, atol=4e-6, rtol=0)

    for dtype in (jnp.float32, jnp.bfloat16):
        fields["dtype"] = dtype
        x = jax.ShapeDtypeStruct((8, 32, 128), dtype)
        fields |= {"use_fast_variance": True}
        norm = getattr(ours, name)(**fields)
        variables = drawn(norm, x)
        statistics = {"BatchNorm": 128, "InstanceNorm": 8 * 128, "GroupNorm": 16}.get(name, 256)

        def apply(params, x, norm=norm, variables=variables):
            return norm.apply({**variables, "params": params}, x, mutable=["batch_stats"])[0]

        kept = handed_over(apply, variables["params"], x)
        assert kept <= 1.05 * x.size * x.dtype.itemsize + 4 * 3 * statistics + 4 * 2 * 2 * 128


def test_complex_running_means_become_complex_as_in_flax(rng):
    x = (rng.normal(size=(6, 4)) + 1j * rng.normal(size=(6, 4))).astype(np.complex64)
    found = []
    for library in (ours, nn):
        norm = library.BatchNorm(use_running_average=False, dtype=jnp.complex64)
        with jax.numpy_dtype_promotion("standard"):
            variables = initialized(norm, x)
            found.append(jax.jit(partial(norm.apply, mutable=["batch_stats"]))(variables, x))
    assert_close(*found)
    assert found[0][1]["batch_stats"]["mean"].dtype == jnp.complex64


def test_wider_results_are_computed_in_their_dtype(rng):
    """In float64 where the result is, as flax does; running statistics stay in float32."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        x = jnp.asarray(rng.normal(1e6, 1, (6, 4)), jnp.float32)
        norms = (
            (library.LayerNorm(dtype=jnp.float64), library.LayerNorm(param_dtype=jnp.float64))
            for library in (ours, nn)
        )
        for mine, theirs in zip(*norms, strict=True):
            y, other = (jax.eval_shape(norm.init_with_output, KEY, x)[0] for norm in (mine, theirs))
            assert y.dtype == other.dtype == jnp.float64
        mine, theirs = (
            jax.jit(norm.init_with_output)(KEY, x)[0]
            for norm in (
                ours.LayerNorm(dtype=jnp.float64),
                nn.LayerNorm(dtype=jnp.float64, use_fast_variance=False),
            )
        )
        np.testing.assert_allclose(mine, theirs, rtol=1e-7)
        wide = np.asarray(x, np.float64)
        for library, dtype in ((ours, "float32"), (nn, "float64")):
            norm = library.BatchNorm(use_running_average=False)
            variables = jax.eval_shape(norm.init, KEY, wide)
            _, new = jax.eval_shape(partial(norm.apply, mutable=["batch_stats"]), variables, wide)
            assert {v.dtype.name for v in jax.tree.leaves(new)} == {dtype}


def test_modes_are_chosen_and_refused_as_in_flax(rng):
    x = draw(rng, (4, 8))
    variables = drawn(nn.BatchNorm(use_running_average=True), x)
    assert_close(
        *jax.jit(lambda: [lib.BatchNorm().apply(variables, x, True) for lib in (ours, nn)])()
    )
    for library in (ours, nn):
        with pytest.raises(nn.module.errors.ModifyScopeVariableError):
            library.BatchNorm().apply(variables, x, use_running_average=False)
        with pytest.raises(ValueError, match="use_running_average"):
            library.BatchNorm().apply(variables, x)
        with pytest.raises(ValueError, match="use_running_average"):
            library.BatchNorm(True).apply(variables, x, True)
        for options in ({"num_groups": 3}, {"num_groups": None}, {"group_size": 2}):
            with pytest.raises(ValueError, match="group"):
                library.GroupNorm(**options).init(KEY, x)
        with pytest.raises(ValueError, match=r"reduction.axes must"):
            library.GroupNorm(2, reduction_axes=(0,)).init(KEY, x)
        with pytest.raises(ValueError, match="The channel axes cannot include the leading"):
            library.InstanceNorm(feature_axes=(0, 1)).init(KEY, x)


def test_metadata_of_parameters_is_kept(rng):
    x = draw(rng, (4, 8))
    found = []
    for library in (ours, nn):
        named = nn.with_partitioning(nn.initializers.ones, ("model",))
        norm = library.BatchNorm(use_running_average=False, scale_init=named)
        variables = initialized(norm, x)
        assert isinstance(variables["params"]["scale"], nn.Partitioned)
        train = jax.jit(partial(norm.apply, mutable=["batch_stats"]))
        found.append((variables, train(variables, x)))
    assert_close(*found)
    assert nn.get_partition_spec(found[0][0]) == nn.get_partition_spec(found[1][0])


@pytest.mark.parametrize("groups", [None, [[0, 1], [2, 3]]])
def test_named_axes_are_pooled_though_nothing_else_is(groups, rng):
    """By examples in single file; while initializing nothing is sent, as in flax."""
    x, mesh = draw(rng, (4, 8)), jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    found = []
    for library in (ours, nn):
        norm = library.BatchNorm(use_running_average=False, axis_name="d", axis_index_groups=groups)
        variables = jax.jit(norm.init)(KEY, np.asarray(x)[0])

        def call(x, norm=norm, variables=variables):
            results = norm.apply(variables, x[0], mutable=["batch_stats"])
            return jax.tree.map(lambda a: a[None], results)

        spec = jax.P("d")  # groups are not among what types of shards can say
        options = {"in_specs": spec, "out_specs": spec, "check_vma": groups is None}
        spread = jax.shard_map(call, mesh=mesh, **options)
        found.append(jax.jit(spread)(x))
    assert_close(*found, scale=4)


def test_features_may_be_divided_over_a_named_axis(rng):
    x = draw(rng, (4, 8))
    names = {"LayerNorm": {}, "GroupNorm": {"num_groups": 1}, "RMSNorm": {}}

    @jax.jit
    def run(x):
        found = []
        for name, fields in names.items():
            whole, divided = (getattr(ours, name)(**fields, **o) for o in ({}, {"axis_name": "d"}))
            call = lambda x, norm=divided: norm.init_with_output(KEY, x)[0]  # noqa: E731
            y = jax.vmap(call, axis_name="d", in_axes=1, out_axes=1)(x.reshape(4, 2, 4))
            found.append((y.reshape(4, 8), whole.init_with_output(KEY, x)[0]))
        return found

    for y, whole in run(x):
        assert_close(y, whole, scale=2)


def test_arrays_may_lie_on_a_mesh_with_explicit_axes(rng):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    x = draw(rng, (4, 3, 8))
    with jax.set_mesh(mesh):
        spread = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data", None, "model")))
        for name, fields in (
            ("BatchNorm", {"use_running_average": False}),
            ("LayerNorm", {}),
            ("InstanceNorm", {}),
        ):
            norm = getattr(ours, name)(**fields)
            make = jax.jit(norm.init_with_output)
            y, variables = make(KEY, spread)
            assert y.sharding.is_equivalent_to(spread.sharding, 3)
            variables = jax.tree.map(lambda v: jax.device_put(v, jax.P("model")), variables)
            z, _ = jax.jit(partial(norm.apply, mutable=["batch_stats"]))(variables, spread)
            expected = make(KEY, x)[0]
            np.testing.assert_allclose(y, expected, atol=4e-6)
            np.testing.assert_allclose(z, expected, atol=4e-6)
