"""Recurrent cells with layer norm, its statistics taken anew at each time step."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
from flax import nnx

from jaxnorm._core.pool import compute_dtype
from jaxnorm._layers import feature, recurrent
from jaxnorm._layers.call import NO_STATE, Call
from jaxnorm._layers.layer import Initializer
from jaxnorm._layers.recurrent import for_each_gate
from jaxnorm.nnx._base import Module, draw, module
from jaxnorm.nnx.feature import LayerNorm


def _cast_to_first(arrays: Any, **options: Any) -> Any:
    """Tells a layer its dtype by that of its input, in place of flax's rule of promotion."""
    del options
    return tuple(None if a is None else a.astype(arrays[0].dtype) for a in arrays)


@module
class _Inputs(Module, nnx.RNNCellBase):
    in_features: int = dataclasses.field(kw_only=False)
    """size of the inputs."""


@module
class _Cell(recurrent._Cell, _Inputs):
    gates: ClassVar[int]

    def _make(self, *, rngs: nnx.Rngs | None, **given: Any) -> None:
        if rngs is None:
            raise ValueError(f"{self._label} draws its kernels and needs rngs=nnx.Rngs(0).")

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

        self.hidden = project(self.features, self.recurrent_kernel_init)
        self.input = project(self.in_features, self.kernel_init)
        for name, size in self.norm_sizes.items():
            norm = LayerNorm(size, epsilon=self.epsilon, param_dtype=self.param_dtype)
            setattr(self, name, norm)

    @property
    def norm_sizes(self) -> dict[str, int]:
        """How many features each layer norm has, by name."""
        raise NotImplementedError

    @property
    def _label(self) -> str:
        return f"{type(self).__name__}(in_features={self.in_features}, features={self.features})"

    def _project(self, hidden: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        dtype = self._result_dtype(inputs)
        return self.hidden(hidden.astype(dtype)), self.input(inputs.astype(dtype))

    def _norm(self, name: str, value: jax.Array) -> jax.Array:
        norm: LayerNorm = getattr(self, name)
        wide = feature.LayerNorm(epsilon=norm.epsilon, dtype=compute_dtype(value.dtype))
        return wide._normalize(value, norm._params(value), NO_STATE, Call(norm._context()))

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Initializer | None = None,
    ) -> Any:
        """Returns the first carry for inputs of shape `input_shape`."""

        def make(key: jax.Array | None) -> Any:
            return self._first_carry(key, input_shape, carry_init)

        if rngs is None:
            return draw("carry", make, rngs, self._label)
        return make(rngs.carry() if isinstance(rngs, nnx.Rngs) else rngs())


@module
class LayerNormLSTMCell(recurrent.LSTM, _Cell):
    """A long short-term memory cell with layer norm, to be used in `flax.nnx.RNN`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> from flax import nnx
      >>> x = jnp.ones((2, 5, 3))  # examples, time, features
      >>> cell = jnx.LayerNormLSTMCell(3, 4, rngs=nnx.Rngs(0))
      >>> y = nnx.RNN(cell)(x, seq_lengths=jnp.array([5, 2]))
      >>> y.shape, cell.norm_input.gamma.shape
      ((2, 5, 4), (16,))
    """

    gates: ClassVar[int] = 4

    def _make(self, *, rngs: nnx.Rngs | None, **given: Any) -> None:
        super()._make(rngs=rngs, **given)
        shape = (self.gates * self.features,)
        init, dtype = self.bias_init, self.param_dtype
        self.bias = nnx.Param(draw("bias", lambda key: init(key, shape, dtype), rngs, self._label))

    def _bias(self) -> jax.Array:
        return self.bias[...]

    @property
    def norm_sizes(self) -> dict[str, int]:
        all_gates = self.gates * self.features
        return {"norm_hidden": all_gates, "norm_input": all_gates, "norm_cell": self.features}


@module
class LayerNormGRUCell(recurrent.GRU, _Cell):
    """A gated recurrent unit with layer norm, to be used in `flax.nnx.RNN`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> from flax import nnx
      >>> x = jnp.ones((2, 5, 3))  # examples, time, features
      >>> rngs = nnx.Rngs(0)
      >>> there, back = (nnx.RNN(jnx.LayerNormGRUCell(3, 4, rngs=rngs)) for _ in range(2))
      >>> nnx.Bidirectional(there, back)(x).shape
      (2, 5, 8)
    """

    gates: ClassVar[int] = 3

    @property
    def norm_sizes(self) -> dict[str, int]:
        gates = {"norm_hidden": 2 * self.features, "norm_input": 2 * self.features}
        candidate = ("norm_candidate_hidden", "norm_candidate_input")
        return gates | dict.fromkeys(candidate, self.features)
