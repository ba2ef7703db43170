"""Converted modules, trained beside what they were converted from."""

from typing import NamedTuple

import jax
import numpy as np

from tests.convert.reference import RATE

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


class Functional:
    """A layer of another library in JAX, to be trained as a module is.

    Args:
      apply: a function of (variables, x, training) that returns y and what has changed.
    """

    __dataclass_fields__ = ("use_running_average",)

    def __init__(self, apply):
        self._apply = apply

    def apply(self, variables, x, use_running_average, mutable=False):
        # The libraries know no strict promotion.
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            y, new = self._apply(variables, x, not use_running_average)
        return (y, new) if mutable else y


def has_modes(module):
    """Whether training and evaluation are to be told apart in the call."""
    fields = type(module).__dataclass_fields__
    frozen = getattr(module, "frozen", None)
    return "use_running_average" in fields and frozen is None


def evaluate(module, variables, x):
    return module.apply(
        variables, x, **({"use_running_average": True} if has_modes(module) else {})
    )


class Trained(NamedTuple):
    """What `train` returns: evaluation before and after, the last step, and the variables."""

    before: jax.Array
    y: jax.Array
    dx: jax.Array
    after: jax.Array
    variables: dict


def train(module, variables, x, dy):
    """Returns what gradient descent over all batches makes of variables, in one program."""
    given = {"use_running_average": False} if has_modes(module) else {}

    def step(variables, arrays):
        batch, cotangent = arrays
        rest = {k: v for k, v in variables.items() if k != "params"}

        def apply(params, batch):
            own = {**rest, "params": params} if params else rest
            return module.apply(own, batch, **given, mutable=["batch_stats"])

        params = variables.get("params", {})
        y, pull, new = jax.vjp(apply, params, batch, has_aux=True)
        gradients, dx = pull(cotangent)
        if params:
            new["params"] = jax.tree.map(lambda p, g: p - np.float32(RATE) * g, params, gradients)
        return {**variables, **new}, (y, dx)

    @jax.jit
    def run(first, x, dy):
        variables, (y, dx) = jax.lax.scan(step, first, (x, dy))
        before, after = (evaluate(module, v, x[0]) for v in (first, variables))
        return Trained(before, y[-1], dx[-1], after, variables)

    return run(variables, x, dy)


def check(converted, reference, x, dy, move=lambda a: a):
    """Checks that a module and a reference evaluate alike, learn alike and then evaluate alike.

    `move` brings an array from the reference's layout to the module's.
    """
    each = jax.vmap(move)
    ours = train(*converted, each(x), each(dy))
    theirs = {"before": reference.evaluate(x[0]), "y": reference.train(x, dy)}
    theirs |= {"after": reference.evaluate(x[0])}
    if reference.dx is not None:
        theirs["dx"] = reference.dx
    for name, value in theirs.items():
        np.testing.assert_allclose(getattr(ours, name), move(value), **TOLERANCE, err_msg=name)
    learned = ours.variables.get("params", {})
    for name in ("gamma", "beta"):
        value = getattr(reference, name)
        assert (name in learned) == (value is not None)
        if value is not None:
            np.testing.assert_allclose(learned[name], value, **TOLERANCE)
    running = reference.running()
    assert ("batch_stats" in ours.variables) == (running is not None)
    if running is not None:
        for name, value in zip(("mean", "var"), running, strict=True):
            np.testing.assert_allclose(ours.variables["batch_stats"][name], value, **TOLERANCE)


def check_alike(ours, theirs):
    """Checks that two trainings gave the same, variables aside."""
    for name in ("before", "y", "dx", "after"):
        pair = (getattr(ours, name), getattr(theirs, name))
        np.testing.assert_allclose(*pair, **TOLERANCE, err_msg=name)


def check_trees(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), ours, theirs)
