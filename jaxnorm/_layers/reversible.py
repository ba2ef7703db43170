"""Normalization of each series by its own statistics, for a way back."""

from __future__ import annotations

import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, DTypeLike
from jaxnorm._core.moments import Moments, moments
from jaxnorm._core.standardize import standardize


def normalize_series(
    x: jax.Array,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    time: int,
    *,
    epsilon: float,
    stop_gradient: bool,
    mask: ArrayLike | None,
    dtype: DTypeLike | None,
) -> tuple[jax.Array, Moments]:
    """Returns `x`, normalized over `time`, and its moments.

    Less the mean, then less the mean of the rest: a mean that is large beside the deviation is
    itself rounded.
    """
    dtype = _axes.result_dtype(x, dtype)
    own = moments(x, time, mask=mask)
    center = jax.numpy.expand_dims(own.mean, time)
    if mask is not None:
        x = jax.numpy.where(_axes.expand_mask(mask, x), x, 0)
    rest = x.astype(center.dtype) - jax.lax.stop_gradient(center)
    small = moments(rest, time, mask=mask)
    small = jax.lax.stop_gradient(small) if stop_gradient else small
    own = jax.lax.stop_gradient(own) if stop_gradient else own
    options = {"axis": time, "feature_axes": -1, "epsilon": epsilon, "mask": mask, "dtype": dtype}
    return standardize(rest, small, gamma, beta, **options), own
