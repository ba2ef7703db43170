"""What is computed: a normalization of an array, and the arrays that all libraries are given."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NORMS = ("layer", "rms", "batch", "group", "instance")
DTYPES = ("float32", "bfloat16", "float16")
EPSILON = 1e-5  # in every library, so that results can be compared
MOMENTUM = 0.9  # decay of batch norm's running statistics; no effect on what is measured


class Case(NamedTuple):
    """A normalization of an array; the last axis holds the features or channels."""

    norm: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def kind(self) -> str:
        """The norm, whatever its data."""
        return self.norm.partition("-")[0]

    @property
    def input_bytes(self) -> int:
        """Size of the array."""
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize

    @property
    def num_groups(self) -> int:
        """Groups for group norm: 32, or fewer that divide the channels and hold 8 values each."""
        groups = math.gcd(32, self.shape[-1])
        while groups > 1 and math.prod(self.shape[1:]) < 8 * groups:
            groups //= 2
        return groups

    @property
    def shape_text(self) -> str:
        """The shape as one types it: 32x56x56x64."""
        return "x".join(map(str, self.shape))


class Data:
    """Input, cotangent and parameters of a case, on the host and on JAX's device.

    Attributes:
      x: input, channels last, in the case's dtype.
      dy: cotangent of the result, like `x`.
      parameters: gamma and, unless the norm has none, beta; float32.
      running: mean and variance of batch norm, at the start of training or in `steady` state; else
        nothing.

    Args:
      case: what they are for.
      seed: of the random numbers.
      mean: of the input, whose deviation is 1.
      spread: deviation of the channels' own means. With some, beta is these means: short programs
        are given their last results for x, which should be like the first one.
      steady: whether batch norm's running mean is within 0.1 deviations of the batch's.
      rows: "pixels", which are uniform in 0..1, or "odd": the last row lies 5 deviations off. Else
        the rows are normal numbers.
    """

    def __init__(
        self,
        case: Case,
        seed: int = 0,
        mean: float = 0.0,
        spread: float = 0.0,
        steady: bool = False,
        rows: str = "",
    ):
        rng = np.random.default_rng(seed)

        def draw(shape: tuple[int, ...], mean, std: float, dtype) -> np.ndarray:
            values = rng.standard_normal(shape, np.float32)
            values *= np.float32(std)
            values += np.asarray(mean, np.float32)
            return values.astype(dtype, copy=False)

        means = draw(case.shape[-1:], mean, spread, np.float32) if spread else mean
        self.x = draw(case.shape, means, 1, jnp.dtype(case.dtype))
        self.dy = draw(case.shape, 0, 1, jnp.dtype(case.dtype))
        gamma, beta = (draw(case.shape[-1:], value, 0.1, np.float32) for value in (1, 0))
        if rows == "pixels":
            self.x = rng.random(case.shape, np.float32).astype(jnp.dtype(case.dtype))
            # As they are, and so are results that are given as the next x.
            gamma, beta = (np.full_like(gamma, value) for value in (12**-0.5, 0.5))
        near, var = np.zeros_like(beta), np.ones_like(beta)
        if spread and rows != "pixels":
            pooled = self.x.reshape(-1, case.shape[-1]).astype(np.float32)
            beta = pooled.mean(0)
            if steady:
                var = pooled.var(0)
                near = beta + np.sqrt(var) * rng.uniform(-0.1, 0.1, var.shape).astype(np.float32)
        if rows == "odd":
            self.x.reshape(-1, case.shape[-1])[-1] += self.x.dtype.type(5)
        self.parameters = (gamma,) if case.norm == "rms" else (gamma, beta)
        self.running = (near, var) if case.kind == "batch" else ()
        self.on_device = functools.cache(self._on_device)

    def _on_device(self, channels_first: bool) -> tuple[jax.Array, jax.Array]:
        """Returns `x` and `dy` as arrays of JAX."""
        x, dy = self.x, self.dy
        if channels_first:
            x, dy = (np.ascontiguousarray(np.moveaxis(a, -1, 1)) for a in (x, dy))
        return jax.device_put(x), jax.device_put(dy)
