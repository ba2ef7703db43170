"""Moments of raw inputs, streaming over a data set."""

import builtins

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxnorm
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx
from jaxnorm import tools

pytestmark = pytest.mark.quickly_compiled


@pytest.fixture
def data(rng):
    """Seven uneven batches, a mean/std of 1e5 in the first feature and 1e-3 in the second."""
    scale, mean = np.array([1.0, 50.0, 3.0]), np.array([1e5, 0.05, -2.0])
    sizes = [32, 32, 32, 1, 17, 32, 5]
    return [(scale * rng.normal(size=(n, 4, 3)) + mean).astype(np.float32) for n in sizes]


def test_equals_the_whole_data_set(data):
    moments = tools.dataset_moments(data, axis=(0, 1))
    whole = np.concatenate(data).astype(np.float64)
    assert {value.dtype.name for value in moments} == {"float64"}
    # Within a batch float32 rounds the mean of what is left after a shift; the rest is float64.
    error = np.abs(moments.mean - whole.mean((0, 1))) / whole.std((0, 1))
    assert error.max() < 1e-6
    np.testing.assert_allclose(moments.var, whole.var((0, 1)), rtol=1e-6)
    np.testing.assert_array_equal(moments.count, np.full(3, whole.shape[0] * 4))


def test_many_batches_are_merged_in_float64():
    """Ten thousand batches: float32 would have lost the small ones against the sum."""
    batches = [np.full((2, 1), i % 7, np.float32) for i in range(1000)] * 10
    moments = tools.dataset_moments(batches, axis=0)
    values = np.concatenate(batches).astype(np.float64)
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.var, values.var(0), rtol=1e-12)


def test_masks_and_generators(data, rng):
    masks = [rng.random((len(x), 4, 1)) < 0.5 for x in data]
    masks[2][:] = False
    moments = tools.dataset_moments(zip(data, masks, strict=True), axis=(0, 1))
    kept = np.concatenate([x[m[..., 0]] for x, m in zip(data, masks, strict=True)])
    kept = kept.astype(np.float64)
    assert (np.abs(moments.mean - kept.mean(0)) / kept.std(0)).max() < 1e-6
    np.testing.assert_allclose(moments.var, kept.var(0), rtol=1e-6)
    np.testing.assert_array_equal(moments.count, np.full(3, len(kept)))


def test_batches_sharded_over_devices(data):
    mesh = jax.make_mesh((8,), ("d",))
    sharded = [jax.device_put(x, NamedSharding(mesh, PartitionSpec("d"))) for x in data[:3]]
    moments = tools.dataset_moments(sharded, axis=(0, 1))
    whole = np.concatenate(data[:3]).astype(np.float64)
    np.testing.assert_allclose(moments.var, whole.var((0, 1)), rtol=1e-6)


def test_normalize_and_back(data):
    moments = tools.dataset_moments(data, axis=(0, 1))
    x = jnp.asarray(data[0])
    y = jaxnorm.standardize(x, moments, axis=(0, 1), epsilon=0.0)
    whole = np.concatenate(data).astype(np.float64)
    expected = (np.asarray(x) - whole.mean((0, 1))) / whole.std((0, 1))
    # At mean/std 1e5 the mean, rounded to float32, is off by up to 4e-3 standard deviations.
    np.testing.assert_allclose(y[..., 0], expected[..., 0], atol=8e-3)
    np.testing.assert_allclose(y[..., 1:], expected[..., 1:], atol=2e-5)
    back = jaxnorm.unstandardize(y, moments, axis=(0, 1), epsilon=0.0)
    np.testing.assert_allclose(back, x, rtol=1e-6, atol=1e-5)


def test_unstandardize_undoes_gamma_and_beta(rng):
    x = jnp.asarray(rng.normal(size=(5, 3)), jnp.bfloat16)
    gamma, beta = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.0, 3.0, 1.0])
    moments = jaxnorm.moments(x, 0)
    y = jaxnorm.standardize(x, moments, gamma, beta, axis=0, epsilon=1e-3, dtype=jnp.float32)
    back = jaxnorm.unstandardize(y, moments, gamma, beta, axis=0, epsilon=1e-3, dtype=jnp.bfloat16)
    assert back.dtype == jnp.bfloat16
    np.testing.assert_array_equal(back.astype(jnp.float32), x.astype(jnp.float32))


@pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float16])
def test_the_way_back_is_not_as_coarse_as_the_network(rng, narrow):
    x = jnp.asarray(1000 + rng.normal(size=(4, 16, 3)), jnp.float32)
    moments = jaxnorm.moments(x, (0, 1))
    y = jaxnorm.standardize(x, moments, axis=(0, 1), epsilon=0.0).astype(narrow)
    backs = [jaxnorm.unstandardize(y, moments, axis=(0, 1), epsilon=0.0)]

    def there_and_back(revin, x):
        return revin.denormalize(revin.normalize(x).astype(narrow))

    backs.append(there_and_back(jnx.RevIN(3), x))
    key = jax.random.key(0)
    backs.append(jnn.RevIN().init_with_output(key, x, method=there_and_back)[0])
    norm = jnx.InputNorm(3)
    norm(x)
    backs.append(norm.inverse(y))
    norm = jnn.InputNorm(use_running_average=False)
    _, stats = norm.apply(norm.init(key, x), x, mutable=["batch_stats"])
    backs.append(norm.apply(stats, y, method="inverse"))
    for back in backs:
        assert back.dtype == jnp.float32
        # What `narrow` costs between: 2^-9 of up to 4 deviations.
        np.testing.assert_allclose(back, x, rtol=0, atol=4 * 2.0**-8)
    assert jnx.InputNorm(3, dtype=narrow).inverse(y).dtype == narrow


def test_one_array_is_no_iterable_of_batches(data):
    norm, twin = jnn.BatchNorm(use_running_average=True), jnx.BatchNorm(3)
    variables = norm.init(jax.random.key(0), data[0])
    for batches, got in (
        (data[0], r"one array of shape \(32, 4, 3\)"),
        (jnp.asarray(data[0]), r"one array of shape \(32, 4, 3\)"),
        ({"y": data[1], "x": data[0]}, r"one mapping, of \['x', 'y'\]"),
    ):
        for tool, call in (
            ("dataset_moments", lambda b: tools.dataset_moments(b, axis=0)),
            ("recalibrate", lambda b: tools.recalibrate(norm, variables, b)),
            ("recalibrate", lambda b: tools.recalibrate(twin, b)),
            ("inspect", lambda b: tools.inspect(norm, variables, b)),
            ("inspect", lambda b: tools.inspect(twin, b)),
        ):
            with pytest.raises(TypeError, match=f"^{tool} takes an iterable of batches, got {got}"):
                call(batches)


def test_no_batches():
    with pytest.raises(ValueError) as error:
        tools.dataset_moments([], axis=0)
    assert str(error.value) == ("batches is empty; a data set's moments need at least one batch.")


def test_a_progress_bar_needs_rich(data, monkeypatch, capsys):
    plain = tools.dataset_moments(data, axis=(0, 1))
    shown = tools.dataset_moments(data, axis=(0, 1), progress=True)
    np.testing.assert_array_equal(shown.mean, plain.mean)
    assert "moments of the data" in capsys.readouterr().err

    original = builtins.__import__

    def without_rich(name, *args, **kwargs):
        if name.startswith("rich"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_rich)
    with pytest.raises(ImportError) as error:
        tools.dataset_moments(data, axis=(0, 1), progress=True)
    assert str(error.value) == (
        "progress=True draws with rich, which is not installed: pip install rich, or leave "
        "progress out."
    )
