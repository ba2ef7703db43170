"""The moments of raw inputs over a data set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax

from jaxnorm._axes import Axes
from jaxnorm._moments import Moments, moments
from jaxnorm.tools._population import Population, track


def dataset_moments(batches: Iterable[Any], *, axis: Axes, progress: bool = False) -> Moments:
    """Computes the mean, variance and count of inputs over all batches of a data set.

    One pass over the data. The batches' moments are computed where the batches lie, exact also
    where the mean is large beside the spread, and merged by count in float64: batches may have
    different sizes. With the result `jaxnorm.standardize` normalizes inputs and
    `jaxnorm.unstandardize` undoes it.

    Args:
      batches: iterable of arrays, or of pairs (array, mask) with a boolean mask that broadcasts
        against it.
      axis: the axes reduced over, that of the examples among them.
      progress: show a progress bar (needs rich).

    Returns:
      `Moments` of NumPy arrays in float64 (complex128 for the mean of complex inputs).

    Raises:
      ValueError: there is no batch, or an axis is out of range.
      TypeError: a batch has an integer dtype, or a mask is not boolean.
      ImportError: `progress` is wanted and rich is missing.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> from jaxnorm import tools
      >>> data = [jnp.array([[1., 10.], [3., 30.]]), jnp.array([[8., 80.]])]
      >>> m = tools.dataset_moments(data, axis=0)
      >>> m.mean.tolist(), m.count.tolist()
      ([4.0, 40.0], [3.0, 3.0])
      >>> y = jaxnorm.standardize(data[1], m, axis=0, epsilon=0.0)
      >>> jaxnorm.unstandardize(y, m, axis=0, epsilon=0.0).tolist()
      [[8.0, 80.0]]
    """
    compute = jax.jit(lambda x, mask: {"": moments(x, axis, mask=mask)})
    population = Population()
    for batch in track(batches, "moments of the data", progress):
        x, mask = batch if isinstance(batch, tuple) else (batch, None)
        population.add(compute(x, mask))
    result = population.result()
    if not result:
        raise ValueError("batches is empty; a data set's moments need at least one batch.")
    return result[""]
