"""Running statistics computed anew, over a whole data set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._core.pool import compute_dtype
from jaxnorm._layers.batch import BatchLayer
from jaxnorm.linen.batch import BatchNorm
from jaxnorm.tools._accumulate import accumulate, accumulators, map_running
from jaxnorm.tools._population import Population, track


def recalibrate(
    model: nn.Module,
    variables: Any,
    batches: Iterable[Any],
    *,
    call: Callable[[Any, Any], Any] | None = None,
    passes: int = 1,
    rngs: Any = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Computes the running statistics of every `jaxnorm.linen.BatchNorm` over a data set.

    The running averages of training lag behind the parameters, and are noisy where batches are
    small. This computes instead, for each layer, the mean and the (biased) variance of all that
    reaches it: the batches' moments are merged by count, so that uneven batches and masks count
    as what they are, and not averaged. The model is called as for evaluation, without dropout;
    its parameters do not change.

    In the first pass each batch is normalized by its own statistics, as in training; with large
    batches this is enough. (A batch of one value per channel is normalized by the statistics
    there are.) In each further pass the statistics of the pass before normalize: after as many
    passes as there are batch norms in sequence, each layer's are exactly the population moments
    of its input in evaluation.

    Args:
      model: a linen module. One whose layers have an `axis_name` is given without it: what is
        computed here is of whole batches, on however many devices they lie.
      variables: its variables, with `params` and `batch_stats`.
      batches: iterable of batches, sharded as they may be; each shape is compiled once.
      call: (model, batch) -> anything: calls the bound model for evaluation. Default:
        `model(batch)`.
      passes: how often the data set is gone through.
      rngs: passed to `apply`.
      progress: show a progress bar (needs rich).

    Returns:
      The new collection `batch_stats`, in float32 or wider. A layer that is used twice gets the
      moments of all that reaches it; each layer under `nn.scan` or `nn.vmap` those of its own.

    Raises:
      ValueError: there is no batch; `passes` is below 1, or above 1 for batches that can be
        iterated only once; a mean and variance in `batch_stats` that no batch reached, because its
        layer was not called or is no `jaxnorm.linen.BatchNorm`; statistics of another kind.
      ImportError: `progress` is wanted and rich is missing.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> from jaxnorm import tools
      >>> norm = jnn.BatchNorm(use_running_average=True)
      >>> data = [jnp.array([[1.], [3.]]), jnp.array([[8.]]), jnp.array([[4.]])]
      >>> variables = norm.init(jax.random.key(0), data[0])
      >>> stats = tools.recalibrate(norm, variables, data, passes=2)
      >>> jax.tree.map(lambda a: a.tolist(), stats)
      {'mean': [4.0], 'var': [6.5]}

    References: Ioffe & Szegedy 2015, Batch Normalization (algorithm 2), arXiv:1502.03167; Wu &
    Johnson 2021, Rethinking "Batch" in BatchNorm (precise statistics), arXiv:2105.07576.
    """
    if passes < 1:
        raise ValueError(f"passes must be at least 1, got {passes!r}.")
    if passes > 1 and isinstance(batches, Iterator):
        raise ValueError(
            f"passes={passes} goes through the batches more than once, but they are an iterator, "
            "which ends; give a list or another iterable that starts anew."
        )
    if not variables.get("batch_stats"):
        raise ValueError("variables has no batch_stats to recalibrate.")
    _check_known(variables["batch_stats"])
    collect = jax.jit(functools.partial(_collect, model, call, rngs), static_argnums=2)
    stats = variables["batch_stats"]
    for number in range(passes):
        population = Population()
        current = {**variables, "batch_stats": stats}
        for batch in track(batches, f"recalibrating, pass {number + 1} of {passes}", progress):
            population.add(collect(current, batch, number == 0))
        stats = _replace(stats, population.result())
    return stats


def _check_known(stats: Mapping[str, Any], path: tuple[str, ...] = ()) -> None:
    """Refuses a running mean without a variance, as of whitening, which would stay as it is."""
    names = {name for name, value in stats.items() if not isinstance(value, Mapping)}
    if "mean" in names and "var" not in names:
        where = "/".join(("batch_stats", *path))
        raise ValueError(
            f"the statistics at {where}, {sorted(names)}, are not a mean and a variance; "
            "recalibrate computes those of jaxnorm.linen.BatchNorm alone."
        )
    for name, value in stats.items():
        if isinstance(value, Mapping):
            _check_known(value, (*path, name))


def _collect(model, call, rngs, variables, batch, by_batch: bool):
    """Returns the moments of one batch for each layer, by path."""
    variables = {**variables, "batch_stats": accumulate(variables["batch_stats"])}
    apply = nn.apply(call or (lambda module, x: module(x)), model, mutable=["batch_stats"])
    with nn.intercept_methods(_by_batch if by_batch else _as_it_is):
        _, updates = apply(variables, batch, rngs=rngs)
    return dict(accumulators(updates["batch_stats"]))


def _by_batch(next_function, args, kwargs, context):
    """Lets batch norm alone work as in training; what else the call says stays as it is.

    A batch of one value per channel, as the last may be, is normalized by the statistics there are.
    """
    module = context.module
    if isinstance(module, BatchNorm) and context.method_name == "__call__":
        x = args[0] if args else kwargs["x"]
        layer = BatchLayer.of(module)
        by_batch = layer.can_normalize_by_batch(np.shape(x), kwargs.get("mask"))
        kwargs = {**kwargs, "use_running_average": not by_batch}
    return next_function(*args, **kwargs)


def _as_it_is(next_function, args, kwargs, context):
    del context
    return next_function(*args, **kwargs)


def _replace(stats, population):
    """Returns `stats` with the population's mean and variance, where it has elements."""
    if not population:
        raise ValueError("batches is empty; recalibration needs at least one batch.")
    missing = [path for path, moments in population.items() if not moments.count.any()]
    if missing:
        raise ValueError(
            "no elements reached the statistics at "
            + ", ".join(f"batch_stats/{p}" for p in missing)
            + ": their layer is not called in evaluation, or is not a jaxnorm.linen.BatchNorm. "
            "Leave them out of variables, or call the model so that they are used."
        )

    def replace(path, node):
        moments = population[path]
        seen = moments.count > 0
        new = {
            name: _replaced(node[name], value, seen)
            for name, value in (("mean", moments.mean), ("var", moments.var))
        }
        if "count" in node:
            # So that a debiased average goes on from here, and does not start anew.
            new["count"] = jnp.where(seen, jnp.maximum(node["count"], 1), node["count"])
        return node | new

    return map_running(stats, replace)


def _replaced(old, new, seen):
    """Returns `new` where elements were seen, in float32 or wider."""
    wide = compute_dtype(old.dtype)
    return jnp.where(seen, new.astype(wide), old.astype(wide))
