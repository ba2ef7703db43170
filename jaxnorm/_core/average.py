"""Moments averaged: running ones moved towards those of a batch, two sources mixed."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._core.axes import ArrayLike
from jaxnorm._core.flags import check_flag
from jaxnorm._core.mesh import broadcast_spec, without_explicit_axes
from jaxnorm._core.moments import Moments
from jaxnorm._core.pool import compute_dtype
from jaxnorm._core.restored import as_moments


def mix_moments(first: Moments, second: Moments, *, weight: ArrayLike) -> Moments:
    """Mixes two sources of statistics: weight * first + (1 - weight) * second.

    Mean and variance are each averaged with that weight, which estimates one population from two
    samples; to pool two different sets of elements use `merge_moments`. With `first` the batch's
    and `second` the running moments this is prediction-time batch norm's mixture, where the
    paper's weight is n / (N + n) for n test examples and a prior worth N.

    Args:
      first: the `Moments` that get `weight`.
      second: the `Moments` that get the rest.
      weight: in [0, 1]; may be traced.

    Returns:
      The mixed `Moments`; `count` is that of `first`.

    Raises:
      ValueError: `weight` is a number outside [0, 1].

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> a, b = (jaxnorm.moments(jnp.array(v), axis=0) for v in ([0., 2.], [4., 8.]))
      >>> m = jaxnorm.mix_moments(a, b, weight=0.25)
      >>> float(m.mean), float(m.var)
      (4.75, 3.25)

    Reference: Schneider et al. 2020, Improving Robustness against Common Corruptions by
    Covariate Shift Adaptation, arXiv:2006.16971.
    """
    check_fraction(weight, "weight")
    given = as_moments(first, "first"), as_moments(second, "second")
    first, second = (Moments(*map(jnp.asarray, m)) for m in given)

    def mix(a, b, weight):
        w = jnp.asarray(weight, a.real.dtype).astype(a.dtype)
        return w * a + (1 - w) * b.astype(a.dtype)

    mean, var = (
        without_explicit_axes(mix, broadcast_spec(a, b))(a, b, weight)
        for a, b in zip(first[:2], second[:2], strict=True)
    )
    return Moments(mean, var, first.count)


def update_moments(
    running: Moments,
    batch: Moments,
    *,
    momentum: float | jax.Array | None,
    unbiased: bool = True,
    debias: bool = False,
) -> Moments:
    """Moves running moments towards those of a batch.

    new = (1 - w) * running + w * batch, for the mean and the variance. After t earlier updates
    the weight w is

    - 1 - momentum, the exponential average;
    - with `debias`, (1 - momentum) / (1 - momentum^(t+1)): the same average without its initial
      value, as in Adam;
    - with `momentum=None`, 1 / (t+1), the plain average of all batches.

    With `unbiased`, the batch's variance is first multiplied by m / (m - 1), m = `batch.count`, as
    in the batch norm paper.

    Args:
      running: the running moments; their dtypes are kept. Their `count` is the number of updates
        so far, which only `debias` and `momentum=None` use.
      batch: the batch's moments; where its count is 0 nothing changes.
      momentum: the decay of the old value, in [0, 1], or None.
      unbiased: whether the running variance estimates the population's.
      debias: whether the initial running moments get no weight.

    Returns:
      The new running `Moments`; `count` has grown by one where the batch had elements.

    Raises:
      ValueError: `momentum` is a number outside [0, 1], or 1 with `debias`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> start = jaxnorm.Moments(jnp.zeros(()), jnp.ones(()), jnp.zeros(()))
      >>> batch = jaxnorm.moments(jnp.array([1., 3.]), axis=0)
      >>> new = jaxnorm.update_moments(start, batch, momentum=0.5)
      >>> float(new.mean), float(new.var), float(new.count)
      (1.0, 1.5, 1.0)
      >>> new = jaxnorm.update_moments(start, batch, momentum=0.5, debias=True)
      >>> float(new.mean), float(new.var)
      (2.0, 2.0)

    Reference: Ioffe & Szegedy 2015, Batch Normalization, arXiv:1502.03167.
    """
    given = as_moments(running, "running"), as_moments(batch, "batch")
    running, batch = (Moments(*map(jnp.asarray, m)) for m in given)
    if jnp.iscomplexobj(batch.mean) and not jnp.iscomplexobj(running.mean):
        raise TypeError(
            f"running moments of dtype {running.mean.dtype} cannot hold a batch's mean of dtype "
            f"{batch.mean.dtype}; start them from a complex mean."
        )
    weight = _update_weight(momentum, running.count, check_flag(debias, "debias"))
    out: Any = Moments._make(map(broadcast_spec, batch, running))
    if running.count.shape == batch.mean.shape:
        out = out._replace(count=out.mean)
    update = functools.partial(_update, unbiased=check_flag(unbiased, "unbiased"))
    return without_explicit_axes(update, out)(running, batch, weight)


def _update(running: Moments, batch: Moments, weight, unbiased: bool) -> Moments:
    var = batch.var
    if unbiased:
        var = var * (batch.count / jnp.maximum(batch.count - 1, 1))

    def move(old, new):
        wide = compute_dtype(old.dtype)
        w = jnp.asarray(weight, jnp.finfo(wide).dtype).astype(wide)
        moved = (1 - w) * old.astype(wide) + w * new.astype(wide)
        return jnp.where(batch.count > 0, moved, old.astype(wide)).astype(old.dtype)

    updates = running.count + (batch.count > 0).astype(running.count.dtype)
    return Moments(move(running.mean, batch.mean), move(running.var, var), updates)


def _update_weight(momentum, updates: jax.Array, debias: bool) -> jax.Array | float:
    if momentum is None:
        return 1 / (updates + 1)
    check_fraction(momentum, "momentum")
    if not debias:
        return 1 - momentum
    if isinstance(momentum, jax.Array):
        log = jnp.log(momentum)
    elif momentum == 1:
        raise ValueError("momentum=1 with debias=True has no average to give; use momentum=None.")
    else:
        log = math.log(momentum) if momentum else -math.inf
    # 1 - momentum^n loses its leading digits where momentum is close to 1.
    weight = (1 - momentum) / -jnp.expm1((updates + 1) * log)
    return jnp.where(updates == 0, 1, weight)


def check_fraction(value: ArrayLike | None, name: str) -> None:
    """Checks that `value`, unless it is an array, lies in [0, 1]."""
    if isinstance(value, (int, float)) and not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value!r}.")
