"""`python -m jaxnorm compare`, through the command line and piece by piece."""

import csv
import functools
import importlib.util
import io
import itertools
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import matplotlib.image
import matplotlib.text
import numpy as np
import pytest
from rich.console import Console

from jaxnorm.__main__ import main
from jaxnorm.cli import compare, compare_data, compare_results, compare_training
from jaxnorm.cli.compare_model import Classifier
from jaxnorm.cli.compare_picture import STYLES, draw
from jaxnorm.cli.compare_results import Point, Result, Setting

HEADER = (
    "normalization,batch_size,learning_rate,seed,steps,test_accuracy,train_loss,"
    "target_accuracy,steps_to_target,ms_per_step"
).split(",")


def read_csv(path):
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == HEADER
    return [dict(zip(header, row, strict=True)) for row in rows]


def assert_is_a_picture(path):
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[0] > 300 and pixels.shape[1] > 600
    assert np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0).shape[0] > 20


def make_images(examples=48, shape=(8, 6, 1), classes=3):
    """Images whose class is the place of a bright square, under a little noise."""
    rng = np.random.default_rng(0)
    y = np.arange(examples) % classes
    x = rng.normal(0, 0.1, (examples, *shape))
    for i, label in enumerate(y):
        x[i, 2 * label : 2 * label + 3, :3] += 1
    return x, y


@pytest.fixture(scope="module")
def images_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "squares.npz"
    x, y = make_images()
    np.savez(path, x=x, y=y + 5, more=np.zeros(3))  # labels need not start at 0
    return path


# The whole job


@pytest.fixture(scope="module")
def whole_run(images_file, tmp_path_factory):
    """Every normalization on a small file: the output folder and what was printed."""
    out = tmp_path_factory.mktemp("whole") / "new" / "folder"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", printed)
        status = main(
            f"compare --data {images_file} --out {out} --batch-sizes 2 --learning-rates 0.05,0.1 "
            "--epochs 3 --seeds 0,3 --target 0.9 --hidden 0".split()
        )
    assert status == 0
    return out, printed.getvalue()


def test_the_csv_has_a_row_for_each_setting(whole_run):
    rows = read_csv(whole_run[0] / "compare.csv")
    settings = [tuple(row[name] for name in HEADER[:4]) for row in rows]
    assert settings == [
        (norm, "2", rate, seed)
        for seed in ("0", "3")
        for rate in ("0.05", "0.1")
        for norm in ("none", "batch", "layer", "rms", "group", "instance")
    ]
    for row in rows:
        assert row["steps"] == "54"  # 36 of 48 examples train: 18 batches in each of 3 epochs
        assert round(float(row["test_accuracy"]) * 12, 2) % 1 == pytest.approx(0, abs=0.01)
        assert float(row["ms_per_step"]) > 0
        assert row["target_accuracy"] == "0.9"
        if row["steps_to_target"]:
            assert 1 <= int(row["steps_to_target"]) <= int(row["steps"])
        else:
            assert float(row["test_accuracy"]) < 0.9


def test_the_classifier_learns_with_every_normalization(whole_run):
    # The squares are easy: a classifier that learns at all has them after 54 steps, a third
    # would be chance.
    for row in read_csv(whole_run[0] / "compare.csv"):
        assert float(row["test_accuracy"]) >= 0.9, row


def test_the_table_is_printed(whole_run):
    out, printed = whole_run
    lines = printed.splitlines()
    assert "squares: 36 training and 12 test examples, 3 epochs, 2 seeds" in lines[0]
    assert sum("│ instance " in line for line in lines) == 2
    assert lines[-1].startswith("Measured 24 rows in ")
    assert lines[-1].endswith(f" s; wrote {out}/compare.csv and {out}/compare.png.")


def test_the_picture_is_written(whole_run):
    assert_is_a_picture(whole_run[0] / "compare.png")


def test_batch_norm_speeds_digits_up_and_stands_a_higher_learning_rate(tmp_path, capsys):
    command = "compare --norms none,batch --batch-sizes 32 --learning-rates 0.1,1 --target 0.9"
    assert main([*command.split(), "--epochs", "4", "--out", str(tmp_path)]) == 0
    assert "digits: 1347 training and 450 test examples, 4 epochs, 1 seed" in (
        capsys.readouterr().out
    )
    rows = {(r["normalization"], r["learning_rate"]): r for r in read_csv(tmp_path / "compare.csv")}
    steps = {key: int(row["steps_to_target"] or 10**6) for key, row in rows.items()}
    # Measured over five seeds: the ratio is 1.5 to 2, and at 1.0 at most 0.7 without batch norm.
    assert steps["batch", "0.1"] < steps["none", "0.1"] < 10**6
    assert steps["batch", "1.0"] < 10**6 == steps["none", "1.0"]
    assert float(rows["batch", "1.0"]["test_accuracy"]) > 0.95


# Interruption


@pytest.fixture
def quick(monkeypatch):
    """Replaces the training by made-up results; the second call interrupts."""
    calls = itertools.count()

    def install(interrupted_call):
        def train(setting, split, num_classes, *, hidden, epochs, target, report):
            report(0.5, 0.75)
            if next(calls) == interrupted_call:
                raise KeyboardInterrupt
            return make_result(*setting, curve=(0.5, 0.75), target=target)

        monkeypatch.setattr(compare_training, "train", train)

    return install


def make_result(norm, batch_size, rate, seed=0, curve=(0.5, 0.9), target=0.8, ms=1.0):
    points = tuple(Point(10 * (i + 1), accuracy, 1.0) for i, accuracy in enumerate(curve))
    return Result(Setting(norm, batch_size, rate, seed), points, target, ms)


def test_an_interrupted_run_keeps_the_finished_rows(images_file, tmp_path, quick, capsys):
    quick(interrupted_call=2)
    assert main(["compare", "--data", str(images_file), "--out", str(tmp_path)]) == 130
    rows = read_csv(tmp_path / "compare.csv")
    assert [row["normalization"] for row in rows] == ["none", "batch"]
    assert_is_a_picture(tmp_path / "compare.png")
    assert "Interrupted: kept 2 rows in " in capsys.readouterr().out


def test_a_run_interrupted_at_once_writes_nothing(images_file, tmp_path, quick, capsys):
    quick(interrupted_call=0)
    assert main(["compare", "--data", str(images_file), "--out", str(tmp_path)]) == 130
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == (
        "Interrupted before the first row was measured; nothing was written.\n"
    )


def test_a_killed_run_leaves_the_finished_rows(images_file, tmp_path, quick, monkeypatch):
    quick(interrupted_call=None)
    monkeypatch.setattr(
        compare_results, "make_table", lambda *_: pytest.fail("all rows were trained")
    )
    written = []
    write_csv = compare_results.write_csv
    monkeypatch.setattr(
        compare_results,
        "write_csv",
        lambda path, results: (write_csv(path, results), written.append(len(read_csv(path)))),
    )
    with pytest.raises(pytest.fail.Exception):
        main(
            f"compare --data {images_file} --out {tmp_path} --batch-sizes 2 "
            "--learning-rates 1 --norms none,batch,rms".split()
        )
    assert written == [1, 2, 3]


def test_control_c_ends_a_real_run_and_keeps_its_rows(images_file, tmp_path):
    command = f"-m jaxnorm compare --data {images_file} --out {tmp_path} --norms none --epochs 1"
    seeds = ",".join(map(str, range(5000)))
    # Tests that run in the background of a shell ignore Ctrl-C, which a new process would inherit.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, *command.split(), "--seeds", seeds],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Strict promotion as in this process; the message of a failure comes in full.
        env=os.environ | {"JAX_NUMPY_DTYPE_PROMOTION": "strict", "COLUMNS": "100"},
    )
    signal.signal(signal.SIGINT, previous)
    deadline = time.monotonic() + 120
    path = tmp_path / "compare.csv"
    while not (path.exists() and len(path.read_text().splitlines()) > 2):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    rows = read_csv(path)
    assert f"Interrupted: kept {len(rows)} rows in " in out
    assert 2 <= len(rows) < 60000
    assert_is_a_picture(tmp_path / "compare.png")


# Mistakes of the user: one line, status 2


def assert_fails(capsys, arguments, message):
    assert main(["compare", *arguments]) == 2
    assert capsys.readouterr() == ("", f"jaxnorm: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--norms batch,weight",
            "argument --norms: unknown 'weight', expected none, batch, layer, rms, group, instance",
        ),
        ("--norms rms,rms", "argument --norms: 'rms' is given twice"),
        ("--batch-sizes 0", "argument --batch-sizes: expected a positive whole number, got '0'"),
        (
            "--learning-rates 0.1,-1",
            "argument --learning-rates: expected a positive number, got '-1'",
        ),
        ("--epochs 1.5", "argument --epochs: expected a positive whole number, got '1.5'"),
        ("--target 95", "argument --target: expected a number above 0 and up to 1, got '95'"),
        (
            "--seeds x",
            "argument --seeds: expected a whole number from 0 to 4294967295, got 'x'",
        ),
    ],
)
def test_a_wrong_argument_is_one_line(capsys, arguments, message):
    assert_fails(capsys, arguments.split(), f"{message} (see python -m jaxnorm compare --help)")


def test_a_missing_package_is_one_line(capsys, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sklearn" else find(name)
    )
    assert_fails(
        capsys,
        ["--out", str(tmp_path)],
        'this command needs sklearn, not installed here: pip install "jaxnorm[demo]"',
    )


def test_an_unwritable_output_is_found_before_training(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "train_all", lambda *_: pytest.fail("trained"))
    (tmp_path / "file").touch()
    assert_fails(
        capsys,
        ["--out", str(tmp_path / "file")],
        f"cannot write to {tmp_path}/file: File exists",
    )


def test_hidden_units_that_groups_do_not_divide_are_one_line(capsys):
    assert_fails(
        capsys,
        ["--hidden", "30"],
        "--hidden must be a multiple of 4, the groups of group norm, got 30",
    )


def test_batch_norm_of_single_values_is_one_line(capsys):
    assert_fails(
        capsys,
        ["--batch-sizes", "1,2"],
        "batch norm cannot train with batch size 1: the hidden dense layer would normalize single "
        "values; leave out one of the two, or pass --hidden 0",
    )


def test_a_batch_larger_than_the_data_is_one_line(capsys, images_file, tmp_path):
    assert_fails(
        capsys,
        f"--data {images_file} --out {tmp_path} --batch-sizes 2,37".split(),
        "too few examples: a batch of 37 needs as many training examples, squares leaves 36 of 48",
    )


X, Y = make_images()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "{path} has no array y: expected x and y, found x"),
        ({"images": X, "y": Y}, "{path} has no array x: expected x and y, found images, y"),
        ({}, "{path} has no array x: expected x and y, found nothing"),
        (
            {"x": X[..., 0], "y": Y},
            "{path}: x must have the shape (N, H, W, C), got (48, 8, 6)",
        ),
        (
            {"x": X[:, :4], "y": Y},
            "{path}: the images of x must be at least 5 x 5 pixels with 1 channel, got the shape "
            "(48, 4, 6, 1)",
        ),
        (
            {"x": X[..., :0], "y": Y},
            "{path}: the images of x must be at least 5 x 5 pixels with 1 channel, got the shape "
            "(48, 8, 6, 0)",
        ),
        ({"x": X.astype(str), "y": Y}, "{path}: x must hold real numbers, got dtype <U32"),
        ({"x": X + 0j, "y": Y}, "{path}: x must hold real numbers, got dtype complex128"),
        (
            {"x": np.where(np.arange(48)[:, None, None, None] == 5, np.nan, X), "y": Y},
            "{path}: x holds values that are not finite in float32",
        ),
        ({"x": X * 1e39, "y": Y}, "{path}: x holds values that are not finite in float32"),
        ({"x": X, "y": Y[:40]}, "{path}: y must have the shape (N,) = (48,) of x, got (40,)"),
        ({"x": X, "y": Y / 2}, "{path}: y must hold whole numbers, got dtype float64"),
        ({"x": X, "y": Y * 0}, "{path}: y must hold at least 2 classes, got 1"),
        (
            {"x": X[:0], "y": Y[:0]},
            "{path}: y must hold at least 2 classes, got 0",
        ),
        (
            {"x": X, "y": np.where(np.arange(48) < 3, 7, 0)},
            "{path}: too few examples: a class needs at least 4 to be split into training and "
            "test, class 7 has 3",
        ),
        ({"x": X.astype(object), "y": Y}, "{path} is not an .npz file of plain arrays"),
    ],
)
def test_wrong_arrays_are_one_line(capsys, tmp_path, arrays, message):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    assert_fails(capsys, ["--data", str(path), "--out", str(tmp_path)], message.format(path=path))


def test_a_missing_file_is_one_line(capsys, tmp_path):
    path = tmp_path / "missing.npz"
    assert_fails(
        capsys,
        ["--data", str(path), "--out", str(tmp_path)],
        f"cannot read {path}: No such file or directory",
    )


def test_a_folder_as_data_is_one_line(capsys, tmp_path):
    assert_fails(
        capsys,
        ["--data", str(tmp_path), "--out", str(tmp_path)],
        f"cannot read {tmp_path}: Is a directory",
    )


@pytest.mark.parametrize("kind", ["text", "empty", "array", "broken"])
def test_a_file_of_another_format_is_one_line(capsys, tmp_path, kind):
    path = tmp_path / "data.npz"
    buffer = io.BytesIO()
    np.save(buffer, X)
    path.write_bytes(
        {"text": b"x,y\n", "empty": b"", "array": buffer.getvalue(), "broken": b"PK\x03\x04"}[kind]
    )
    assert_fails(
        capsys,
        ["--data", str(path), "--out", str(tmp_path)],
        f"{path} is not an .npz file of plain arrays",
    )


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
    key, x = jax.random.key(0, impl="rbg"), jnp.zeros((2, 8, 8, 1))
    variables = {
        norm: Classifier(norm, 10, hidden=4).init(key, x, train=False) for norm in compare.NORMS
    }
    layers = ("Conv_0", "Conv_1", "Conv_2", "Dense_0", "Dense_1")
    kernels = {
        norm: [v["params"][layer]["kernel"] for layer in layers] for norm, v in variables.items()
    }
    for norm in compare.NORMS:
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


def test_every_norm_has_a_style():
    assert tuple(STYLES) == compare.NORMS


def test_an_epoch_is_a_shuffle_without_the_odd_rows():
    order = compare_training.draw_batches(examples=10, batch_size=3, epochs=2, seed=0)
    assert (order.shape, order.dtype) == ((6, 3), np.int32)
    first, second = order[:3].ravel(), order[3:].ravel()
    for rows in (first, second):
        assert len(set(rows)) == 9 and set(rows) <= set(range(10))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(order, compare_training.draw_batches(10, 3, 2, 0))
    assert not np.array_equal(order, compare_training.draw_batches(10, 3, 2, 1))


@pytest.mark.parametrize("steps", [1, 2, 7, 252, 4038])
def test_evaluations_are_spread_evenly_over_orders_of_magnitude(steps):
    ends = compare_training.evaluation_steps(steps)
    assert ends[-1] == steps and ends[0] >= 1
    assert all(a < b for a, b in itertools.pairwise(ends))
    # Thirty points over a factor of 100: 100 ** (1 / 29) = 1.1721, and both ends are rounded.
    assert all(b <= 1.1722 * a + 1.09 for a, b in itertools.pairwise(ends))
    assert len(ends) <= compare_training.EVALUATIONS


@pytest.fixture(scope="module")
def train_squares(images_file):
    data = compare_data.load_file(images_file)
    split = compare_data.split_dataset(data, 0)
    return functools.partial(
        compare_training.train,
        split=split,
        num_classes=3,
        hidden=4,
        epochs=2,
        target=0.8,
        report=lambda share, accuracy: None,
    )


def test_training_is_reproducible_and_test_blocks_do_not_matter(train_squares, monkeypatch):
    setting = Setting("batch", 9, 0.1, 0)
    once = train_squares(setting)
    monkeypatch.setattr(compare_training, "TEST_BLOCK", 5)  # 12 examples: 5, 5, 2
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
    model = Classifier("none", 3, hidden=4)
    key = jax.random.key(0, impl="rbg")
    params = model.init(key, split.x_train[:1], train=False)["params"]
    order = compare_training.draw_batches(36, 9, 2, 0)

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


# Results: summary, table, CSV, picture


def test_the_target_is_counted_from_its_first_appearance():
    assert make_result("none", 2, 1.0, curve=(0.7, 0.8, 0.6)).steps_to_target == 20
    assert make_result("none", 2, 1.0, curve=(0.7, 0.79)).steps_to_target is None


def test_the_summary_over_seeds():
    results = [
        make_result("rms", 2, 0.1, 0, curve=(0.5, 0.9), ms=1.0),
        make_result("none", 2, 0.1, 0, curve=(0.2, 0.4)),
        make_result("rms", 2, 0.1, 1, curve=(0.8, 0.8), ms=2.0),
        make_result("rms", 2, 0.1, 2, curve=(0.5, 0.7), ms=9.0),
        make_result("none", 2, 0.2, 0, curve=(0.2, 0.8)),
    ]
    rms, none, other = compare_results.summarize(results)
    assert (rms.norm, rms.batch_size, rms.learning_rate) == ("rms", 2, 0.1)
    assert rms.mean_accuracy == pytest.approx(0.8)
    # The sample deviation of 0.9, 0.8, 0.7; the median of 20 and 10.
    assert (rms.accuracy_text, rms.steps_text) == ("0.800 ± 0.100", "15 (2 of 3)")
    assert rms.ms_per_step == 2.0
    assert (none.accuracy_text, none.steps_text) == ("0.400", "never")
    assert (other.accuracy_text, other.steps_text) == ("0.800", "20")


def test_the_csv_of_results(tmp_path):
    diverged = Result(Setting("none", 2, 1.0, 3), (Point(7, 0.1, float("nan")),), 0.95, 0.25)
    reached = make_result("rms", 32, 0.03, curve=(0.5, 0.91234567))
    compare_results.write_csv(tmp_path / "a.csv", [diverged, reached])
    assert (tmp_path / "a.csv").read_text().splitlines() == [
        ",".join(HEADER),
        "none,2,1.0,3,7,0.1000,nan,0.95,,0.2500",
        "rms,32,0.03,0,20,0.9123,1,0.8,20,1.0000",
    ]


def test_the_table_groups_by_batch_size_and_learning_rate():
    results = [
        make_result(norm, batch_size, rate, curve=(0.5, accuracy))
        for (batch_size, rate, norm), accuracy in {
            (2, 0.1, "none"): 0.8,
            (2, 0.1, "batch"): 0.9,
            (2, 1.0, "none"): 0.1,
            (32, 0.1, "none"): 0.7,
        }.items()
    ]
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(compare_results.make_table(results, "data [of] mine"))
    lines = console.file.getvalue().splitlines()
    assert lines[0].strip() == "data [of] mine"
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert cells == [
        ["2", "0.1", "none", "0.800", "20", "1.00"],
        ["", "", "batch", "0.900", "20", "1.00"],
        ["2", "1", "none", "0.100", "never", "1.00"],
        ["32", "0.1", "none", "0.700", "never", "1.00"],
    ]
    # 80 columns hold the widest cells uncut.
    wide = [make_result("instance", 128, 0.003, s, curve=(0.1 * s, 0.9)) for s in range(9)]
    wide.append(make_result("instance", 128, 0.003, 9, curve=(0.1,)))
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(compare_results.make_table(wide, ""))
    assert "0.820 ± 0.253 │ 20 (9 of 10) │" in console.file.getvalue()


def make_grid(norms, batch_sizes, rates):
    rng = np.random.default_rng(0)
    return [
        make_result(norm, batch_size, rate, curve=tuple(np.sort(rng.uniform(0.1, 1, 20))))
        for norm in norms
        for batch_size in batch_sizes
        for rate in rates
    ]


def drawn_texts(figure):
    """The texts that are really drawn (ticks beyond the limits are not), and their boxes."""
    drawn = {}
    draw_text = matplotlib.text.Text.draw

    def record(text, renderer):
        draw_text(text, renderer)
        if text.get_visible() and text.get_text():
            drawn[text] = text.get_window_extent(renderer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.text.Text, "draw", record)
        figure.savefig(io.BytesIO(), dpi=figure.dpi)
    return [(text.get_text(), box) for text, box in drawn.items()]


@pytest.mark.parametrize(
    ("norms", "batch_sizes", "rates"),
    [
        (compare.NORMS, (2, 8, 32), (0.03, 0.1, 0.3, 1.0)),
        (("none",), (2,), (0.1,)),
        (("layer", "instance"), (1, 2, 4, 8, 16, 1024), (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 3.0)),
    ],
)
def test_no_two_texts_of_the_picture_overlap(norms, batch_sizes, rates):
    title = "digits: 1347 training and 450 test examples, 6 epochs, 10 seeds"
    figure = draw(make_grid(norms, batch_sizes, rates), title)
    texts = drawn_texts(figure)
    assert len(texts) > len(norms) * len(batch_sizes) * len(rates)
    for text, box in texts:
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
    for (one, box), (two, other) in itertools.combinations(texts, 2):
        # Shrunk by two pixels: a text's box is larger than its letters.
        assert not box.padded(-2).overlaps(other.padded(-2)), (one, two)


def test_the_picture_shows_the_numbers_that_were_measured():
    results = make_grid(("none", "batch"), (2, 8), (0.1, 1.0))
    figure = draw(results, "costs [$1] and $2$")
    texts = [text for text, _ in drawn_texts(figure)]
    assert "costs [$1] and $2$" in texts
    for result in results:
        assert texts.count(f"{100 * result.test_accuracy:.1f}") >= 1
    tables, curves = figure.axes[::3], [a for i, a in enumerate(figure.axes) if i % 3]
    assert [len(axes.texts) for axes in tables] == [4, 4]
    for axes in curves:
        drawn = [line for line in axes.lines if len(line.get_xdata()) == 20]
        assert [line.get_color() for line in drawn] == [STYLES[n][0] for n in ("none", "batch")]
    first = figure.axes[1].lines[0].get_ydata()
    accuracies = np.array([point.test_accuracy for point in results[0].curve])
    np.testing.assert_allclose(1 / (1 + np.exp(-np.asarray(first))), accuracies, rtol=1e-12)


def test_the_picture_of_extreme_accuracies_and_unequal_curves():
    results = [
        make_result("none", 2, 0.1, 0, curve=(0.0, 0.0)),
        make_result("none", 2, 0.1, 1, curve=(0.5,)),  # diverged: stays where it was
        make_result("batch", 2, 0.1, 0, curve=(1.0, 1.0)),
    ]
    figure = draw(results, "")
    lines = figure.axes[1].lines
    assert np.isfinite(lines[1].get_ydata()).all()
    np.testing.assert_allclose(1 / (1 + np.exp(-np.asarray(lines[0].get_ydata()))), [0.25, 0.25])
