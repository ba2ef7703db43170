"""Batch norm with its state as an argument and a result, for code without a layer library."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.flags import check_switch
from jaxnorm._core.moments import Moments
from jaxnorm._layers.batch import BatchNorm
from jaxnorm._layers.call import Call, Context
from jaxnorm._layers.running import init_moments
from jaxnorm._layers.sources import Limit, Statistics
from jaxnorm.functional._restored import as_moments


def init_running(
    shape: int | Sequence[int],
    *,
    dtype: DTypeLike = jnp.float32,
    num_domains: int | None = None,
) -> Moments:
    """Returns the running moments that `batch_norm_step` starts with: mean 0 and variance 1.

    Where the channels are divided over a mesh with explicit axes, the running moments lie as they
    do from the first step on; `jax.reshard(running, P("model"))` brings them there for a loop.

    Args:
      shape: the sizes of the input along the axes that are not pooled, in ascending order of those;
        an int for a single one, the number of features.
      dtype: of the inputs; the moments are in float32 or wider, their mean complex if it is.
      num_domains: how many domains have statistics of their own, one row for each.

    Returns:
      `Moments` of shape `shape`, or (num_domains, *shape); the count, of updates, is 0.

    Raises:
      TypeError: `dtype` is of integers, or a size is no integer.
      ValueError: a size is negative, or `num_domains` is below 1.

    Example:
      >>> import jaxnorm
      >>> running = jaxnorm.init_running(3)
      >>> running.mean.tolist(), running.var.tolist(), running.count.tolist()
      ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    """
    given = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    sizes = tuple(_axes.check_int(size, "each size in shape") for size in given)
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape={shape!r} has a negative size.")
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"dtype must be the floating-point or complex dtype of the inputs, got {dtype!r}."
        )
    if num_domains is not None:
        if operator.index(num_domains) < 1:
            raise ValueError(f"num_domains must be at least 1, got {num_domains!r}.")
        sizes = (operator.index(num_domains), *sizes)
    return Moments(**{k: make() for k, make in init_moments(sizes, dtype, counts=True).items()})


def batch_norm_step(
    x: ArrayLike,
    running: Moments,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    training: bool | jax.Array,
    axis: Axes,
    feature_axes: Axes | None = None,
    momentum: float | jax.Array | None = 0.99,
    debias: bool = False,
    unbiased: bool = True,
    epsilon: float = 1e-5,
    train_statistics: Statistics = "batch",
    eval_statistics: Statistics = "running",
    update_running: bool | jax.Array | None = None,
    r_max: Limit = 3.0,
    d_max: Limit = 5.0,
    batch_axis: int = 0,
    num_virtual_batches: int = 1,
    num_domains: int | None = None,
    domain: ArrayLike | None = None,
    affine_per_domain: bool = False,
    mask: ArrayLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: AxisIndexGroups = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, Moments]:
    """Normalizes by the batch in training and by running moments in evaluation.

    y = (x - mean) / sqrt(var + epsilon) * gamma + beta. In training mean and var are the batch's,
    and the running ones move to momentum * running + (1 - momentum) * batch, as `update_moments`
    does it; in evaluation they are the running ones, which stay. This is all that
    `jaxnorm.linen.BatchNorm` does, with the state as an argument and a result: for plain JAX and
    for any layer library. The state keeps its shapes and dtypes, so that `jax.lax.scan` can carry
    it.

    Args:
      x: floating-point or complex array of rank 1 or more.
      running: `Moments`, or a `(mean, var, count)` tuple, first of `init_running` and then of the
        last call; each has the shape of `x` without the axes in `axis`, after an axis of domains if
        there are any.
      gamma: scale; has the shape of `x` along `feature_axes`, or the rank of `x` (broadcast).
      beta: offset; like `gamma`.
      training: whether to train; may be traced: then the results of training and of evaluation are
        both computed, and one is taken.
      axis: the axes pooled, in any order and sign.
      feature_axes: the axes that gamma and beta vary along. Default: all that are not in `axis`
        (the last axis for a gamma or beta of rank 1).
      momentum: decay of the running moments. None: the plain average of all batches.
      debias: whether the running moments give their initial values no weight.
      unbiased: whether the running variance is unbiased (m / (m - 1)), as in the paper.
      epsilon: added to the variance.
      train_statistics: what normalizes in training: "batch", "running", "renorm"
        (`jaxnorm.batch_renorm`), or a number, the batch's weight in a mixture with the running
        moments (`jaxnorm.blended_batch_norm`).
      eval_statistics: what normalizes in evaluation; like `train_statistics`.
      update_running: whether the running moments are updated. Default: in training only.
      r_max: limit of "renorm"; a number, or a schedule: a function of the number of updates.
      d_max: like `r_max`.
      batch_axis: the axis of the examples, for virtual batches and domains.
      num_virtual_batches: into how many parts the batch is divided, over all devices together; see
        `jaxnorm.ghost_batch_norm`.
      num_domains: how many domains or classes have running moments of their own.
      domain: with `num_domains` an integer for the whole batch, or one for each example.
      affine_per_domain: whether gamma and beta have one row for each domain, on axis 0.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) to pool over as well.
      axis_index_groups: groups of indices of `axis_name` that pool together.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, in the shape of `x`, and the new running `Moments`. Their count is the
      number of updates, of each element.

    Raises:
      TypeError: `x` or `dtype` is of integers, `training`, `mask` or `domain` has a wrong type, or
        running moments cannot hold the batch's.
      ValueError: running moments, gamma, beta, mask or domain do not fit, one value per channel is
        to be normalized by itself, an axis is out of range or given twice, or an option is out of
        its range.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x, running = jnp.array([[1., 10.], [3., 30.]]), jaxnorm.init_running(2)
      >>> y, running = jaxnorm.batch_norm_step(x, running, training=True, axis=0, momentum=0.5)
      >>> y.round(3).tolist(), running.mean.tolist()
      ([[-1.0, -1.0], [1.0, 1.0]], [1.0, 10.0])
      >>> start = jaxnorm.init_running(2)
      >>> y, _ = jaxnorm.batch_norm_step(x, start, training=False, axis=0, epsilon=0.0)
      >>> y.tolist()
      [[1.0, 10.0], [3.0, 30.0]]

    Reference: Ioffe & Szegedy 2015, Batch Normalization, arXiv:1502.03167.
    """
    x = _axes.check_input(x)
    _check_static(
        axis=axis,
        feature_axes=feature_axes,
        debias=debias,
        unbiased=unbiased,
        epsilon=epsilon,
        batch_axis=batch_axis,
        num_virtual_batches=num_virtual_batches,
        num_domains=num_domains,
        affine_per_domain=affine_per_domain,
    )
    layer = BatchNorm(
        epsilon=epsilon,
        dtype=dtype,
        train_statistics=train_statistics,
        eval_statistics=eval_statistics,
        reduction_axes=_axes.canonical_axes(axis, x.shape),
        feature_axes=feature_axes,
        batch_axis=batch_axis,
        momentum=momentum,
        debias=debias,
        unbiased=unbiased,
        num_virtual_batches=num_virtual_batches,
        r_max=r_max,
        d_max=d_max,
        num_domains=num_domains,
        affine_per_domain=affine_per_domain,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
    )
    layer._check_flags()
    context = Context("batch_norm_step", evaluation="training=False")
    training = check_switch(training, "training")
    evaluate = not training if isinstance(training, bool) else ~training
    decisions = layer._decide(evaluate, update_running, context)
    running = Moments(*map(jnp.asarray, as_moments(running, "running")))
    _check_running(running, layer, x.shape, decisions.update is not False)
    needed = bool(layer._init_state(x, decisions, context))
    params = {"gamma": gamma, "beta": beta}
    state = running._asdict() if needed else {}
    y, new = layer._normalize(x, params, state, Call(context, mask, decisions, domain))
    return y, running if new is None else Moments(**new)


def _check_static(**options: Any) -> None:
    """Checks that options which shape the program are none of its inputs."""
    traced = [
        name
        for name, value in options.items()
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value))
    ]
    if traced:
        raise TypeError(
            f"{', '.join(traced)} must be known when batch_norm_step is traced, got traced values: "
            f"jax.jit(batch_norm_step, static_argnames={(*traced, 'training')!r}), or call it in a "
            "jitted function of your own."
        )


def _check_running(
    running: Moments, layer: BatchNorm, shape: tuple[int, ...], updates: bool
) -> None:
    """Checks the running moments, the count only where an update could change its shape."""
    sizes = layer._kept_sizes(shape)
    expected = layer._state_shape(sizes)
    for name, value in running._asdict().items():
        if value.shape != expected and (name != "count" or updates):
            domains = f", num_domains={layer.num_domains}" if layer.num_domains is not None else ""
            raise ValueError(
                f"running.{name} of shape {value.shape} does not fit an input of shape {shape} "
                f"pooled over axes {layer.reduction_axes}: expected {expected}. Start with "
                f"init_running({sizes}{domains})."
            )
        if name != "count" and not jnp.issubdtype(value.dtype, jnp.inexact):
            raise TypeError(
                f"running.{name} must have a floating-point or complex dtype, got {value.dtype}; "
                "start with init_running."
            )
