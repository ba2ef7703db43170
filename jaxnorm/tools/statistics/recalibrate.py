"""Running statistics computed anew, over a whole data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, overload

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx

from jaxnorm._core.pool import compute_dtype
from jaxnorm.tools.models.batches import one_iterable
from jaxnorm.tools.models.programs import take_model
from jaxnorm.tools.statistics.collect import Collector
from jaxnorm.tools.statistics.population import track
from jaxnorm.tools.statistics.running import is_running, map_running, nodes


@overload
def recalibrate(
    model: nn.Module,
    variables: Any,
    batches: Iterable[Any],
    *,
    call: Callable[[Any, Any], Any] | None = ...,
    passes: int = ...,
    rngs: Any = ...,
    progress: bool = ...,
) -> dict[str, Any]: ...
@overload
def recalibrate(
    model: nnx.Module,
    batches: Iterable[Any],
    /,
    *,
    call: Callable[[Any, Any], Any] | None = ...,
    passes: int = ...,
    progress: bool = ...,
) -> nnx.Module: ...
def recalibrate(
    model: Any,
    variables: Any = None,
    batches: Any = None,
    *,
    call: Callable[[Any, Any], Any] | None = None,
    passes: int = 1,
    rngs: Any = None,
    progress: bool = False,
) -> Any:
    """Computes the running statistics of every `BatchNorm`, of jaxnorm or flax, over a data set.

    The running averages of training lag behind the parameters, and are noisy where batches are
    small. This computes instead, for each layer, the mean and the (biased) variance of all that
    reaches it: the batches' moments are merged by count, so that uneven batches and masks count
    as what they are, and not averaged. The model is called as for evaluation, without dropout;
    its parameters do not change. One that evaluates where `batch_stats` are not mutable finds that
    they are not. What was compiled for a model, a `call` and shapes is used again when it is asked
    for again, as after each epoch.

    In the first pass each batch is normalized by its own statistics, as in training; with large
    batches this is enough. (A batch of one value per channel is normalized by the statistics
    there are.) In each further pass the statistics of the pass before normalize: after as many
    passes as there are batch norms in sequence, each layer's are exactly the population moments
    of its input in evaluation.

    Args:
      model: a linen module, or an NNX model, which is changed in place. One whose layers have an
        `axis_name` is given without it: what is computed here is of whole batches, on however many
        devices they lie.
      variables: of a linen module, with `params` and `batch_stats`; not given for an NNX model.
      batches: iterable of batches, sharded as they may be; each shape is compiled once, and each
        value of a flag in them. Texts, such as names of files, reach `call` as those of the first
        batch of a shape.
      call: (model, batch) -> anything: calls the bound model, or the NNX model in the mode
        that `model.eval()` sets, for evaluation. Default: `model(batch)`.
      passes: how often the data set is gone through.
      rngs: passed to `apply` of a linen module.
      progress: show a progress bar (needs rich).

    Returns:
      The new collection `batch_stats`, or the NNX model, with statistics in float32 or wider. A
      layer that is used twice, or by all steps of a scan, gets the moments of all that reaches it;
      each layer of a stack under `nn.scan` or `nn.vmap` those of its own. A subclass with a call
      of its own is seen where that calls the norm's, by `super()`.

    Raises:
      ValueError: there is no batch; `rngs` is given with an NNX model; `passes` is below 1, or
        above 1 for batches that can be iterated only once; a mean and variance in `batch_stats`
        that no batch reached, because its layer was not called or is no batch norm;
        statistics of another kind.
      TypeError: it is no model of flax, has no variables, or cannot be called with a batch;
        `batches` is one array.
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
      >>> import jaxnorm.nnx as jnx
      >>> tools.recalibrate(jnx.BatchNorm(1), data, passes=2).var[...].tolist()
      [6.5]

    References: Ioffe & Szegedy 2015, Batch Normalization (algorithm 2), arXiv:1502.03167; Wu &
    Johnson 2021, Rethinking "Batch" in BatchNorm (precise statistics), arXiv:2105.07576.
    """
    given = tuple(value for value in (variables, batches) if value is not None)
    program, rest = take_model("recalibrate", model, given, call, rngs)
    batches = one_iterable("recalibrate", model, rest)
    if passes < 1:
        raise ValueError(f"passes must be at least 1, got {passes!r}.")
    if passes > 1 and isinstance(batches, Iterator):
        raise ValueError(
            f"passes={passes} goes through the batches more than once, but they are an iterator, "
            "which ends; give a list or another iterable that starts anew."
        )
    if isinstance(model, nnx.Module):
        boxed = stats = model
    else:
        boxed = program.state.get("batch_stats")
        stats = nn.meta.unbox(boxed)
        if not stats:
            raise ValueError("variables has no batch_stats to recalibrate.")
    _check_known(stats)
    for number in range(passes):
        if number:
            given = () if stats is model else ({**program.state, "batch_stats": stats},)
            program, _ = take_model("recalibrate", model, given, call, rngs)
        shapes = {path: jnp.shape(node["mean"]) for path, node in nodes(stats) if is_running(node)}
        collector = Collector(program, shapes, number == 0)
        for batch in track(batches, f"recalibrating, pass {number + 1} of {passes}", progress):
            collector.add(batch)
        if not collector.seen:
            raise ValueError("batches is empty; recalibration needs at least one batch.")
        stats = _replace(stats, collector.population.result())
    return stats if stats is model else _boxed_as(boxed, stats)


def _boxed_as(boxed: Any, stats: Any) -> Any:
    """Returns statistics in the boxes of others, which norms behind `flax.nnx.bridge` have."""
    if isinstance(stats, Mapping):
        return {name: _boxed_as(boxed[name], value) for name, value in stats.items()}
    return boxed.replace_boxed(stats) if nn.meta.is_axis_metadata(boxed) else stats


def _check_known(stats: Any) -> None:
    """Refuses a running mean without a variance, as of whitening, which would stay as it is."""
    for path, node in nodes(stats):
        if "mean" in node and "var" not in node:
            where = f"batch_stats/{path}" if path else "batch_stats"
            raise ValueError(
                f"the statistics at {where}, {sorted(node)}, are not a mean and a variance; "
                "recalibrate computes those of jaxnorm.linen.BatchNorm and jaxnorm.nnx.BatchNorm "
                "alone."
            )


def _replace(stats, population):
    """Returns `stats` with the population's mean and variance, where it has elements."""
    running = [path for path, node in nodes(stats) if is_running(node)]
    reached = {path for path, moments in population.items() if moments.count.any()}
    missing = [path for path in running if path not in reached]
    if missing:
        raise ValueError(
            "no elements reached the statistics at "
            + ", ".join(f"batch_stats/{p}" for p in missing)
            + ": their layer is not called in evaluation, or only in a loop of unknown length, or "
            "is no batch norm of jaxnorm or flax. Leave them out of the model's variables, or call "
            "the model so that they are used."
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
