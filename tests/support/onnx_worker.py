"""Exports networks to ONNX and runs them, in a process of its own.

Run as `python -m tests.support.onnx_worker`; prints one line of JSON. jax2onnx replaces functions
of jax.numpy when it is imported, for all that the process does from then on.
"""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxnorm
import jaxnorm.linen as jnn

SHAPE = (2, 4, 4, 8)
NORMS = {
    "batch": lambda: jnn.BatchNorm(use_running_average=True),
    "layer": jnn.LayerNorm,
    "rms": jnn.RMSNorm,
    "group": lambda: jnn.GroupNorm(num_groups=4),
    "instance": jnn.InstanceNorm,
}


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


def to_onnx(function, shape):
    """The ONNX model of a function of one array."""
    import jax2onnx

    return jax2onnx.to_onnx(function, [shape])


def largest_error(norm):
    """The largest difference between a network that ONNX runs and one that JAX runs."""
    import onnxruntime

    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    network = Network(norm)
    variables = network.init(jax.random.key(0), x)

    def apply(x):
        return network.apply(variables, x)

    with jaxnorm.plain():
        model = to_onnx(apply, SHAPE)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (y,) = session.run(None, {session.get_inputs()[0].name: x})
    return float(np.abs(y - np.asarray(apply(x))).max())


def operations_of_evaluation():
    """The operations on the whole array of batch norm in evaluation, without `plain()`."""
    ones = jnp.ones(8)

    def norm(x):
        moments = jaxnorm.Moments(ones, ones, jnp.zeros(()))
        return jaxnorm.standardize(x, moments, ones, ones, axis=0, epsilon=1e-5)

    graph = to_onnx(norm, (4, 8)).graph
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    return [node.op_type for node in graph.node if shapes.get(node.output[0]) == [4, 8]]


def main():
    """Prints what the test asks, or why it cannot be asked."""
    try:
        errors = {norm: largest_error(norm) for norm in NORMS}
        result = {"errors": errors, "evaluation": operations_of_evaluation()}
    except AttributeError as error:
        if "jax._src" not in str(error):
            raise
        result = {"skip": f"jax2onnx does not follow jax {jax.__version__} yet: {error}"}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
