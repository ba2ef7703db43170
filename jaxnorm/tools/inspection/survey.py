"""What is measured of a normalization in one call, channel by channel."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._core import axes as _axes
from jaxnorm.functional.moments import moments
from jaxnorm.tools.models.norms import BATCH, affine_names, batch_axes, boolean
from jaxnorm.tools.models.programs import Visit

# The rows of what `measure` returns; "pooled" is how many elements a statistic is of, "far" by how
# many standard deviations its mean is away from 0, in the median of all pools but the channels.
ROWS = (
    *("mean", "var", "count", "running_mean", "running_var", "updates"),
    *("gamma", "largest", "infinite", "pooled", "far"),
)


class Traits(NamedTuple):
    """What is known of a layer before anything runs.

    Attributes:
      kind: the name of its class.
      is_batch: whether it keeps running statistics and pools over the batch.
      centers: whether it subtracts a mean.
      momentum: of its running statistics.
      dtype: of its input.
    """

    kind: str
    is_batch: bool
    centers: bool
    momentum: float | None
    dtype: Any


def traits(visit: Visit, x: jax.Array) -> Traits:
    """Returns what a layer is."""
    module, name = visit.module, type(visit.module).__name__
    mean = visit.value("mean") if isinstance(module, BATCH) else None
    # Those of several domains are of another shape, and cannot be compared.
    is_batch = mean is not None and mean.shape == tuple(x.shape[a] for a in _channels(module, x)[0])
    momentum = getattr(module, "momentum", None)
    return Traits(name, is_batch, "RMS" not in name, momentum, x.dtype)


def measure(visit: Visit, x: jax.Array, mask: Any) -> jax.Array:
    """Returns an array of the channels, with the `ROWS` along its last axis.

    One array, so that scan and vmap stack all rows alike, before the others.
    """
    module = visit.module
    mask = boolean(mask)
    features, pooled = _channels(module, x)
    others = _axes.other_axes(features, x.ndim)
    found = moments(x, others, mask=mask)
    rows: dict[str, Any] = {"mean": found.mean, "var": found.var, "count": found.count}
    sizes = jnp.shape(found.var)
    for name, running in (("mean", "running_mean"), ("var", "running_var"), ("count", "updates")):
        value = visit.value(name) if isinstance(module, BATCH) else None
        rows[running] = value if value is not None and jnp.shape(value) == sizes else jnp.nan
    gamma = visit.value(affine_names(module)[0])
    rows["gamma"] = gamma if gamma is not None and jnp.shape(gamma) == sizes else jnp.nan
    size = jnp.abs(x)
    if mask is not None:
        size = jnp.where(mask, size, jnp.zeros_like(size))
    finite = jnp.isfinite(size)
    rows["infinite"] = jnp.sum(~finite, others)
    rows["largest"] = jnp.max(jnp.where(finite, size, jnp.zeros_like(size)), others)
    if isinstance(module, BATCH):
        rows["pooled"], rows["far"] = found.count, _far(found)
    else:
        rows["pooled"], rows["far"] = _pools(x, mask, pooled)
    kind = jnp.float32
    columns = [jnp.broadcast_to(jnp.asarray(jnp.real(rows[n]), kind), sizes) for n in ROWS]
    return jnp.stack(columns, -1)


def _channels(module: Any, x: jax.Array) -> tuple[tuple[int, ...], Any]:
    """Returns the axes of the channels, and what the module pools.

    That is axes, or (the axis of the channels, how many groups they are of, further axes).
    """
    last = (x.ndim - 1,)

    def axes(name: str, missing: Any) -> tuple[int, ...]:
        given = getattr(module, name, None)
        return _axes.canonical_axes(missing if given is None else given, x.shape, name)

    if isinstance(module, BATCH):
        return _axes.other_axes(batch_axes(module, x.shape), x.ndim), None
    name = next((c.__name__ for c in type(module).__mro__ if c.__name__ in _POOLS), "")
    if name in ("LayerNorm", "RMSNorm"):
        return axes("feature_axes", -1), axes("reduction_axes", -1)
    features = axes("channel_axis", -1) if hasattr(module, "channel_axis") else last
    rest = tuple(a for a in range(1, x.ndim) if a not in features)
    if name == "InstanceNorm":
        return features, axes("reduction_axes", rest) if rest else ()
    if name == "GroupNorm":
        channels = x.shape[features[0]]
        groups = module.num_groups or (channels // module.group_size if module.group_size else 32)
        given = getattr(module, "reduction_axes", None)
        further = rest if given is None else tuple(a for a in axes("reduction_axes", 0))
        return features, (features[0], groups, tuple(a for a in further if a != features[0]))
    return features, None


_POOLS = ("LayerNorm", "RMSNorm", "InstanceNorm", "GroupNorm")


def _pools(x: jax.Array, mask: Any, pooled: Any) -> tuple[Any, Any]:
    """Returns how many elements a statistic is of, and how far its mean is away from 0."""
    if not pooled:
        return jnp.nan, jnp.nan
    if isinstance(pooled[-1], tuple):
        channel, groups, others = pooled
        x, mask = (_grouped(value, channel, groups, x.shape) for value in (x, mask))
        pooled = (channel + 1, *(a if a < channel else a + 1 for a in others))
    found = moments(x, pooled, mask=mask)
    far = _far(found)
    counts = jnp.broadcast_to(found.count, jnp.shape(found.var))
    # A few small pools are far away by chance.
    return jnp.min(counts), jnp.median(far)


def _far(found: Any) -> jax.Array:
    varies = found.var > 0
    return jnp.where(varies, jnp.abs(found.mean) / jnp.sqrt(jnp.where(varies, found.var, 1)), 0)


def _grouped(value: Any, channel: int, groups: int, shape: tuple[int, ...]) -> Any:
    if value is None:
        return None
    value = jnp.broadcast_to(value, shape)
    sizes = (*shape[:channel], groups, shape[channel] // groups, *shape[channel + 1 :])
    return jnp.reshape(value, sizes)


def merge(rows: np.ndarray) -> np.ndarray:
    """Returns the rows of all calls and batches as those of one; axis 0 is that of the calls."""
    column = {name: rows[..., i].astype(np.float64) for i, name in enumerate(ROWS)}
    weight = column["count"] / np.maximum(column["count"].sum(0), 1)
    finite = np.where(column["count"] > 0, column["mean"], 0)
    mean = (weight * finite).sum(0)
    var = (weight * (np.where(column["count"] > 0, column["var"], 0) + (finite - mean) ** 2)).sum(0)
    merged = {name: value[0] for name, value in column.items()}
    merged |= {"mean": mean, "var": var}
    merged |= {name: column[name].sum(0) for name in ("count", "infinite")}
    merged |= {name: column[name].max(0) for name in ("largest", "far")}
    merged["pooled"] = column["pooled"].min(0)
    return np.stack([merged[name] for name in ROWS], -1)
