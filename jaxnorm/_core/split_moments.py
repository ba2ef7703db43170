"""The statistics of pools: mean and variance, the mean in one number or in two."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class SplitMoments(NamedTuple):
    """Mean and variance, the mean in two parts: shift + offset.

    At mean/std 1e6 a float32 mean is off by up to 0.03 standard deviations. `x - shift` is nearly
    exact where the shift is large, and `offset` is the mean of that remainder. Without centering
    both are None, and `var` is the mean square; inside `plain()` the offset is.
    """

    shift: Any
    offset: Any
    var: jax.Array

    def with_one_mean(self) -> SplitMoments:
        """Returns the same with shift + offset in place of the shift, and no offset.

        For input and result in half precision, float16 at the finest. With N elements of b bits of
        mantissa that are not all equal, the mean in float32 is off by at most 2^-24 |mean|, that is
        2^(b - 24) sqrt(N) deviations or less: below half a unit of the pool's largest result.
        """
        if self.offset is None:
            return self
        return SplitMoments(self.shift + self.offset, None, self.var)


def is_narrow(*dtypes: Any) -> bool:
    """Whether all are 16 bits wide or less, so that one number will do for the mean."""
    return all(jnp.dtype(dtype).itemsize <= 2 for dtype in dtypes)
