"""Recurrent cells with layer norm, its statistics taken anew at each time step."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnorm._core.pool import compute_dtype
from jaxnorm._layers.recurrent import GRU, LSTM, Activation, for_each_gate
from jaxnorm.linen.feature import LayerNorm


class _Cell(nn.RNNCellBase):
    """Holds the number of units, the one field that can be given by position."""

    features: int


class _LayerNormCell(_Cell, kw_only=True):
    """What the two cells share: the projections, the norms and the first carry."""

    gate_fn: Activation = nn.sigmoid
    activation_fn: Activation = nn.tanh
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    recurrent_kernel_init: nn.initializers.Initializer = nn.initializers.orthogonal()
    carry_init: nn.initializers.Initializer = nn.initializers.zeros
    epsilon: float = 1e-6
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32

    @property
    def num_feature_axes(self) -> int:
        return 1

    @nn.nowrap
    def _project(self, name: str, value: jax.Array, gates: int, init, dtype) -> jax.Array:
        """Multiplies by the kernel of all gates, each of which `init` draws by itself."""
        dense = nn.Dense(
            gates * self.features,
            use_bias=False,
            kernel_init=for_each_gate(init, gates),
            dtype=dtype,
            param_dtype=self.param_dtype,
            name=name,
        )
        return dense(value)

    @nn.nowrap
    def _norm(self, name: str, value: jax.Array) -> jax.Array:
        norm = LayerNorm(
            epsilon=self.epsilon,
            dtype=compute_dtype(value.dtype),
            param_dtype=self.param_dtype,
            name=name,
        )
        return norm(value)


class LayerNormLSTMCell(_LayerNormCell, kw_only=True):
    """A long short-term memory cell with layer norm, to be used in `flax.linen.RNN`.

    (f; i; o; g) = LN(W_h h) + LN(W_x x) + b, c' = sigmoid(f) c + sigmoid(i) tanh(g) and
    h' = sigmoid(o) tanh(LN(c')). Each LN has its own gamma and beta, and its statistics are those
    of one example at one time step: over all four gates together, and over the cell.

    Parameters: `hidden/kernel` (W_h) and `input/kernel` (W_x), the gates in the order above,
    `norm_hidden`, `norm_input` and `norm_cell` with gamma and beta, and `bias`.

    On a mesh with explicit axes give `flax.linen.RNN` an `initial_carry` that lies where the inputs
    do: it makes a first carry from their shape alone.

    Attributes:
      features: number of units.
      gate_fn: activation of the gates.
      activation_fn: activation of the candidate and of the cell.
      kernel_init: initializer of the input kernel of each gate.
      recurrent_kernel_init: initializer of the recurrent kernel of each gate.
      bias_init: initializer of b.
      carry_init: initializer of the first carry.
      epsilon: added to the variances.
      dtype: dtype of the products and of the output; default: that of the inputs. The carry keeps
        its own dtype, at first `param_dtype`.
      param_dtype: dtype of the parameters and of the first carry.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.ones((2, 5, 3))  # examples, time, features
      >>> rnn = nn.RNN(jnn.LayerNormLSTMCell(4))
      >>> y, variables = rnn.init_with_output(jax.random.key(0), x, seq_lengths=jnp.array([5, 2]))
      >>> y.shape, variables["params"]["cell"]["norm_input"]["gamma"].shape
      ((2, 5, 4), (16,))

    Reference: Ba, Kiros & Hinton 2016, Layer Normalization, arXiv:1607.06450, supplementary
    material.
    """

    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, jax.Array], inputs: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """Returns the new carry (c, h) and h."""
        cell = LSTM.of(self)
        dtype = cell.result_dtype(inputs)
        hidden = self._project("hidden", carry[1], 4, self.recurrent_kernel_init, dtype)
        given = self._project("input", inputs, 4, self.kernel_init, dtype)
        bias = self.param("bias", self.bias_init, (4 * self.features,), self.param_dtype)
        return cell.step(carry, hidden, given, bias, self._norm)

    @nn.nowrap
    def initialize_carry(
        self, rng: jax.Array, input_shape: tuple[int, ...]
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the first carry for inputs of shape `input_shape`."""
        return LSTM.of(self).first_carry(rng, input_shape)


class LayerNormGRUCell(_LayerNormCell, kw_only=True):
    """A gated recurrent unit with layer norm, to be used in `flax.linen.RNN`.

    (z; r) = LN(W_h h) + LN(W_x x), n = tanh(LN(W x) + sigmoid(r) LN(U h)) and
    h' = (1 - sigmoid(z)) h + sigmoid(z) n. Each LN has its own gamma and beta, and its statistics
    are those of one example at one time step: over both gates together, and over the candidate.

    Parameters: `hidden/kernel` (W_h and U side by side) and `input/kernel` (W_x and W);
    `norm_hidden` and `norm_input` of the gates, `norm_candidate_hidden` and
    `norm_candidate_input`, each with gamma and beta.

    On a mesh with explicit axes give `flax.linen.RNN` an `initial_carry` that lies where the inputs
    do: it makes a first carry from their shape alone.

    Attributes:
      features: number of units.
      gate_fn: activation of the gates.
      activation_fn: activation of the candidate.
      kernel_init: initializer of the input kernel of each gate and of the candidate.
      recurrent_kernel_init: initializer of their recurrent kernels.
      carry_init: initializer of the first carry.
      epsilon: added to the variances.
      dtype: dtype of the products and of the output; default: that of the inputs. The carry keeps
        its own dtype, at first `param_dtype`.
      param_dtype: dtype of the parameters and of the first carry.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.ones((2, 5, 3))  # examples, time, features
      >>> rnn = nn.Bidirectional(nn.RNN(jnn.LayerNormGRUCell(4)), nn.RNN(jnn.LayerNormGRUCell(4)))
      >>> y, variables = rnn.init_with_output(jax.random.key(0), x)
      >>> y.shape
      (2, 5, 8)

    Reference: Ba, Kiros & Hinton 2016, Layer Normalization, arXiv:1607.06450, supplementary
    material. The update gate weighs the candidate; in `flax.linen.GRUCell` it weighs the old state.
    """

    @nn.compact
    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the new carry h, and h."""
        cell = GRU.of(self)
        dtype = cell.result_dtype(inputs)
        hidden = self._project("hidden", carry, 3, self.recurrent_kernel_init, dtype)
        given = self._project("input", inputs, 3, self.kernel_init, dtype)
        return cell.step(carry, hidden, given, self._norm)

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> jax.Array:
        """Returns the first carry for inputs of shape `input_shape`."""
        return GRU.of(self).first_carry(rng, input_shape)
