"""Which statistics normalize, and whether the running ones are updated: decided independently."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
import jaxnorm.linen as jnn

pytestmark = pytest.mark.quickly_compiled

EPSILON = 1e-5
SHAPE = (6, 4, 3)
AXES = (0, 1)


@pytest.fixture
def x(rng):
    return jnp.asarray(2 * rng.normal(size=SHAPE) + 3, jnp.float32)


@pytest.fixture
def variables(rng):
    """Parameters and running statistics that differ from every batch's."""
    return {
        "params": {"gamma": jnp.array([1.0, 2.0, 0.5]), "beta": jnp.array([0.0, 1.0, -1.0])},
        "batch_stats": {"mean": jnp.array([2.0, 2.5, 4.0]), "var": jnp.array([1.0, 5.0, 3.0])},
    }


def expected(x, variables, source):
    """The result in float64, from the papers' formulas."""
    v = np.asarray(x, np.float64)
    run_mean, run_var = (
        np.asarray(variables["batch_stats"][k], np.float64) for k in ("mean", "var")
    )
    mean, var = v.mean(AXES), v.var(AXES)
    r, d = 1.0, 0.0
    if source == "running":
        mean, var = run_mean, run_var
    elif source == "renorm":
        r = np.clip(np.sqrt((var + EPSILON) / (run_var + EPSILON)), 1 / 1.2, 1.2)
        d = np.clip((mean - run_mean) / np.sqrt(run_var + EPSILON), -0.3, 0.3)
    elif source != "batch":
        mean, var = (source * b + (1 - source) * a for a, b in ((run_mean, mean), (run_var, var)))
    x_hat = (v - mean) / np.sqrt(var + EPSILON) * r + d
    gamma, beta = (np.asarray(variables["params"][k], np.float64) for k in ("gamma", "beta"))
    return x_hat * gamma + beta


def updated(x, variables, momentum=0.99):
    v = np.asarray(x, np.float64)
    m = v.shape[0] * v.shape[1]
    old = variables["batch_stats"]
    return {
        "mean": momentum * old["mean"] + (1 - momentum) * v.mean(AXES),
        "var": momentum * old["var"] + (1 - momentum) * v.var(AXES) * m / (m - 1),
    }


@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize("evaluate", [False, True])
@pytest.mark.parametrize("source", ["batch", "running", "renorm", 0.3])
def test_every_combination(x, variables, source, evaluate, update):
    name = "eval_statistics" if evaluate else "train_statistics"
    norm = jnn.BatchNorm(**{name: source}, r_max=1.2, d_max=0.3)
    flags = {"use_running_average": evaluate, "update_running": update}
    if update:
        y, new = norm.apply(variables, x, **flags, mutable=["batch_stats"])
        for key, value in updated(x, variables).items():
            np.testing.assert_allclose(new["batch_stats"][key], value, rtol=1e-6)
    else:
        # Nothing is written, so nothing need be mutable.
        y = norm.apply(variables, x, **flags)
    # Values are below 10, and float32 rounds each of a few steps by 6e-8 of that.
    np.testing.assert_allclose(y, expected(x, variables, source), atol=4e-6)


@pytest.mark.parametrize("evaluate", [False, True])
def test_a_traced_flag_takes_one_of_both_results(x, variables, evaluate):
    """`nn.remat` and `jax.jit` trace a flag that is not marked static."""
    norm = jnn.BatchNorm()

    @jax.jit
    def apply(flag):
        return norm.apply(variables, x, use_running_average=flag, mutable=["batch_stats"])

    y, new = apply(evaluate)
    source = "running" if evaluate else "batch"
    np.testing.assert_allclose(y, expected(x, variables, source), atol=4e-6)
    want = variables["batch_stats"] if evaluate else updated(x, variables)
    for key, value in want.items():
        np.testing.assert_allclose(new["batch_stats"][key], value, rtol=1e-6)


def test_a_traced_flag_through_remat(x):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.remat(Block)()(x, train)

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return jnn.BatchNorm()(x, use_running_average=~train)

    x = x.astype(jnp.float32)
    variables = Net().init(jax.random.key(0), x, jnp.array(True))

    @jax.jit
    def gradient(train):
        def loss(x):
            y, new = Net().apply(variables, x, train, mutable=["batch_stats"])
            return (y**3).sum(), new

        return jax.grad(loss, has_aux=True)(x)

    for train in (True, False):
        norm = jnn.BatchNorm(use_running_average=not train)
        inner = {"params": variables["params"]["CheckpointBlock_0"]["BatchNorm_0"]}
        inner["batch_stats"] = variables["batch_stats"]["CheckpointBlock_0"]["BatchNorm_0"]

        def loss(x, norm=norm, inner=inner):
            y, new = norm.apply(inner, x, mutable=["batch_stats"])
            return (y**3).sum(), new

        want, stats = jax.grad(loss, has_aux=True)(x)
        got, new = gradient(jnp.array(train))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        # One of the two programs is compiled as a whole, so that last bits may differ.
        chex.assert_trees_all_close(
            new["batch_stats"]["CheckpointBlock_0"]["BatchNorm_0"], stats["batch_stats"], rtol=1e-6
        )


def test_prediction_by_the_batch_needs_no_running_statistics(x, variables):
    norm = jnn.BatchNorm(eval_statistics="batch", use_running_average=True)
    y = norm.apply({"params": variables["params"]}, x)
    np.testing.assert_allclose(y, expected(x, variables, "batch"), atol=4e-6)


def test_without_running_statistics_at_all(x):
    """torch's track_running_stats=False: none are made."""
    norm = jnn.BatchNorm(eval_statistics="batch", update_running=False, use_running_average=False)
    y, variables = norm.init_with_output(jax.random.key(0), x)
    assert set(variables) == {"params"}
    np.testing.assert_allclose(norm.apply(variables, x), y, atol=1e-6)


@pytest.mark.parametrize("frozen", ["statistics", "all"])
def test_frozen(x, variables, frozen):
    norm = jnn.BatchNorm(frozen=frozen)

    def loss(params):
        y, new = norm.apply(
            {**variables, "params": params}, x, use_running_average=False, mutable=["batch_stats"]
        )
        return (y**2).sum(), (y, new)

    gradient, (y, new) = jax.grad(loss, has_aux=True)(variables["params"])
    np.testing.assert_allclose(y, expected(x, variables, "running"), atol=4e-6)
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], variables["batch_stats"])
    moves = [bool((g != 0).any()) for g in jax.tree.leaves(gradient)]
    assert moves == ([True, True] if frozen == "statistics" else [False, False])


def test_the_call_wins_over_the_field(x, variables):
    norm = jnn.BatchNorm(use_running_average=True, update_running=True)
    y = norm.apply(variables, x, use_running_average=False, update_running=False)
    np.testing.assert_allclose(y, expected(x, variables, "batch"), atol=4e-6)


def test_conditional_batch_norm(x, variables, rng):
    """gamma and beta of each example from the call (de Vries et al. 2017, arXiv:1707.00683)."""
    gamma, beta = (jnp.asarray(rng.normal(size=(6, 1, 3)), jnp.float32) for _ in range(2))
    norm = jnn.BatchNorm(use_running_average=True)
    y = norm.apply({"batch_stats": variables["batch_stats"]}, x, gamma=gamma, beta=beta)
    plain = {"gamma": np.ones(3), "beta": np.zeros(3)}
    want = expected(x, {**variables, "params": plain}, "running") * np.asarray(gamma) + beta
    np.testing.assert_allclose(y, want, atol=4e-6)
    # Given in the call, they are no parameters.
    made = norm.init(jax.random.key(0), x, gamma=gamma, beta=beta)
    assert set(made) == {"batch_stats"}


class Outer(nn.Module):
    """A model around the layer, so that errors have a path to name."""

    norm: nn.Module

    def __call__(self, x, **flags):
        return self.norm(x, **flags)


ONE = jnp.ones((1, 3))


@pytest.mark.parametrize(
    ("fields", "x", "flags", "error", "message"),
    [
        (
            {},
            jnp.ones((2, 3)),
            {},
            ValueError,
            "BatchNorm norm needs use_running_average: False in training, True in evaluation; set "
            "it as a field or pass it in the call.",
        ),
        (
            {},
            jnp.ones((2, 3)),
            {"use_running_average": False},
            ValueError,
            "BatchNorm norm updates its running statistics in training, but the collection "
            'batch_stats is not mutable: call apply(..., mutable=["batch_stats"]) and keep the '
            "updates it returns, or pass use_running_average=True to evaluate, or "
            "update_running=False to leave them as they are.",
        ),
        (
            {"update_running": False},
            ONE,
            {"use_running_average": False},
            ValueError,
            "BatchNorm norm got one element per channel in training: an input of shape (1, 3) "
            "reduced over axes (0,). One value cannot be normalized; use a larger batch, "
            "use_running_average=True, or a norm that does not pool over the batch.",
        ),
        (
            {"eval_statistics": "batch", "update_running": False},
            ONE,
            {"use_running_average": True},
            ValueError,
            "BatchNorm norm got one element per channel in evaluation by the batch's statistics: "
            "an input of shape (1, 3) reduced over axes (0,). One value cannot be normalized; use "
            'a larger batch, eval_statistics="running", or a norm that does not pool over the '
            "batch.",
        ),
        (
            {"update_running": False, "num_virtual_batches": 4},
            jnp.ones((4, 3)),
            {"use_running_average": False},
            ValueError,
            "BatchNorm norm got one element per channel in each of 4 virtual batches in training: "
            "an input of shape (4, 3) reduced over axes (0,). One value cannot be normalized; use "
            "a larger batch, use_running_average=True, or a norm that does not pool over the "
            "batch.",
        ),
        (
            {"update_running": False, "num_virtual_batches": 3},
            jnp.ones((8, 3)),
            {"use_running_average": False},
            ValueError,
            "num_virtual_batches=3 does not divide the batch: axis 0 of the input of shape (8, 3) "
            "has 8 examples to divide into 3 equal parts. Leave a smaller last batch out, or fill "
            "it up and mask what was added.",
        ),
        (
            {"axis_name": "devices", "update_running": False},
            jnp.ones((2, 3)),
            {"use_running_average": False},
            NameError,
            "BatchNorm norm: axis_name='devices' is not bound here. Call this inside jax.vmap or "
            "jax.shard_map with an axis of that name, or leave axis_name out: a jitted function of "
            "sharded arrays pools over all devices without it.",
        ),
        (
            {"eval_statistics": 1.5},
            jnp.ones((2, 3)),
            {"use_running_average": True},
            ValueError,
            'eval_statistics must be "batch", "running", "renorm", or the weight of the batch in a '
            "mixture with the running statistics, in [0, 1]; got 1.5.",
        ),
        (
            {"frozen": True},
            jnp.ones((2, 3)),
            {},
            ValueError,
            'frozen must be None, "statistics" or "all", got True.',
        ),
        (
            {"num_virtual_batches": 2, "batch_axis": 1},
            jnp.ones((2, 3)),
            {"use_running_average": True},
            ValueError,
            "batch_axis=1 must be one of the axes pooled, which are (0,) for the input of shape "
            "(2, 3).",
        ),
        (
            {"num_virtual_batches": 0},
            jnp.ones((2, 3)),
            {"use_running_average": True},
            ValueError,
            "num_virtual_batches must be at least 1, got 0.",
        ),
        (
            {},
            jnp.ones((2, 3)),
            {"use_running_average": True, "domain": 0},
            ValueError,
            "BatchNorm norm got domain=0, but num_domains is not set.",
        ),
        (
            {"num_domains": 2},
            jnp.ones((2, 3)),
            {"use_running_average": True},
            ValueError,
            "BatchNorm norm has num_domains=2 and needs domain in the call: an integer, or one for "
            "each example.",
        ),
        (
            {"num_domains": 2},
            jnp.ones((2, 3)),
            {"use_running_average": True, "domain": 2},
            ValueError,
            "domain must lie in [0, 2), as num_domains says, got 2.",
        ),
        (
            {"num_domains": 2},
            jnp.ones((2, 3)),
            {"use_running_average": True, "domain": jnp.zeros(3, jnp.int32)},
            ValueError,
            "domain must have shape (2,), one entry for each example, got (3,).",
        ),
        (
            {"num_domains": 2},
            jnp.ones((2, 3)),
            {"use_running_average": True, "domain": 0.5},
            TypeError,
            "domain must hold integers, got dtype float32.",
        ),
        (
            {"num_domains": 2, "num_virtual_batches": 2},
            jnp.ones((2, 3)),
            {"use_running_average": True, "domain": jnp.zeros(2, jnp.int32)},
            ValueError,
            "BatchNorm norm has num_virtual_batches=2, which needs one domain for the whole batch, "
            "not one for each example.",
        ),
    ],
)
def test_errors(fields, x, flags, error, message):
    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
    params = {"gamma": jnp.ones(3), "beta": jnp.zeros(3)}
    variables = {"params": {"norm": params}, "batch_stats": {"norm": stats}}
    with pytest.raises(error) as caught:
        Outer(jnn.BatchNorm(**fields)).apply(variables, x, **flags)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (jaxnorm.batch_renorm, {"r_max": 0.5, "d_max": 1}, "r_max must be at least 1, got 0.5."),
        (jaxnorm.batch_renorm, {"r_max": 2, "d_max": -1}, "d_max must be at least 0, got -1."),
        (jaxnorm.blended_batch_norm, {"weight": -1}, "weight must lie in [0, 1], got -1."),
    ],
)
def test_errors_of_functions(function, options, message):
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError) as caught:
        function(x, jaxnorm.moments(x, 0), axis=0, **options)
    assert str(caught.value) == message


def test_a_running_mean_that_does_not_fit():
    x = jnp.ones((2, 3))
    running = jaxnorm.Moments(jnp.zeros(2), jnp.ones(3), jnp.zeros(()))
    with pytest.raises(ValueError) as caught:
        jaxnorm.batch_renorm(x, running, axis=0, r_max=2, d_max=1)
    assert str(caught.value) == (
        "running.mean of shape (2,) does not fit an input of shape (2, 3) reduced over axes (0,): "
        "expected (3,), or rank 2 with every size 1 or the input's."
    )


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (jaxnorm.batch_renorm, {"r_max": 3.0, "d_max": 1.0}),
        (jaxnorm.blended_batch_norm, {"weight": 0.3}),
    ],
)
def test_moments_of_nothing_have_mean_0(function, options):
    x, mask = jnp.array([[1.0, 5.0], [3.0, 7.0]]), jnp.array([[True, False]])
    running = jaxnorm.Moments(jnp.array([0.3, 0.7]), jnp.ones(2), jnp.zeros(2))
    y, found = function(x, running, axis=0, mask=mask, **options)
    chex.assert_trees_all_close(found, jaxnorm.moments(x, 0, mask=mask), rtol=1e-6)
    assert found.mean[1] == found.count[1] == 0 and not y[:, 1].any()
