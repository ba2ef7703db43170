"""A warning where running statistics are too narrow to reach those of the batches."""

from __future__ import annotations

import warnings
from typing import Any

import jax.numpy as jnp

from jaxnorm._layers.call import Context

# A bound below this on how far an average stops from what it averages is no reason to warn.
_SMALL = 0.01


def warn_if_narrow(dtype: jnp.dtype, momentum: Any, context: Context) -> None:
    """Warns that running statistics of `dtype` will stop moving, unless they come close enough.

    An update of less than half a unit in the last place is lost. Nothing can be done about it
    without more state: rounding at random would need a key, rounding up follows the noise.
    """
    if jnp.finfo(dtype).bits >= 32:
        return
    half_unit = float(jnp.finfo(dtype).eps) / 2
    if momentum is None:
        stops = f"after about {round(1 / half_unit)} batches"
        lost = "an update by 1 / (number of batches)"
    elif isinstance(momentum, (int, float)):
        bound = half_unit / (1 - momentum) if momentum < 1 else 0.0
        if bound <= _SMALL:
            return
        stops = f"up to {min(bound, 1):.0%} away from the batches' statistics"
        lost = f"an update by 1 - momentum = {1 - momentum:.3g} of the difference"
    else:
        stops, lost = "before they reach the batches' statistics", "an update by 1 - momentum"
    warnings.warn(
        f"{context.label} keeps running statistics in {jnp.dtype(dtype).name} with "
        f"momentum={momentum}: they stop {stops}, where {lost} rounds to nothing. "
        f"{context.widening}",
        UserWarning,
        stacklevel=3,
    )
