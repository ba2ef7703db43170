"""Training and evaluation of one classifier, as `compare` does it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnorm.cli.compare.data import Split
from jaxnorm.cli.compare.model import Classifier
from jaxnorm.cli.compare.results import Point, Result
from jaxnorm.cli.compare.settings import Setting

EVALUATIONS = 30
TEST_BLOCK = 1024


class State(NamedTuple):
    """What a training step changes."""

    params: Any
    batch_stats: Any
    step: jax.Array
    total_loss: jax.Array


class Functions(NamedTuple):
    """The functions of one model, for any batch size, learning rate and seed."""

    initialize: Callable[[int], State]
    train_step: Callable[..., State]
    count_correct: Callable[..., jax.Array]


@functools.cache
def make_functions(
    norm: str, num_classes: int, hidden: int, image_shape: tuple[int, ...]
) -> Functions:
    """Returns the functions of one model, which compile when they are first called."""
    model = Classifier(norm, num_classes, hidden)

    # Not in jit: each initializer compiles by itself, once for all normalizations, and in a
    # third of the time with this generator.
    @functools.cache
    def initialize(seed):
        key = jax.random.key(seed, impl="rbg")
        variables = model.init(key, jnp.zeros((1, *image_shape)), train=False)
        batch_stats = variables.get("batch_stats", {})
        return State(variables["params"], batch_stats, jnp.int32(0), jnp.float32(0))

    # One call per step, in a Python loop: XLA on CPU computes convolutions inside a scan or any
    # other loop several times slower than outside.
    @jax.jit
    def train_step(state, learning_rate, x, y, order):
        rows = order[state.step]

        def loss_of(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updates = model.apply(variables, x[rows], train=True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y[rows])
            return losses.mean(), updates.get("batch_stats", {})

        (loss, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        optimizer = optax.sgd(learning_rate)
        updates, _ = optimizer.update(gradients, optimizer.init(state.params))
        params = optax.apply_updates(state.params, updates)
        return State(params, batch_stats, state.step + 1, state.total_loss + loss)

    @jax.jit
    def count_correct(state, x, y):
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        logits: Any = model.apply(variables, x, train=False)
        return (logits.argmax(-1) == y).sum()

    return Functions(initialize, train_step, count_correct)


def train(
    setting: Setting,
    split: Split,
    num_classes: int,
    *,
    hidden: int,
    epochs: int,
    target: float,
    report: Callable[[float, float], None],
) -> Result:
    """Trains one classifier by plain SGD and measures it.

    Args:
      setting: the normalization, batch size, learning rate and seed.
      split: the examples.
      num_classes: number of classes.
      hidden: units of the hidden dense layer, or 0.
      epochs: passes over the training examples.
      target: the test accuracy whose first appearance is noted.
      report: called after each evaluation with the share of the steps done and the accuracy.

    Returns:
      What was measured. Training ends early once the loss is not finite: no step can mend that.
    """
    functions = make_functions(setting.norm, num_classes, hidden, split.x_train.shape[1:])
    x, y = jnp.asarray(split.x_train), jnp.asarray(split.y_train)
    order = jnp.asarray(draw_batches(len(x), setting.batch_size, epochs, setting.seed))
    learning_rate = jnp.float32(setting.learning_rate)
    test_blocks = list(make_test_blocks(split))

    def advance(state: State, steps: int) -> State:
        for _ in range(steps):
            state = functions.train_step(state, learning_rate, x, y, order)
        return jax.block_until_ready(state)

    state = functions.initialize(setting.seed)
    advance(state, 1)  # compiles, so that no measured step does
    curve: list[Point] = []
    times: list[float] = []
    for end in evaluation_steps(len(order)):
        steps = end - (curve[-1].step if curve else 0)
        start_loss = float(state.total_loss)
        start = time.perf_counter()
        state = advance(state, steps)
        times.append((time.perf_counter() - start) / steps)
        loss = (float(state.total_loss) - start_loss) / steps
        correct = sum(int(functions.count_correct(state, *block)) for block in test_blocks)
        curve.append(Point(end, correct / len(split.y_test), loss))
        report(end / len(order), curve[-1].test_accuracy)
        if not np.isfinite(loss):
            break
    # The stretches grow; the last ones hold enough steps for a clock.
    milliseconds = 1e3 * float(np.median(times[-10:]))
    return Result(setting, tuple(curve), target, milliseconds)


def draw_batches(examples: int, batch_size: int, epochs: int, seed: int) -> np.ndarray:
    """Returns the rows of every step's batch: (steps, batch_size), shuffled anew each epoch.

    The rows that do not fill a batch at the end of an epoch are left out.
    """
    rng = np.random.default_rng(seed)
    batches = examples // batch_size
    epochs_of_rows = [rng.permutation(examples)[: batches * batch_size] for _ in range(epochs)]
    return np.concatenate(epochs_of_rows).reshape(-1, batch_size).astype(np.int32)


def evaluation_steps(steps: int) -> list[int]:
    """Returns the steps to evaluate after: each 17 % later than the one before."""
    spread = np.geomspace(max(1, steps / 100), steps, EVALUATIONS)
    return sorted({*map(int, spread.round()), steps})


def make_test_blocks(split: Split) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Yields the test examples in blocks of one size, the last filled up with label -1."""
    size = min(TEST_BLOCK, len(split.y_test))
    for start in range(0, len(split.y_test), size):
        x, y = split.x_test[start : start + size], split.y_test[start : start + size]
        missing = size - len(y)
        x = np.pad(x, ((0, missing), (0, 0), (0, 0), (0, 0)))
        yield jnp.asarray(x), jnp.asarray(np.pad(y, (0, missing), constant_values=-1))
