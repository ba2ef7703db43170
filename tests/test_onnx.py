"""Networks with each norm go to ONNX inside `plain()`, and run there as here."""

import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
import jaxnorm.linen as jnn

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("jax2onnx", reason="jax2onnx is not installed")

SHAPE = (2, 4, 4, 8)
NORMS = {
    "batch": lambda: jnn.BatchNorm(use_running_average=True),
    "layer": jnn.LayerNorm,
    "rms": jnn.RMSNorm,
    "group": lambda: jnn.GroupNorm(num_groups=4),
    "instance": jnn.InstanceNorm,
}


def export(function, shape):
    """The ONNX model of a function of one array."""
    try:
        # Its own convolution and product add a bias of rank 1.
        with jax.numpy_rank_promotion("allow"):
            return importlib.import_module("jax2onnx").to_onnx(function, [shape])
    except AttributeError as error:
        if "jax._src" in str(error):
            pytest.skip(f"jax2onnx does not follow jax {jax.__version__} yet: {error}")
        raise


class Network(nn.Module):
    """A convolution, a norm and a dense layer with normalized weights.

    Attributes:
      norm: a key of `NORMS`.
    """

    norm: str

    @nn.compact
    def __call__(self, x):
        """Returns four numbers for each position."""
        x = nn.relu(NORMS[self.norm]()(nn.Conv(8, (3, 3))(x)))
        return jnn.WeightNorm(nn.Dense(4))(x)


@pytest.mark.parametrize("norm", NORMS)
def test_a_network_runs_as_here(norm, rng):
    x = rng.normal(size=SHAPE).astype(np.float32)
    network = Network(norm)
    variables = network.init(jax.random.key(0), x)

    def apply(x):
        return network.apply(variables, x)

    with jaxnorm.plain():
        model = export(apply, SHAPE)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (y,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(y, apply(x), atol=1e-5)


def test_evaluation_is_one_subtraction_one_product_and_one_sum():
    """Of the array; what is left are computations of 8 numbers. Without `plain()`."""
    ones = jnp.ones(8)

    def norm(x):
        moments = jaxnorm.Moments(ones, ones, jnp.zeros(()))
        return jaxnorm.standardize(x, moments, ones, ones, axis=0, epsilon=1e-5)

    model = export(norm, (4, 8))
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.value_info, *model.graph.output)
    }
    whole = [n.op_type for n in model.graph.node if shapes.get(n.output[0]) == [4, 8]]
    assert whole == ["Sub", "Mul", "Add"]
