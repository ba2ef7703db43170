"""Recurrent cells with layer norm: their options and equations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, DTypeLike
from jaxnorm._core.mesh import placed, spec_of, undivided
from jaxnorm._core.pool import compute_dtype
from jaxnorm._layers.layer import Initializer, Layer
from jaxnorm._layers.options import options

Activation = Callable[[jax.Array], jax.Array]
LSTMCarry = tuple[jax.Array, jax.Array]


@options
class _Cell(Layer):
    features: int = dataclasses.field(kw_only=False)
    """number of units."""
    gate_fn: Activation = jax.nn.sigmoid
    """activation of the gates."""
    activation_fn: Activation = jnp.tanh
    """activation of the candidate and of the cell."""
    kernel_init: Initializer = initializers.lecun_normal()
    """initializer of the input kernel of each gate and of the candidate."""
    recurrent_kernel_init: Initializer = initializers.orthogonal()
    """initializer of their recurrent kernels."""
    carry_init: Callable[..., jax.Array] = initializers.zeros
    """initializer of the first carry."""
    epsilon: float = 1e-6
    """added to the variances."""
    dtype: DTypeLike | None = None
    """dtype of the products and of the output; default: that of the inputs. The carry keeps its own
    dtype, at first `param_dtype`."""
    param_dtype: DTypeLike = jnp.float32
    """dtype of the parameters and of the first carry."""

    def _project(self, hidden: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the products of h and of x with the kernels of all gates. Modules have it."""
        raise NotImplementedError

    def _norm(self, name: str, value: jax.Array) -> jax.Array:
        """Returns the layer norm called `name`, of a value. Modules have it."""
        raise NotImplementedError

    def _first_carry(
        self, key: jax.Array | None, input_shape: tuple[int, ...], init: Initializer | None = None
    ) -> Any:
        """Returns a first carry for inputs of shape `input_shape`, by `carry_init` or `init`."""
        raise NotImplementedError

    @property
    def num_feature_axes(self) -> int:
        return 1

    def _result_dtype(self, inputs: ArrayLike) -> jnp.dtype:
        """Returns the dtype of the products and of the output."""
        return _axes.result_dtype(_axes.check_input(inputs, "inputs"), self.dtype)

    def _first(
        self, key: jax.Array | None, input_shape: tuple[int, ...], init: Initializer | None
    ) -> jax.Array:
        shape = (*input_shape[:-1], self.features)
        return (init or self.carry_init)(key, shape, self.param_dtype)


@options
class LSTM(_Cell):
    """A long short-term memory cell.

    (f; i; o; g) = LN(W_h h) + LN(W_x x) + b, c' = sigmoid(f) c + sigmoid(i) tanh(g) and
    h' = sigmoid(o) tanh(LN(c')). Each LN has its own gamma and beta, and its statistics are those
    of one example at one time step: over all four gates together, and over the cell.

    Parameters: `hidden/kernel` (W_h) and `input/kernel` (W_x), the gates in the order above,
    `norm_hidden`, `norm_input` and `norm_cell` with gamma and beta, and `bias`.

    Reference: Ba, Kiros & Hinton 2016, Layer Normalization, arXiv:1607.06450, supplementary
    material.
    """

    bias_init: Initializer = initializers.zeros
    """initializer of b."""

    def _bias(self) -> jax.Array:
        """Returns b of all gates. Modules have it."""
        raise NotImplementedError

    def __call__(self, carry: LSTMCarry, inputs: jax.Array) -> tuple[LSTMCarry, jax.Array]:
        """Returns the new carry (c, h) and h."""
        c, h = carry
        hidden, projected = self._project(h, inputs)
        wide = compute_dtype(hidden.dtype)
        gates = self._norm("norm_hidden", hidden) + self._norm("norm_input", projected)
        bias = jnp.expand_dims(self._bias().astype(wide), range(gates.ndim - 1))
        f, i, o, g = _split(gates + placed(bias, spec_of(gates)), 4)
        new_c = self.gate_fn(f) * c.astype(wide) + self.gate_fn(i) * self.activation_fn(g)
        new_h = self.gate_fn(o) * self.activation_fn(self._norm("norm_cell", new_c))
        return (new_c.astype(c.dtype), new_h.astype(h.dtype)), new_h.astype(hidden.dtype)

    def _first_carry(
        self, key: jax.Array | None, input_shape: tuple[int, ...], init: Initializer | None = None
    ) -> LSTMCarry:
        # Without a key, which a constant initializer does not need.
        key_c, key_h = (None, None) if key is None else jax.random.split(key)
        return self._first(key_c, input_shape, init), self._first(key_h, input_shape, init)


@options
class GRU(_Cell):
    """A gated recurrent unit.

    (z; r) = LN(W_h h) + LN(W_x x), n = tanh(LN(W x) + sigmoid(r) LN(U h)) and
    h' = (1 - sigmoid(z)) h + sigmoid(z) n. Each LN has its own gamma and beta, and its statistics
    are those of one example at one time step: over both gates together, and over the candidate.

    Parameters: `hidden/kernel` (W_h and U side by side) and `input/kernel` (W_x and W);
    `norm_hidden` and `norm_input` of the gates, `norm_candidate_hidden` and
    `norm_candidate_input`, each with gamma and beta.

    Reference: Ba, Kiros & Hinton 2016, Layer Normalization, arXiv:1607.06450, supplementary
    material. The update gate weighs the candidate; in Flax's `GRUCell` it weighs the old state.
    """

    activation_fn: Activation = jnp.tanh
    """activation of the candidate."""

    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the new carry h, and h."""
        hidden, projected = self._project(carry, inputs)
        wide, dtype = compute_dtype(hidden.dtype), hidden.dtype
        parts = (2 * self.features,)
        hidden, hidden_n = _split(hidden, parts)
        projected, projected_n = _split(projected, parts)
        gates = self._norm("norm_hidden", hidden) + self._norm("norm_input", projected)
        z, r = _split(self.gate_fn(gates), 2)
        hidden_n = self._norm("norm_candidate_hidden", hidden_n)
        n = self.activation_fn(self._norm("norm_candidate_input", projected_n) + r * hidden_n)
        new = (1 - z) * carry.astype(wide) + z * n
        return new.astype(carry.dtype), new.astype(dtype)

    def _first_carry(
        self, key: jax.Array | None, input_shape: tuple[int, ...], init: Initializer | None = None
    ) -> jax.Array:
        return self._first(key, input_shape, init)


def _split(x: jax.Array, parts: int | tuple[int, ...]) -> list[jax.Array]:
    """Splits the last axis, on an explicit mesh in one piece: a device has all gates of a unit."""
    return jnp.split(undivided(x, x.ndim - 1), parts, axis=-1)


def for_each_gate(init: Initializer, gates: int) -> Initializer:
    """Returns the initializer of the kernels of all gates, each of which `init` draws by itself."""

    def initialize(key, shape, dtype=jnp.float32):
        part = (*shape[:-1], shape[-1] // gates)
        return jnp.concatenate([init(k, part, dtype) for k in jax.random.split(key, gates)], -1)

    return initialize
