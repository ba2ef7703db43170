"""Converted modules, trained beside what they were converted from."""

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


def train(module, variables, x, dy):
    """Returns the last y, the variables and evaluation after them, by gradient descent."""
    given = {"use_running_average": False} if has_modes(module) else {}

    @jax.jit
    def run(variables, x, dy):
        def step(variables, arrays):
            batch, cotangent = arrays
            rest = {k: v for k, v in variables.items() if k != "params"}

            def apply(params):
                all_variables = {**rest, "params": params} if params else rest
                return module.apply(all_variables, batch, **given, mutable=["batch_stats"])

            y, pull, new = jax.vjp(apply, variables.get("params", {}), has_aux=True)
            (gradients,) = pull(cotangent)
            variables = {**variables, **new}
            if "params" in variables:
                move = lambda p, g: p - np.asarray(RATE, p.dtype) * g  # noqa: E731
                variables["params"] = jax.tree.map(move, variables["params"], gradients)
            return variables, y

        variables, y = jax.lax.scan(step, variables, (x, dy))
        return y[-1], variables, evaluate(module, variables, x[0])

    return run(variables, x, dy)


def check(converted, reference, x, dy, move=lambda a: a):
    """Checks that a module and a reference evaluate alike, learn alike and then evaluate alike.

    `move` brings an array from the reference's layout to the module's.
    """
    module, variables = converted
    np.testing.assert_allclose(
        evaluate(module, variables, move(x[0])), move(reference.evaluate(x[0])), **TOLERANCE
    )
    each = jax.vmap(move)
    y, variables, after = train(module, variables, each(x), each(dy))
    np.testing.assert_allclose(y, move(reference.train(x, dy)), **TOLERANCE)
    np.testing.assert_allclose(after, move(reference.evaluate(x[0])), **TOLERANCE)
    learned = variables.get("params", {})
    for name in ("gamma", "beta"):
        value = getattr(reference, name)
        assert (name in learned) == (value is not None)
        if value is not None:
            np.testing.assert_allclose(learned[name], value, **TOLERANCE)
    running = reference.running()
    assert ("batch_stats" in variables) == (running is not None)
    if running is not None:
        for name, value in zip(("mean", "var"), running, strict=True):
            np.testing.assert_allclose(variables["batch_stats"][name], value, **TOLERANCE)
