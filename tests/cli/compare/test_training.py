"""What the comparison trains: its data, its model, and the steps."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm.cli.compare import data as compare_data
from jaxnorm.cli.compare import training
from jaxnorm.cli.compare.model import Classifier
from jaxnorm.cli.compare.norms import CLASSICAL, NORMS
from jaxnorm.cli.compare.settings import Setting
from tests.cli.compare.rows import X, Y

pytestmark = pytest.mark.quickly_compiled

# The data


def test_digits_are_what_scikit_learn_carries():
    data = compare_data.load_digits()
    assert (data.name, data.x.shape, data.y.shape) == ("digits", (1797, 8, 8, 1), (1797,))
    assert (data.x.dtype, data.y.dtype, data.num_classes) == (np.float32, np.int32, 10)


def test_a_file_is_read_and_its_labels_numbered(images_file):
    data = compare_data.load_file(images_file)
    np.testing.assert_array_equal(data.x, X.astype(np.float32))
    np.testing.assert_array_equal(data.y, Y)
    assert (data.name, data.y.dtype, data.num_classes) == ("squares", np.int32, 3)


def test_the_split_is_stratified_seeded_and_standardized():
    data = compare_data.load_digits()
    split = compare_data.split_dataset(data, 1)
    again = compare_data.split_dataset(data, 1)
    other = compare_data.split_dataset(data, 2)
    for one, two in zip(split, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(split.y_test, other.y_test)
    assert (len(split.y_train), len(split.y_test)) == (1347, 450)
    # A quarter of each class, rounded up or down.
    assert np.all(np.abs(np.bincount(split.y_test) - np.bincount(data.y) / 4) < 1)
    # float32 keeps 7 digits of a mean over 86,208 values of size 1.
    assert abs(split.x_train.mean(dtype=np.float64)) < 1e-6
    assert abs(split.x_train.std(dtype=np.float64) - 1) < 1e-6
    # No example is lost or used twice.
    raw = np.concatenate([split.x_train, split.x_test]).reshape(1797, -1)
    assert len(np.unique(raw, axis=0)) == len(np.unique(data.x.reshape(1797, -1), axis=0))


def test_constant_images_are_not_divided_by_zero():
    data = compare_data.Dataset("flat", np.ones((8, 5, 5, 1), np.float32), np.arange(8) % 2, 2)
    np.testing.assert_array_equal(compare_data.split_dataset(data, 0).x_train, 0)


# The model and its training


def test_the_models_differ_by_their_normalization_alone():
    key, x = jax.random.key(0, impl="rbg"), np.zeros((2, 8, 8, 1), np.float32)
    models = {norm: Classifier(norm, 10, hidden=8) for norm in CLASSICAL}
    variables = jax.jit(
        lambda: {norm: model.init(key, x, train=False) for norm, model in models.items()}
    )()
    layers = ("Conv_0", "Conv_1", "Conv_2", "Dense_0", "Dense_1")
    kernels = {
        norm: [v["params"][layer]["kernel"] for layer in layers] for norm, v in variables.items()
    }
    for norm in CLASSICAL:
        for one, two in zip(kernels[norm], kernels["none"], strict=True):
            np.testing.assert_array_equal(one, two)
    found = {}
    for norm, v in variables.items():
        found[norm] = {
            f"{path[0].key}:{path[1].key}" for path, _ in jax.tree.leaves_with_path(v["params"])
        }
    kernels = {f"{layer}:kernel" for layer in layers} | {"Dense_1:bias"}
    conv_biases = {f"Conv_{i}:bias" for i in range(3)}

    def affine(module, count):
        return {f"{module}_{i}:{p}" for i in range(count) for p in ("gamma", "beta")}

    gammas = {f"RMSNorm_{i}:gamma" for i in range(4)}
    assert found == {
        "none": kernels | conv_biases | {"Dense_0:bias"},
        "rms": kernels | conv_biases | {"Dense_0:bias"} | gammas,
        "batch": kernels | affine("BatchNorm", 4),
        "layer": kernels | affine("LayerNorm", 4),
        "group": kernels | affine("GroupNorm", 4),
        # The hidden layer has no positions to pool: it goes without.
        "instance": kernels | affine("InstanceNorm", 3) | {"Dense_0:bias"},
    }
    assert [norm for norm, v in variables.items() if "batch_stats" in v] == ["batch"]


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_with_every_norm_keeps_the_shapes_of_its_state(norm):
    """Traced alone: what the modules compute is tested with them."""
    functions = training.make_functions(norm, 10, 8, (8, 8, 1))
    state = jax.eval_shape(functions.initialize.__wrapped__, 0)
    rows = jax.ShapeDtypeStruct((5, 2), jnp.int32)
    x, y = jax.ShapeDtypeStruct((9, 8, 8, 1), jnp.float32), jax.ShapeDtypeStruct((9,), jnp.int32)
    new = jax.eval_shape(functions.train_step, state, jnp.float32(0.1), x, y, rows)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    assert jax.eval_shape(functions.count_correct, new, x, y).shape == ()
    of_norms = [name for name in state.params if not name.startswith(("Conv", "Dense"))]
    assert bool(of_norms or state.batch_stats) == (norm not in ("none", "lrn", "pixel"))


def test_an_epoch_is_a_shuffle_without_the_odd_rows():
    order = training.draw_batches(examples=10, batch_size=3, epochs=2, seed=0)
    assert (order.shape, order.dtype) == ((6, 3), np.int32)
    first, second = order[:3].ravel(), order[3:].ravel()
    for rows in (first, second):
        assert len(set(rows)) == 9 and set(rows) <= set(range(10))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(order, training.draw_batches(10, 3, 2, 0))
    assert not np.array_equal(order, training.draw_batches(10, 3, 2, 1))


@pytest.mark.parametrize("steps", [1, 2, 7, 252, 4038])
def test_evaluations_are_spread_evenly_over_orders_of_magnitude(steps):
    ends = training.evaluation_steps(steps)
    assert ends[-1] == steps and ends[0] >= 1
    assert all(a < b for a, b in itertools.pairwise(ends))
    # Thirty points over a factor of 100: 100 ** (1 / 29) = 1.1721, and both ends are rounded.
    assert all(b <= 1.1722 * a + 1.09 for a, b in itertools.pairwise(ends))
    assert len(ends) <= training.EVALUATIONS


@pytest.fixture(scope="module")
def train_squares(images_file):
    data = compare_data.load_file(images_file)
    split = compare_data.split_dataset(data, 0)
    return functools.partial(
        training.train,
        split=split,
        num_classes=3,
        hidden=8,
        epochs=2,
        target=0.8,
        report=lambda share, accuracy: None,
    )


def test_training_is_reproducible_and_test_blocks_do_not_matter(train_squares, monkeypatch):
    setting = Setting("batch", 9, 0.1, 0)
    once = train_squares(setting)
    monkeypatch.setattr(training, "TEST_BLOCK", 5)  # 12 examples: 5, 5, 2
    assert train_squares(setting).curve == once.curve
    assert train_squares(setting._replace(seed=1)).curve != once.curve


def test_progress_is_reported_to_the_end(train_squares):
    seen = []
    result = train_squares(
        Setting("none", 9, 0.1, 0), report=lambda share, accuracy: seen.append((share, accuracy))
    )
    steps = [point.step for point in result.curve]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert seen == [(p.step / 8, p.test_accuracy) for p in result.curve]


def test_a_diverged_training_ends_early(train_squares):
    result = train_squares(Setting("none", 2, 1e9, 0))
    assert not np.isfinite(result.curve[-1].train_loss)
    assert result.curve[-1].step < 36
    assert all(np.isfinite(point.train_loss) for point in result.curve[:-1])


def test_the_first_steps_match_plain_gradient_descent(train_squares, images_file):
    # Once more, by hand and eagerly: the loss of the first steps of SGD without normalization.
    split = compare_data.split_dataset(compare_data.load_file(images_file), 0)
    model = Classifier("none", 3, hidden=8)
    key = jax.random.key(0, impl="rbg")
    params = model.init(key, split.x_train[:1], train=False)["params"]
    order = training.draw_batches(36, 9, 2, 0)

    @jax.jit
    def loss_and_gradient(params, x, y):
        def loss_of(params):
            logits = model.apply({"params": params}, x, train=True)
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

        return jax.value_and_grad(loss_of)(params)

    losses = []
    for rows in order[:3]:
        loss, gradient = loss_and_gradient(params, split.x_train[rows], split.y_train[rows])
        losses.append(float(loss))
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    measured = [p.train_loss for p in train_squares(Setting("none", 9, 0.1, 0)).curve[:3]]
    # Losses near 1, differences of running float32 sums: a few units in the last place of 3.
    np.testing.assert_allclose(measured, losses, rtol=0, atol=2e-6)
