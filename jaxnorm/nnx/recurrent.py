"""Recurrent cells with layer norm, its statistics taken anew at each time step."""

from __future__ import annotations

import dataclasses
from dataclasses import InitVar
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._core.axes import DTypeLike
from jaxnorm._core.pool import compute_dtype
from jaxnorm._layers import feature
from jaxnorm._layers.call import NO_STATE, Call
from jaxnorm._layers.recurrent import GRU, LSTM, Activation, Initializer, for_each_gate
from jaxnorm.nnx._base import draw, module
from jaxnorm.nnx.feature import LayerNorm


def _cast_to_first(arrays: Any, **options: Any) -> Any:
    """Tells a layer its dtype by that of its input, in place of flax's rule of promotion."""
    del options
    return tuple(None if a is None else a.astype(arrays[0].dtype) for a in arrays)


@module
class _LayerNormCell(nnx.RNNCellBase):
    """What the two cells share: the projections, the norms and the first carry."""

    cell: ClassVar[type[LSTM] | type[GRU]]
    gates: ClassVar[int]

    in_features: int = dataclasses.field(kw_only=False)
    features: int = dataclasses.field(kw_only=False)
    gate_fn: Activation = nnx.sigmoid
    activation_fn: Activation = nnx.tanh
    kernel_init: InitVar[Initializer] = nnx.initializers.lecun_normal()
    recurrent_kernel_init: InitVar[Initializer] = nnx.initializers.orthogonal()
    carry_init: Initializer = nnx.initializers.zeros
    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    rngs: InitVar[nnx.Rngs | None] = None

    def __post_init__(
        self,
        kernel_init: Initializer,
        recurrent_kernel_init: Initializer,
        rngs: nnx.Rngs | None,
    ) -> None:
        if rngs is None:
            raise ValueError(f"{self.label} draws its kernels and needs rngs=nnx.Rngs(0).")

        def project(size: int, init: Initializer) -> nnx.Linear:
            return nnx.Linear(
                size,
                self.gates * self.features,
                use_bias=False,
                kernel_init=for_each_gate(init, self.gates),
                param_dtype=self.param_dtype,
                promote_dtype=_cast_to_first,
                rngs=rngs,
            )

        self.hidden = project(self.features, recurrent_kernel_init)
        self.input = project(self.in_features, kernel_init)
        for name, size in self.norm_sizes.items():
            norm = LayerNorm(size, epsilon=self.epsilon, param_dtype=self.param_dtype)
            setattr(self, name, norm)

    @property
    def norm_sizes(self) -> dict[str, int]:
        """How many features each layer norm has, by name."""
        raise NotImplementedError

    @property
    def num_feature_axes(self) -> int:
        return 1

    @property
    def label(self) -> str:
        """What errors call the cell."""
        return f"{type(self).__name__}(in_features={self.in_features}, features={self.features})"

    def _project(self, hidden: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the products of h and of x with the kernels of all gates."""
        dtype = self.cell.of(self).result_dtype(inputs)
        return self.hidden(hidden.astype(dtype)), self.input(inputs.astype(dtype))

    def _norm(self, name: str, value: jax.Array) -> jax.Array:
        norm: LayerNorm = getattr(self, name)
        layer = feature.LayerNorm(epsilon=norm.epsilon, dtype=compute_dtype(value.dtype))
        return layer._normalize(value, norm._params(value), NO_STATE, Call(norm._context()))

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Initializer | None = None,
    ) -> Any:
        """Returns the first carry for inputs of shape `input_shape`."""
        cell = self.cell.of(self)
        if carry_init is not None:
            cell = dataclasses.replace(cell, carry_init=carry_init)
        if rngs is None:
            return draw("carry", lambda key: cell.first_carry(key, input_shape), rngs, self.label)
        key = rngs.carry() if isinstance(rngs, nnx.Rngs) else rngs()
        return cell.first_carry(key, input_shape)


@module
class LayerNormLSTMCell(_LayerNormCell):
    """A long short-term memory cell with layer norm, to be used in `flax.nnx.RNN`.

    (f; i; o; g) = LN(W_h h) + LN(W_x x) + b, c' = sigmoid(f) c + sigmoid(i) tanh(g) and
    h' = sigmoid(o) tanh(LN(c')). Each LN has its own gamma and beta, and its statistics are those
    of one example at one time step: over all four gates together, and over the cell.

    Parameters: `hidden/kernel` (W_h) and `input/kernel` (W_x), the gates in the order above,
    `norm_hidden`, `norm_input` and `norm_cell` with gamma and beta, and `bias`.

    Attributes:
      in_features: size of the inputs.
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
      rngs: keys for the kernels.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> from flax import nnx
      >>> x = jnp.ones((2, 5, 3))  # examples, time, features
      >>> cell = jnx.LayerNormLSTMCell(3, 4, rngs=nnx.Rngs(0))
      >>> y = nnx.RNN(cell)(x, seq_lengths=jnp.array([5, 2]))
      >>> y.shape, cell.norm_input.gamma.shape
      ((2, 5, 4), (16,))

    Reference: Ba, Kiros & Hinton 2016, Layer Normalization, arXiv:1607.06450, supplementary
    material.
    """

    cell: ClassVar[type[LSTM] | type[GRU]] = LSTM
    gates: ClassVar[int] = 4

    bias_init: InitVar[Initializer] = nnx.initializers.zeros

    def __post_init__(
        self,
        kernel_init: Initializer,
        recurrent_kernel_init: Initializer,
        rngs: nnx.Rngs | None,
        bias_init: Initializer,
    ) -> None:
        super().__post_init__(kernel_init, recurrent_kernel_init, rngs)
        shape = (self.gates * self.features,)
        bias = draw("bias", lambda key: bias_init(key, shape, self.param_dtype), rngs, self.label)
        self.bias = nnx.Param(bias)

    @property
    def norm_sizes(self) -> dict[str, int]:
        """How many features each layer norm has, by name."""
        all_gates = self.gates * self.features
        return {"norm_hidden": all_gates, "norm_input": all_gates, "norm_cell": self.features}

    def __call__(
        self, carry: tuple[jax.Array, jax.Array], inputs: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """Returns the new carry (c, h) and h."""
        hidden, given = self._project(carry[1], inputs)
        return LSTM.of(self).step(carry, hidden, given, self.bias[...], self._norm)


@module
class LayerNormGRUCell(_LayerNormCell):
    """A gated recurrent unit with layer norm, to be used in `flax.nnx.RNN`.

    (z; r) = LN(W_h h) + LN(W_x x), n = tanh(LN(W x) + sigmoid(r) LN(U h)) and
    h' = (1 - sigmoid(z)) h + sigmoid(z) n. Each LN has its own gamma and beta, and its statistics
    are those of one example at one time step: over both gates together, and over the candidate.

    Parameters: `hidden/kernel` (W_h and U side by side) and `input/kernel` (W_x and W);
    `norm_hidden` and `norm_input` of the gates, `norm_candidate_hidden` and
    `norm_candidate_input`, each with gamma and beta.

    Attributes:
      in_features: size of the inputs.
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
      rngs: keys for the kernels.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> from flax import nnx
      >>> x = jnp.ones((2, 5, 3))  # examples, time, features
      >>> rngs = nnx.Rngs(0)
      >>> there, back = (nnx.RNN(jnx.LayerNormGRUCell(3, 4, rngs=rngs)) for _ in range(2))
      >>> nnx.Bidirectional(there, back)(x).shape
      (2, 5, 8)

    Reference: Ba, Kiros & Hinton 2016, Layer Normalization, arXiv:1607.06450, supplementary
    material. The update gate weighs the candidate; in `flax.nnx.GRUCell` it weighs the old state.
    """

    cell: ClassVar[type[LSTM] | type[GRU]] = GRU
    gates: ClassVar[int] = 3

    @property
    def norm_sizes(self) -> dict[str, int]:
        """How many features each layer norm has, by name."""
        gates = {"norm_hidden": 2 * self.features, "norm_input": 2 * self.features}
        candidate = ("norm_candidate_hidden", "norm_candidate_input")
        return gates | dict.fromkeys(candidate, self.features)

    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the new carry h, and h."""
        hidden, given = self._project(carry, inputs)
        return GRU.of(self).step(carry, hidden, given, self._norm)
