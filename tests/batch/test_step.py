"""batch_norm_step: the same numbers as the Flax module, with explicit state."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxnorm
import jaxnorm.linen as jnn
from tests.contract.test_errors import message
from tests.support.jaxpr_text import program

SHAPE = (8, 3, 4)
DOMAINS = jnp.array([2, 0, 0, 2, 2, 0, 2, 0])

# Options of both, those of the call of both, and whether there are rows for three domains.
CASES = {
    "plain": {},
    "average": {"momentum": None},
    "debias": {"momentum": 0.9, "debias": True},
    "biased": {"unbiased": False},
    "by_batch": {"eval_statistics": "batch"},
    "blended": {"train_statistics": 0.3, "eval_statistics": 0.6},
    "by_running": {"train_statistics": "running"},
    "renorm": {"train_statistics": "renorm", "r_max": 1.1, "d_max": 0.2},
    "schedule": {"train_statistics": "renorm", "r_max": lambda n: 1 + n / 10, "momentum": 0.5},
    "resting": {"update_running": False},
    "always": {"update_running": True},
    "ghost": {"num_virtual_batches": 2},
    "masked": {"mask": jnp.arange(8 * 3).reshape(8, 3, 1) % 5 > 0},
    "domain": {"num_domains": 3, "domain": 1},
    "domains": {"num_domains": 3, "domain": DOMAINS, "affine_per_domain": True},
    "one_of_domains": {"num_domains": 3, "domain": 1, "affine_per_domain": True},
    "half": {"dtype": jnp.bfloat16, "epsilon": 1e-3},
    "channels_first": {"axis": (0, 2)},
    "spatial": {"axis": 0, "feature_axes": -1},
    "spatial_affine": {"axis": 0},
}
CALL = ("mask", "domain")


def draw(rng, options, x):
    """Running moments, gamma and beta of the sizes that the options say."""
    axis = options.get("axis", (0, 1))
    axes = (axis,) if isinstance(axis, int) else axis
    kept = tuple(s for a, s in enumerate(x.shape) if a not in axes)
    features = kept if "feature_axes" not in options else x.shape[-1:]
    rows = (options["num_domains"],) if "num_domains" in options else ()
    affine_rows = rows if options.get("affine_per_domain") else ()

    def positive(*shape):
        return jnp.asarray(rng.random(shape) + 0.5, jnp.float32)

    # As many updates of every element, as a Flax module has them.
    running = jaxnorm.Moments(
        positive(*rows, *kept), positive(*rows, *kept), jnp.full((*rows, *kept), 3.0)
    )
    return running, positive(*affine_rows, *features), positive(*affine_rows, *features)


def with_linen(x, running, gamma, beta, training, options):
    """What `jaxnorm.linen.BatchNorm` makes of the same, and of its gradients."""
    call = {k: options[k] for k in CALL if k in options}
    fields = {k: v for k, v in options.items() if k not in CALL}
    fields["reduction_axes"] = fields.pop("axis", (0, 1))
    norm = jnn.BatchNorm(**fields, use_running_average=~training)
    # A count that the module does not use is left alone, as another variable would be.
    variables = {"params": {"gamma": gamma, "beta": beta}, "batch_stats": running._asdict()}
    y, new = norm.apply(variables, x, **call, mutable=["batch_stats"])
    return y, new["batch_stats"]


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=SHAPE) + 1, jnp.float32)


@pytest.mark.parametrize("name", CASES)
def test_the_program_is_the_flax_module_s(name, x, rng):
    options = CASES[name]
    running, gamma, beta = draw(rng, options, x)
    dy = jnp.asarray(rng.normal(size=SHAPE), options.get("dtype", jnp.float32))

    def ours(x, gamma, beta, running, training):
        given = {"axis": (0, 1)} | options
        y, new = jaxnorm.batch_norm_step(x, running, gamma, beta, training=training, **given)
        return y, state(new)

    def linens(x, gamma, beta, running, training):
        y, new = with_linen(x, running, gamma, beta, training, options)
        return y, state(jaxnorm.Moments(**{"count": None} | dict(new)))

    def state(new):
        return new if name in ("average", "debias", "schedule") else new[:2]

    def everything(function):
        """The result, the gradients and the new state, of one program; nothing is compiled."""

        def compute(x, gamma, beta, dy, running, training):
            y, pull, new = jax.vjp(
                lambda *a: function(*a, running, training), x, gamma, beta, has_aux=True
            )
            return y, pull(dy), new

        # The step counts whether asked or not; what nobody uses is not compared.
        return program(compute, x, gamma, beta, dy, running, True)

    assert everything(ours) == everything(linens)


@pytest.mark.parametrize("training", [True, False])
def test_a_flag_that_is_known_computes_one_result(training, x, rng):
    running, gamma, beta = draw(rng, {}, x)

    def step(x, flag):
        return jaxnorm.batch_norm_step(x, running, gamma, beta, training=flag, axis=(0, 1))

    known = jax.make_jaxpr(lambda x: step(x, training))(x)
    traced = jax.make_jaxpr(step)(x, training)
    assert len(str(known)) < 0.8 * len(str(traced))
    for a, b in zip(
        jax.tree.leaves(step(x, training)), jax.tree.leaves(jax.jit(step)(x, training)), strict=True
    ):
        # The two programs may round differently; values are below 10.
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-6)


def test_a_training_run_in_float64_numpy(rng):
    """Ioffe & Szegedy 2015, algorithms 1 and 2, with flax's momentum."""
    momentum, epsilon = 0.9, 1e-5
    batches = rng.normal(3, 2, size=(5, 16, 4))
    gamma, beta = rng.normal(size=4), rng.normal(size=4)
    mean, var = np.zeros(4), np.ones(4)

    def step(running, x):
        y, running = jaxnorm.batch_norm_step(
            x, running, *affine, training=True, axis=0, momentum=momentum
        )
        return running, y

    affine = jnp.asarray(gamma, jnp.float32), jnp.asarray(beta, jnp.float32)
    running, outputs = jax.lax.scan(
        step, jaxnorm.init_running(4), jnp.asarray(batches, jnp.float32)
    )
    for batch, y in zip(np.asarray(batches, np.float32).astype(np.float64), outputs, strict=True):
        m, v = batch.mean(0), batch.var(0)
        # Values are below 10 and float32 rounds each of a few steps by 6e-8 of that.
        want = (batch - m) / np.sqrt(v + epsilon) * gamma + beta
        np.testing.assert_allclose(y, want, atol=4e-6)
        mean = momentum * mean + (1 - momentum) * m
        var = momentum * var + (1 - momentum) * v * 16 / 15
    np.testing.assert_allclose(running.mean, mean, rtol=2e-6)
    np.testing.assert_allclose(running.var, var, rtol=2e-6)
    np.testing.assert_array_equal(running.count, np.full(4, 5.0))
    x = np.asarray(batches[0], np.float32)
    y, same = jaxnorm.batch_norm_step(x, running, *affine, training=False, axis=0)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + epsilon) * gamma + beta, atol=4e-6)
    for old, new in zip(running, same, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64], ids=str)
@pytest.mark.parametrize("mask", [False, True])
def test_state_keeps_its_shapes_and_dtypes(dtype, mask, x):
    """As `jax.lax.scan` asks of what it carries."""
    x = x.astype(dtype)
    kept = jnp.ones((8, 3, 1), bool) if mask else None
    running = jaxnorm.init_running(4, dtype=dtype)

    def body(running, training):
        y, new = jaxnorm.batch_norm_step(x, running, training=training, axis=(0, 1), mask=kept)
        return new, y

    new, y = jax.eval_shape(lambda: jax.lax.scan(body, running, jnp.array([True, False, True])))
    assert y.dtype == dtype
    wide = jnp.complex64 if dtype == jnp.complex64 else jnp.float32
    assert [v.dtype for v in new] == [wide, jnp.float32, jnp.float32]
    assert {v.shape for v in new} == {(4,)}


def test_devices_pool_and_agree_on_the_state(x, rng):
    running, gamma, beta = draw(rng, {}, x)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def step(x, name=None):
        return jaxnorm.batch_norm_step(
            x, running, gamma, beta, training=True, axis=(0, 1), axis_name=name
        )

    want, want_new = step(x)
    sharded = jax.shard_map(
        lambda x: step(x, "data"), mesh=mesh, in_specs=P("data"), out_specs=(P("data"), P())
    )
    y, new = jax.jit(sharded)(x)
    np.testing.assert_allclose(y, want, atol=4e-6)
    for a, b in zip(new, want_new, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6)


def test_options_have_the_defaults_of_the_flax_module():
    fields = {f.name: f.default for f in dataclasses.fields(jnn.BatchNorm)}
    parameters = inspect.signature(jaxnorm.batch_norm_step).parameters.values()
    options = {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY}
    call = {"training", "axis", "mask", "domain"}
    assert call <= set(options)
    assert {k: v for k, v in options.items() if k not in call} == {
        k: v for k, v in fields.items() if k in options
    }
    # What a module has besides is for parameters and for modules alone.
    assert set(fields) - set(options) == {
        *("param_dtype", "use_gamma", "use_beta", "gamma_init", "beta_init", "param_names"),
        *("use_running_average", "reduction_axes", "frozen", "parent", "name"),
    }


def test_running_moments_at_the_start():
    running = jaxnorm.init_running((2, 3), dtype=jnp.complex64, num_domains=5)
    assert running.mean.shape == running.var.shape == running.count.shape == (5, 2, 3)
    assert running.mean.dtype == jnp.complex64
    assert running.var.dtype == running.count.dtype == jnp.float32
    half = jaxnorm.init_running([4], dtype=jnp.float16)
    assert {v.dtype for v in half} == {jnp.dtype(jnp.float32)}
    assert jaxnorm.init_running(()).mean.shape == ()


@pytest.mark.parametrize(
    ("shape", "options", "error", "text"),
    [
        (2.0, {}, TypeError, "each size in shape must be an int, got 2.0."),
        ((3, -1), {}, ValueError, "shape=(3, -1) has a negative size."),
        (
            3,
            {"dtype": "int32"},
            TypeError,
            "dtype must be the floating-point or complex dtype of the inputs, got 'int32'.",
        ),
        (3, {"num_domains": 0}, ValueError, "num_domains must be at least 1, got 0."),
    ],
)
def test_errors_of_init_running(shape, options, error, text):
    with pytest.raises(error, match=message(text)):
        jaxnorm.init_running(shape, **options)


ROW = jaxnorm.Moments(np.zeros(4, np.float32), np.ones(4, np.float32), np.zeros(4, np.float32))


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (
            {"training": "eval"},
            TypeError,
            "training must be True, False or a boolean array of rank 0, got 'eval'.",
        ),
        (
            {"training": 1},
            TypeError,
            "training must be True, False or a boolean array of rank 0, got 1.",
        ),
        (
            {"running": jaxnorm.Moments(np.zeros(3), np.ones(3), np.zeros(3))},
            ValueError,
            "running.mean of shape (3,) does not fit an input of shape (8, 3, 4) pooled over axes "
            "(0, 1): expected (4,). Start with init_running((4,)).",
        ),
        (
            {"running": ROW._replace(count=np.zeros(()))},
            ValueError,
            "running.count of shape () does not fit an input of shape (8, 3, 4) pooled over axes "
            "(0, 1): expected (4,). Start with init_running((4,)).",
        ),
        (
            {"num_domains": 2, "domain": 0},
            ValueError,
            "running.mean of shape (4,) does not fit an input of shape (8, 3, 4) pooled over axes "
            "(0, 1): expected (2, 4). Start with init_running((4,), num_domains=2).",
        ),
        (
            {"running": ROW._replace(var=np.ones(4, np.int32))},
            TypeError,
            "running.var must have a floating-point or complex dtype, got int32; start with "
            "init_running.",
        ),
        (
            {"domain": 1},
            ValueError,
            "batch_norm_step got domain=1, but num_domains is not set.",
        ),
        (
            {"x": jnp.ones((1, 4)), "axis": 0},
            ValueError,
            "batch_norm_step got one element per channel in training: an input of shape (1, 4) "
            "reduced over axes (0,). One value cannot be normalized; use a larger batch, "
            "training=False, or a norm that does not pool over the batch.",
        ),
        (
            {"train_statistics": "mean"},
            ValueError,
            'train_statistics must be "batch", "running", "renorm", or the weight of the batch in '
            "a mixture with the running statistics, in [0, 1]; got 'mean'.",
        ),
        (
            {"axis_name": "data"},
            NameError,
            "batch_norm_step: axis_name='data' is not bound here. Call this inside jax.vmap or "
            "jax.shard_map with an axis of that name, or leave axis_name out: a jitted function "
            "of sharded arrays pools over all devices without it.",
        ),
        (
            {
                "running": jaxnorm.init_running(4, num_domains=2),
                "gamma": jnp.ones(4),
                **{"num_domains": 2, "domain": 0, "affine_per_domain": True},
            },
            ValueError,
            "gamma of shape (4,) does not have a row for each of the num_domains=2 domains on axis "
            "0; give it one, or leave out affine_per_domain.",
        ),
        ({"momentum": 1.5}, ValueError, "momentum must lie in [0, 1], got 1.5."),
    ],
)
def test_errors(given, error, text):
    arguments = {"x": jnp.ones(SHAPE), "running": ROW, "training": True, "axis": (0, 1)} | given
    with pytest.raises(error, match=message(text)):
        jaxnorm.batch_norm_step(**arguments)


def test_a_count_is_needed_for_updates_alone(x):
    running = ROW._replace(count=jnp.zeros(()))
    y, same = jaxnorm.batch_norm_step(x, running, training=False, axis=(0, 1))
    np.testing.assert_allclose(y, x, rtol=1e-5)
    assert same.count.shape == ()
