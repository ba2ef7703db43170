"""Recurrent cells with layer norm, its statistics taken anew at each time step."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax

from jaxnorm._core.pool import compute_dtype
from jaxnorm._layers import recurrent
from jaxnorm._layers.layer import Initializer
from jaxnorm._layers.recurrent import for_each_gate
from jaxnorm.linen._base import Module
from jaxnorm.linen.feature import LayerNorm


class _Cell(recurrent._Cell, Module, nn.RNNCellBase, kw_only=True):
    gates: ClassVar[int]

    @nn.nowrap
    def _project(self, hidden: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        dtype = self._result_dtype(inputs)

        def dense(name: str, init: Initializer) -> nn.Dense:
            return nn.Dense(
                self.gates * self.features,
                use_bias=False,
                kernel_init=for_each_gate(init, self.gates),
                dtype=dtype,
                param_dtype=self.param_dtype,
                name=name,
            )

        y = dense("hidden", self.recurrent_kernel_init)(hidden)
        return y, dense("input", self.kernel_init)(inputs)

    @nn.nowrap
    def _norm(self, name: str, value: jax.Array) -> jax.Array:
        dtype = compute_dtype(value.dtype)
        norm = LayerNorm(epsilon=self.epsilon, dtype=dtype, param_dtype=self.param_dtype, name=name)
        return norm(value)


class LayerNormLSTMCell(recurrent.LSTM, _Cell, kw_only=True):
    """A long short-term memory cell with layer norm, to be used in `flax.linen.RNN`.

    On a mesh with explicit axes give `flax.linen.RNN` an `initial_carry` that lies where the inputs
    do: it makes a first carry from their shape alone.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.ones((2, 5, 3))  # examples, time, features
      >>> rnn = nn.RNN(jnn.LayerNormLSTMCell(4))
      >>> y, variables = rnn.init_with_output(jax.random.key(0), x, seq_lengths=jnp.array([5, 2]))
      >>> y.shape, variables["params"]["cell"]["norm_input"]["gamma"].shape
      ((2, 5, 4), (16,))
    """

    gates: ClassVar[int] = 4

    __call__ = nn.compact(recurrent.LSTM.__call__)

    @nn.nowrap
    def _bias(self) -> jax.Array:
        return self.param("bias", self.bias_init, (4 * self.features,), self.param_dtype)

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> recurrent.LSTMCarry:
        """Returns the first carry for inputs of shape `input_shape`."""
        return self._first_carry(rng, input_shape)


class LayerNormGRUCell(recurrent.GRU, _Cell, kw_only=True):
    """A gated recurrent unit with layer norm, to be used in `flax.linen.RNN`.

    On a mesh with explicit axes give `flax.linen.RNN` an `initial_carry` that lies where the inputs
    do: it makes a first carry from their shape alone.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.ones((2, 5, 3))  # examples, time, features
      >>> rnn = nn.Bidirectional(nn.RNN(jnn.LayerNormGRUCell(4)), nn.RNN(jnn.LayerNormGRUCell(4)))
      >>> y, variables = rnn.init_with_output(jax.random.key(0), x)
      >>> y.shape
      (2, 5, 8)
    """

    gates: ClassVar[int] = 3

    __call__ = nn.compact(recurrent.GRU.__call__)

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> jax.Array:
        """Returns the first carry for inputs of shape `input_shape`."""
        return self._first_carry(rng, input_shape)
