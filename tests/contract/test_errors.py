"""Contract 9: what does not fit is an error that names it, what was expected, and the remedy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.contract import registry


def message(text):
    """A pattern that matches `text` and nothing else but what JAX notes below an error."""
    return rf"(?s)\A{re.escape(text)}(\n-+\nFor simplicity, JAX has removed .*)?\Z"


@registry.norms("errors")
@pytest.mark.parametrize("dtype", [np.int32, np.bool_], ids=["int32", "bool"])
def test_integer_input(norm, dtype):
    name = norm.called.get("x", "x")
    text = (
        f"{name} must have a floating-point or complex dtype, got {np.dtype(dtype)}; convert it "
        f"first, for example with {name}.astype(jnp.float32)."
    )
    x = np.ones(norm.shapes["five"], dtype)
    with pytest.raises(TypeError, match=message(text)):
        norm(x)
    with pytest.raises(TypeError, match=message(text)):
        jax.eval_shape(norm, x)


@registry.norms("errors")
@pytest.mark.parametrize("parameter", ["gamma", "beta"])
def test_parameter_that_does_not_fit(norm, parameter):
    if parameter not in norm.takes:
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{parameter}'"):
            norm(np.ones(norm.shapes["five"]), **{parameter: np.ones(2)})
        return
    name = norm.called.get(parameter, parameter)
    shape = norm.shapes["plain"]
    axes = tuple(a % len(shape) for a in norm.feature_axes)
    expected = tuple(shape[a] for a in axes)
    for wrong in (
        (*expected[:-1], expected[-1] + 1),
        (*expected, 1, 1, 1, 1),
        tuple(s + (i == 0) for i, s in enumerate(shape)),
    ):
        text = (
            f"{name} of shape {wrong} does not fit an input of shape {shape}: expected {expected}, "
            f"the sizes of the feature axes {axes} in ascending order, or rank {len(shape)} with "
            f"every size 1 or the input's, or one value of rank 0. Pass feature_axes to say which "
            f"axes {name} varies along."
        )
        with pytest.raises(ValueError, match=message(text)):
            norm(np.ones(shape), **{parameter: np.ones(wrong)})


@registry.norms("errors")
@pytest.mark.parametrize("epsilon", [-1e-6, float("nan"), float("inf")])
def test_epsilon_that_makes_no_sense(norm, epsilon):
    text = f"epsilon must be finite and at least 0, got {epsilon!r}."
    with pytest.raises(ValueError, match=message(text)):
        norm(np.ones(norm.shapes["five"]), epsilon=epsilon)


@registry.norms("errors")
def test_epsilon_that_is_no_number(norm):
    x = np.ones(norm.shapes["five"])
    with pytest.raises(TypeError, match=message("epsilon must be a number, got 'a'.")):
        norm(x, epsilon="a")
    with pytest.raises(TypeError, match=r"epsilon must be known when .* is traced, got "):
        jax.eval_shape(lambda epsilon: norm(x, epsilon=epsilon), 1e-3)


@registry.norms("masks")
def test_mask_that_is_not_boolean(norm):
    shape = norm.shapes["five"]
    for dtype in (np.int32, np.float32):
        text = (
            f"mask must be boolean (True: the element counts), got dtype {np.dtype(dtype)}; write "
            "mask != 0 to convert it."
        )
        with pytest.raises(TypeError, match=message(text)):
            norm(np.ones(shape), mask=np.ones(shape, dtype))


@registry.norms("masks")
def test_mask_that_does_not_broadcast(norm):
    shape = norm.shapes["five"]
    for wrong in (
        (1, *shape),
        (*shape[:-1], shape[-1] + 1),
        (shape[0] + 1,) + (1,) * len(shape[1:]),
    ):
        text = (
            f"mask of shape {wrong} does not broadcast to the input of shape {shape}; align its "
            "axes with the input's last ones, with size 1 where it does not vary."
        )
        with pytest.raises(ValueError, match=message(text)):
            norm(np.ones(shape), mask=np.ones(wrong, bool))


@registry.norms("errors")
def test_result_dtype_that_cannot_hold_it(norm):
    if "dtype" not in norm.takes:
        with pytest.raises(TypeError, match="unexpected keyword argument 'dtype'"):
            norm(np.ones(norm.shapes["five"]), dtype=jnp.float32)
        return
    text = (
        "dtype=int32 cannot hold a normalized array of dtype float32; give a floating-point dtype."
    )
    with pytest.raises(TypeError, match=message(text)):
        norm(np.ones(norm.shapes["five"]), dtype=jnp.int32)
    text = "dtype=float32 cannot hold a normalized array of dtype complex64; give a complex dtype."
    with pytest.raises(TypeError, match=message(text)):
        norm(np.ones(norm.shapes["five"], jnp.complex64), dtype=jnp.float32)
