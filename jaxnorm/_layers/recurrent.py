"""The equations of recurrent cells with layer norm, over projections and norms that are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, DTypeLike
from jaxnorm._core.mesh import placed, spec_of, undivided
from jaxnorm._core.pool import compute_dtype
from jaxnorm._layers.layer import Layer

Activation = Callable[[jax.Array], jax.Array]
Norm = Callable[[str, jax.Array], jax.Array]  # the layer norm of a name, of a value
Initializer = Callable[..., jax.Array]  # of key, shape and dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell(Layer):
    """What the cells have in common; options as `jaxnorm.linen.LayerNormLSTMCell` has them."""

    features: int
    gate_fn: Activation
    activation_fn: Activation
    carry_init: Initializer
    dtype: DTypeLike | None
    param_dtype: DTypeLike

    def result_dtype(self, inputs: ArrayLike) -> jnp.dtype:
        """Returns the dtype of the products and of the output."""
        return _axes.result_dtype(_axes.check_input(inputs, "inputs"), self.dtype)

    def first(self, key: jax.Array | None, input_shape: tuple[int, ...]) -> jax.Array:
        """Returns a first carry for inputs of shape `input_shape`."""
        return self.carry_init(key, (*input_shape[:-1], self.features), self.param_dtype)


class LSTM(Cell):
    """A long short-term memory cell."""

    def step(
        self,
        carry: tuple[jax.Array, jax.Array],
        hidden: jax.Array,
        given: jax.Array,
        bias: jax.Array,
        norm: Norm,
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """Returns the new carry (c, h) and h, for W_h h, W_x x and b of all gates."""
        wide = compute_dtype(hidden.dtype)
        c, h = carry
        gates = norm("norm_hidden", hidden) + norm("norm_input", given)
        bias = jnp.expand_dims(bias.astype(wide), range(gates.ndim - 1))
        f, i, o, g = _split(gates + placed(bias, spec_of(gates)), 4)
        new_c = self.gate_fn(f) * c.astype(wide) + self.gate_fn(i) * self.activation_fn(g)
        new_h = self.gate_fn(o) * self.activation_fn(norm("norm_cell", new_c))
        return (new_c.astype(c.dtype), new_h.astype(h.dtype)), new_h.astype(hidden.dtype)

    def first_carry(
        self, key: jax.Array | None, input_shape: tuple[int, ...]
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the first c and h."""
        # Without a key, which a constant initializer does not need.
        key_c, key_h = (None, None) if key is None else jax.random.split(key)
        return self.first(key_c, input_shape), self.first(key_h, input_shape)


class GRU(Cell):
    """A gated recurrent unit."""

    def first_carry(self, key: jax.Array | None, input_shape: tuple[int, ...]) -> jax.Array:
        """Returns the first h."""
        return self.first(key, input_shape)

    def step(
        self, carry: jax.Array, hidden: jax.Array, given: jax.Array, norm: Norm
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the new carry h and h, for the products of h and of x with all kernels."""
        wide, dtype = compute_dtype(hidden.dtype), hidden.dtype
        parts = (2 * self.features,)
        (hidden, hidden_n), (given, given_n) = (_split(value, parts) for value in (hidden, given))
        gates = norm("norm_hidden", hidden) + norm("norm_input", given)
        z, r = _split(self.gate_fn(gates), 2)
        hidden_n = norm("norm_candidate_hidden", hidden_n)
        n = self.activation_fn(norm("norm_candidate_input", given_n) + r * hidden_n)
        new = (1 - z) * carry.astype(wide) + z * n
        return new.astype(carry.dtype), new.astype(dtype)


def _split(x: jax.Array, parts: int | tuple[int, ...]) -> list[jax.Array]:
    """Splits the last axis, on an explicit mesh in one piece: a device has all gates of a unit."""
    return jnp.split(undivided(x, x.ndim - 1), parts, axis=-1)


def for_each_gate(init: Initializer, gates: int) -> Initializer:
    """Returns the initializer of the kernels of all gates, each of which `init` draws by itself."""

    def initialize(key, shape, dtype=jnp.float32):
        part = (*shape[:-1], shape[-1] // gates)
        return jnp.concatenate([init(k, part, dtype) for k in jax.random.split(key, gates)], -1)

    return initialize
