"""What the tests of the comparison share."""

import numpy as np

from jaxnorm.cli.compare.results import Point, Result
from jaxnorm.cli.compare.settings import Setting

HEADER = (
    "normalization,batch_size,learning_rate,seed,steps,test_accuracy,train_loss,"
    "target_accuracy,steps_to_target,ms_per_step"
).split(",")


def make_images(examples=48, shape=(8, 6, 1), classes=3):
    """Images whose class is the place of a bright square, under a little noise."""
    rng = np.random.default_rng(0)
    y = np.arange(examples) % classes
    x = rng.normal(0, 0.1, (examples, *shape))
    for i, label in enumerate(y):
        x[i, 2 * label : 2 * label + 3, :3] += 1
    return x, y


def make_result(norm, batch_size, rate, seed=0, curve=(0.5, 0.9), target=0.8, ms=1.0):
    points = tuple(Point(10 * (i + 1), accuracy, 1.0) for i, accuracy in enumerate(curve))
    return Result(Setting(norm, batch_size, rate, seed), points, target, ms)


X, Y = make_images()
