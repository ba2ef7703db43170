"""The errors of single functions and modules, with their exact texts."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxnorm
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx
from tests.contract.test_errors import message

X = jnp.ones((2, 3, 4))


def with_axis(**given):
    """Calls of every function that has an argument `axis`."""
    moments = jaxnorm.moments(X, axis=0)
    return {
        "batch_norm": lambda: jaxnorm.batch_norm(X, **given),
        "ghost_batch_norm": lambda: jaxnorm.ghost_batch_norm(X, num_virtual_batches=1, **given),
        "group_norm": lambda: jaxnorm.group_norm(X, num_groups=2, **given),
        "instance_norm": lambda: jaxnorm.instance_norm(X, **given),
        "layer_norm": lambda: jaxnorm.layer_norm(X, **given),
        "moments": lambda: jaxnorm.moments(X, **given),
        "rms_norm": lambda: jaxnorm.rms_norm(X, **given),
        "scaled_weight_standardize": lambda: jaxnorm.scaled_weight_standardize(X, **given),
        "standardize": lambda: jaxnorm.standardize(X, moments, epsilon=0.0, **given),
        "weight_norm": lambda: jaxnorm.weight_norm(X, **given),
        "weight_standardize": lambda: jaxnorm.weight_standardize(X, **given),
    }


FUNCTIONS = sorted(with_axis())


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("axis", [3, -4, (0, 3)], ids=str)
def test_axis_out_of_range(function, axis):
    text = (
        f"axis={axis!r} is out of range for an input of shape (2, 3, 4): each axis must lie in "
        "[-3, 2]."
    )
    with pytest.raises(ValueError, match=message(text)):
        with_axis(axis=axis)[function]()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("axis", [(1, 1), (0, -3)], ids=str)
def test_axis_given_twice(function, axis):
    text = (
        f"axis={axis!r} names an axis of the input of shape (2, 3, 4) more than once; give each "
        "axis once."
    )
    with pytest.raises(ValueError, match=message(text)):
        with_axis(axis=axis)[function]()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("axis", [1.0, "0", {0, 1}, (0, None)], ids=str)
def test_axis_of_another_type(function, axis):
    text = f"axis must be an int or a sequence of ints, got {axis!r}."
    with pytest.raises(TypeError, match=message(text)):
        with_axis(axis=axis)[function]()


@pytest.mark.parametrize("function", [f for f in FUNCTIONS if f != "group_norm"])
def test_empty_axis(function):
    with pytest.raises(ValueError, match=message("axis=() is empty; give at least one axis.")):
        with_axis(axis=())[function]()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_scalar_input(function):
    with pytest.raises(ValueError, match=r" must have at least one axis, got a scalar\.$"):
        getattr(jaxnorm, function)(*given_scalar(function), **options_of(function))


def given_scalar(function):
    one = jnp.ones(())
    return (one, jaxnorm.Moments(one, one, one)) if function == "standardize" else (one,)


def options_of(function):
    options = {} if function in ("layer_norm", "rms_norm", "instance_norm") else {"axis": 0}
    if function == "ghost_batch_norm":
        options["num_virtual_batches"] = 1
    if function == "standardize":
        options["epsilon"] = 0.0
    return options


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"num_groups": 3},
            "num_groups=3 does not divide the 4 channels on axis 2 of the input of shape "
            "(2, 3, 4); choose a divisor of 4.",
        ),
        (
            {},
            "num_groups=32 does not divide the 4 channels on axis 2 of the input of shape "
            "(2, 3, 4); choose a divisor of 4.",
        ),
        (
            {"group_size": 2, "channel_axis": 1},
            "group_size=2 does not divide the 3 channels on axis 1 of the input of shape "
            "(2, 3, 4); choose a divisor of 3.",
        ),
        (
            {"num_groups": 0},
            "num_groups=0 does not divide the 4 channels on axis 2 of the input of shape "
            "(2, 3, 4); choose a divisor of 4.",
        ),
        (
            {"group_size": -2},
            "group_size=-2 does not divide the 4 channels on axis 2 of the input of shape "
            "(2, 3, 4); choose a divisor of 4.",
        ),
        (
            {"num_groups": 2, "group_size": 2},
            "give num_groups or group_size, not both; got num_groups=2 and group_size=2.",
        ),
        (
            {"num_groups": 2, "channel_axis": 3},
            "channel_axis=3 is out of range for an input of shape (2, 3, 4): each axis must lie "
            "in [-3, 2].",
        ),
    ],
)
def test_groups_that_do_not_divide(given, text):
    with pytest.raises(ValueError, match=message(text)):
        jaxnorm.group_norm(X, **given)
    module = {k: v for k, v in given.items() if k != "axis"}
    with pytest.raises(ValueError, match=message(text)):
        jnn.GroupNorm(**module, use_gamma=False, use_beta=False).apply({}, X)


@pytest.mark.parametrize("given", [{"num_groups": 2.0}, {"group_size": 2.5}], ids=str)
def test_groups_that_are_no_integers(given):
    ((name, value),) = given.items()
    with pytest.raises(TypeError, match=message(f"{name} must be an int, got {value!r}.")):
        jaxnorm.group_norm(X, **given)


def test_instance_norm_needs_positions():
    text = (
        "an input of shape (2, 4) has no axis besides the batch and the channels to normalize "
        "over; instance norm needs positions, or pass axis."
    )
    with pytest.raises(ValueError, match=message(text)):
        jaxnorm.instance_norm(jnp.ones((2, 4)))
    text = (
        "axis=(1, -1) contains the channel axis 2 of the input of shape (2, 3, 4); instance norm "
        "keeps the channels apart. Use layer_norm to pool them."
    )
    with pytest.raises(ValueError, match=message(text)):
        jaxnorm.instance_norm(X, axis=(1, -1))


ONE_PER_GROUP = (
    "got one value in each group: an input of shape (6, 8) with 8 groups of one channel. One value "
    "cannot be normalized; have fewer groups, of 8 channels or more, or take a norm over the "
    "channels, such as layer norm."
)
ONE_POSITION = (
    "got one value in each channel of an example: an input of shape (6, 1, 1, 8) reduced over axes "
    "(1, 2). One value cannot be normalized; reduce over axes that hold several positions, or take "
    "a norm over the channels, such as layer norm."
)


@pytest.mark.parametrize(
    ("label", "shape", "text", "function", "module", "twin"),
    [
        (
            "group_norm",
            (6, 8),
            ONE_PER_GROUP,
            functools.partial(jaxnorm.group_norm, num_groups=8),
            jnn.GroupNorm(num_groups=8),
            jnx.GroupNorm(8, num_groups=8),
        ),
        (
            "group_norm",
            (6, 8),
            ONE_PER_GROUP,
            functools.partial(jaxnorm.group_norm, group_size=1),
            jnn.AdaptiveNorm(jnn.GroupNorm(group_size=1)),
            jnx.GroupNorm(8, group_size=1),
        ),
        (
            "instance_norm",
            (6, 1, 1, 8),
            ONE_POSITION,
            jaxnorm.instance_norm,
            jnn.InstanceNorm(),
            jnx.InstanceNorm(8),
        ),
    ],
)
def test_one_value_cannot_be_normalized(label, shape, text, function, module, twin):
    x = jnp.ones(shape)
    with pytest.raises(ValueError, match=message(f"{label} {text}")):
        jax.eval_shape(function, x)
    more = (x,) if isinstance(module, jnn.AdaptiveNorm) else ()
    # The first input may be smaller than those to come.
    variables = module.init(jax.random.key(0), x, *more)
    with pytest.raises(ValueError, match=f"Norm .*{re.escape(text)}"):
        module.apply(variables, x, *more)
    with pytest.raises(ValueError, match=re.escape(f"Norm(num_features=8) {text}")):
        twin(x)
    # Devices pool theirs, and with a mask it is the data that tell how many there are.
    jax.eval_shape(jax.vmap(functools.partial(function, axis_name="d"), axis_name="d"), x[None])
    jax.eval_shape(functools.partial(function, mask=x > 0), x)


def test_one_position_cannot_take_a_style():
    x = jnp.ones((6, 1, 1, 8))
    with pytest.raises(ValueError, match=message(f"adaptive_instance_norm {ONE_POSITION}")):
        jaxnorm.adaptive_instance_norm(x, jnp.ones((6, 4, 4, 8)))


def test_moments_that_do_not_fit():
    good = jnp.ones((2, 4))
    for name, given in (
        ("mean", jaxnorm.Moments(jnp.ones(3), good, good)),
        ("var", jaxnorm.Moments(good, jnp.ones(3), good)),
    ):
        text = (
            f"moments.{name} of shape (3,) does not fit an input of shape (2, 3, 4) reduced over "
            "axes (1,): expected (2, 4), or rank 3 with every size 1 or the input's."
        )
        with pytest.raises(ValueError, match=message(text)):
            jaxnorm.standardize(X, given, axis=1, epsilon=0.0)


@pytest.mark.parametrize("name", ["nowhere", ("batch", "nowhere")])
def test_axis_name_that_is_not_bound(name):
    text = (
        "axis_name='nowhere' is not bound here. Call this inside jax.vmap or jax.shard_map with "
        "an axis of that name, or leave axis_name out: a jitted function of sharded arrays pools "
        "over all devices without it."
    )
    for function in (jaxnorm.batch_norm, jaxnorm.moments):
        with pytest.raises(NameError, match=message(text)):
            jax.vmap(lambda x: function(x, axis=0, axis_name=name), axis_name="batch")(X)  # noqa: B023
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    with pytest.raises(NameError, match=message(text)):
        jax.shard_map(
            lambda x: jaxnorm.batch_norm(x, axis=0, axis_name=name)[0],
            mesh=mesh,
            in_specs=P("batch"),
            out_specs=P("batch"),
        )(X)


def test_nothing_to_merge():
    text = "merge_moments needs at least one Moments, got none."
    with pytest.raises(ValueError, match=message(text)):
        jaxnorm.merge_moments()


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_momentum_out_of_range(momentum):
    moments = jaxnorm.moments(X, axis=0)
    text = f"momentum must lie in [0, 1], got {momentum!r}."
    with pytest.raises(ValueError, match=message(text)):
        jaxnorm.update_moments(moments, moments, momentum=momentum)


def test_fields_are_keyword_only():
    # flax.linen.LayerNorm(12) silently sets epsilon to 12.
    for module in (jnn.BatchNorm, jnn.LayerNorm, jnn.RMSNorm, jnn.GroupNorm, jnn.InstanceNorm):
        with pytest.raises(TypeError, match=r"takes 1 positional argument but 2 were given"):
            module(12)
    for given in ({"axis": -1}, {"scale_init": None}, {"use_scale": True}, {"eps": 1e-5}):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            jnn.LayerNorm(**given)


@pytest.mark.parametrize(
    ("module", "field"),
    [
        (jnn.LayerNorm, "reduction_axes"),
        (jnn.LayerNorm, "feature_axes"),
        (jnn.RMSNorm, "reduction_axes"),
        (jnn.RMSNorm, "feature_axes"),
        (jnn.GroupNorm, "reduction_axes"),
        (jnn.GroupNorm, "channel_axis"),
        (jnn.InstanceNorm, "reduction_axes"),
        (jnn.InstanceNorm, "channel_axis"),
    ],
)
def test_module_axes_name_their_field(module, field):
    text = (
        f"{field}=3 is out of range for an input of shape (2, 3, 4): each axis must lie in [-3, 2]."
    )
    with pytest.raises(ValueError, match=message(text)):
        module(**{field: 3}).init(jax.random.key(0), X)
    if field == "channel_axis":
        with pytest.raises(TypeError, match=message("channel_axis must be an int, got (1, 2).")):
            module(channel_axis=(1, 2)).init(jax.random.key(0), X)


@pytest.mark.parametrize("module", [jnn.LayerNorm, jnn.RMSNorm, jnn.GroupNorm, jnn.InstanceNorm])
def test_modules_refuse_integers_and_scalars(module):
    text = (
        "x must have a floating-point or complex dtype, got int32; convert it first, for example "
        "with x.astype(jnp.float32)."
    )
    with pytest.raises(TypeError, match=message(text)):
        module().init(jax.random.key(0), jnp.ones((2, 3, 4), jnp.int32))
    with pytest.raises(ValueError, match=message("x must have at least one axis, got a scalar.")):
        module().init(jax.random.key(0), jnp.ones(()))
