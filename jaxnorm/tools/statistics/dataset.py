"""The moments of raw inputs over a data set."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core import statistics
from jaxnorm._core.axes import Axes
from jaxnorm._core.moments import Moments
from jaxnorm._core.pool import Pool
from jaxnorm.tools.models.batches import check_batches
from jaxnorm.tools.statistics.population import Population, track


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
      TypeError: `batches` is one array, a batch has an integer dtype, or a mask is not boolean.
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
    batches = check_batches("dataset_moments", batches)
    axis = axis if isinstance(axis, int) else tuple(axis)
    population = Population()
    for batch in track(batches, "moments of the data", progress):
        x, mask = _take(batch)
        population.add({"": _batch_moments(x, mask, axis)})
    result = population.result()
    if not result:
        raise ValueError("batches is empty; a data set's moments need at least one batch.")
    return result[""]


def _take(batch: Any) -> tuple[Any, Any]:
    """Returns the array of a batch, and the mask if it is a pair."""
    pair = batch if isinstance(batch, tuple) and len(batch) == 2 else (batch, None)
    x, mask = pair
    if isinstance(x, dict | tuple | list | str):
        is_dict = isinstance(x, dict)
        got = f"a dict of {sorted(map(str, x))}" if is_dict else f"a {type(x).__name__}"
        part = next(iter(x), "x") if is_dict else 0
        raise TypeError(
            f"a batch must be an array, or a pair (array, mask), got {got}; choose what to "
            f"measure: dataset_moments((batch[{part!r}] for batch in batches), axis=...)."
        )
    if mask is not None and jnp.asarray(mask).dtype != jnp.bool_:
        raise TypeError(
            "a batch that is a pair must be (array, mask) with a boolean mask, got a second entry "
            f"of dtype {jnp.asarray(mask).dtype}; leave labels out: dataset_moments((x for x, y in "
            "batches), axis=...)."
        )
    return x, mask


@functools.partial(jax.jit, static_argnums=2)
def _batch_moments(x, mask, axis) -> Any:
    """Returns the moments of a batch, the mean in two parts."""
    stats: Any
    x = _axes.check_input(x)
    axes = _axes.canonical_axes(axis, x.shape)
    mask = _axes.expand_mask(mask, x)
    stats, count = statistics.compute_statistics(x, mask, Pool(axes), None)
    count = jnp.broadcast_to(count, stats.var.shape)
    shift, offset, var, count = (jnp.squeeze(value, axes) for value in (*stats, count))
    return Moments._make(((shift, offset), var, count))
