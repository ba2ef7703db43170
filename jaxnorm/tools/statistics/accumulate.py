"""Running statistics that are updated once for many microbatches."""

from __future__ import annotations

from typing import Any, overload

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx, struct
from flax.nnx import bridge

from jaxnorm._core.moments import Moments
from jaxnorm._core.pool import compute_dtype
from jaxnorm._layers.running import ACCUMULATORS
from jaxnorm.functional.average import update_moments
from jaxnorm.tools.models.bridges import ToLinen, ToNNX
from jaxnorm.tools.models.norms import accumulates
from jaxnorm.tools.statistics.running import (
    Node,
    Stats,
    accumulators,
    check_stats,
    is_running,
    map_running,
    node_of,
)


@overload
def accumulate(batch_stats: Stats) -> dict[str, Any]: ...
@overload
def accumulate(batch_stats: nnx.Module) -> nnx.Module: ...
def accumulate(batch_stats: Any) -> Any:
    """Returns `batch_stats` with an empty accumulator beside each running mean and variance.

    While it is there, a call that would update the running statistics merges the batch's moments
    into the accumulator instead (`jaxnorm.merge_moments`); one that would not, in evaluation or of
    a layer that is frozen, changes nothing. After k microbatches it holds the moments of the full
    batch; `settle` then makes the one update that the full batch would have made. (Modules that
    keep other statistics than a mean and a variance go on as ever.)

    Norms of jaxnorm and of `jaxnorm.drop_in` accumulate; those of flax do where
    `jaxnorm.drop_in.linen.everywhere()` or `jaxnorm.drop_in.nnx.replace` makes drop-ins of them,
    and are an error elsewhere.

    What normalizes is not changed: in training each microbatch, by its own statistics. Where the
    full batch's statistics are to normalize too, map over the microbatches with a named axis:
    `jax.vmap(step, axis_name="micro")` with `BatchNorm(axis_name="micro")` equals the full batch in
    everything, and takes its memory.

    Args:
      batch_stats: the collection of a linen model's variables; modules may share it and be
        stacked. Or an NNX model, which is given the accumulators.

    Returns:
      A new collection, with the same structure after every call of the model; or the NNX model.
      The accumulators are float32 or wider. In a collection each mean lies in a box of flax's
      metadata (`flax.linen.unbox` takes it out), so that a layer which moves it is an error.

    Raises:
      ValueError: there is no running mean and variance in it; in an NNX model, there are some of
        a module that does not accumulate (in a collection: when that is called).

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> from jaxnorm import tools
      >>> norm = jnn.BatchNorm(momentum=0.5, use_running_average=False)
      >>> x = jnp.array([[1.], [3.], [5.], [11.]])
      >>> variables = norm.init(jax.random.key(0), x)
      >>> stats = tools.accumulate(variables["batch_stats"])
      >>> for microbatch in jnp.split(x, 2):
      ...     _, new = norm.apply({**variables, "batch_stats": stats}, microbatch,
      ...                         mutable=["batch_stats"])
      ...     stats = new["batch_stats"]
      >>> tools.settle(stats, momentum=0.5)["mean"], norm.apply(
      ...     variables, x, mutable=["batch_stats"])[1]["batch_stats"]["mean"]
      (Array([2.5], dtype=float32), Array([2.5], dtype=float32))
    """
    check_stats("accumulate", batch_stats)
    if isinstance(batch_stats, nnx.Module):
        _check_accumulate(batch_stats)
        return _with_accumulators(batch_stats)
    return map_running(
        _with_accumulators(batch_stats),
        lambda path, node: node | {"mean": Resting(node["mean"], path)},
    )


def _with_accumulators(stats: Any) -> Any:
    found = False

    def add(path: str, node: Node) -> Node:
        del path
        nonlocal found
        found = True
        mean, var = (_wide(node[name]) for name in ("mean", "var"))
        zeros = (jnp.zeros_like(mean), jnp.zeros_like(var), jnp.zeros_like(var))
        return node | dict(zip(ACCUMULATORS, zeros, strict=True))

    result = map_running(stats, add)
    if not found:
        raise ValueError("batch_stats holds no running mean and var to accumulate for.")
    return result


class Resting(struct.PyTreeNode, nn.meta.AxisMetadata):
    """A running mean that is not to be moved, as flax's own batch norm would.

    Attributes:
      value: the mean.
      path: of the module.
    """

    value: Any
    path: str = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        if isinstance(bridge.wrappers.current_linen_module(), ToLinen):
            raise self._error("It lies behind flax.nnx.bridge.to_linen")
        return self.value

    def replace_boxed(self, val: Any) -> Any:
        raise self._error(
            "Norms of flax's do so inside `with jaxnorm.drop_in.linen.everywhere():`, which then "
            "has to be around all calls between accumulate and settle"
        )

    def add_axis(self, index: int, params: Any) -> Resting:
        return self.replace(value=nn.meta.add_axis(self.value, index, params))

    def remove_axis(self, index: int, params: Any) -> Resting:
        return self.replace(value=nn.meta.remove_axis(self.value, index, params))

    def _error(self, reason: str) -> ValueError:
        return ValueError(
            f"the layer of the running mean at batch_stats/{self.path or 'mean'} cannot "
            f"accumulate: norms of jaxnorm.linen and jaxnorm.drop_in.linen do. {reason}."
        )


def _check_accumulate(model: nnx.Module) -> None:
    """Refuses running statistics that would go on moving."""
    for place, module in nnx.iter_modules(model):
        path = "/".join(map(str, place))
        if isinstance(module, ToNNX) and nnx.to_flat_state(nnx.state(module, nnx.BatchStat)):
            raise ValueError(
                f"the linen model at {path or 'the top'}, behind flax.nnx.bridge.ToNNX, has "
                "running statistics, which cannot accumulate there. Accumulate by hand: keep its "
                "batch_stats as a collection, and call tools.accumulate on that."
            )
        if is_running(node_of(module)) and not accumulates(module):
            raise ValueError(
                f"{type(module).__name__} at {path or 'the top'} has a running mean and variance "
                "and cannot accumulate: norms of jaxnorm.nnx and jaxnorm.drop_in.nnx do. Pass the "
                "model through jaxnorm.drop_in.nnx.replace, which makes such of flax's; a class "
                "that derives from flax's BatchNorm can derive from jaxnorm.drop_in.nnx.BatchNorm."
            )


@overload
def settle(
    batch_stats: Stats, *, momentum: float | None, unbiased: bool = ..., debias: bool = ...
) -> dict[str, Any]: ...
@overload
def settle(
    batch_stats: nnx.Module, *, momentum: float | None, unbiased: bool = ..., debias: bool = ...
) -> nnx.Module: ...
def settle(
    batch_stats: Any,
    *,
    momentum: float | None,
    unbiased: bool = True,
    debias: bool = False,
) -> Any:
    """Updates the running statistics by what was accumulated, and removes the accumulators.

    Args:
      batch_stats: the collection that `accumulate` returned, or the NNX model, after any number
        of calls.
      momentum: as the modules have it; 0.0 takes the accumulated moments as they are.
      unbiased: as the modules have it; False for those of `jaxnorm.drop_in`.
      debias: as the modules have it.

    Returns:
      The collection as it was before `accumulate`, updated once, in float32 or wider; or the NNX
      model, so updated. Statistics that nothing was accumulated for stay as they are.

    Raises:
      ValueError: there are no accumulators in it, or `momentum` lies outside [0, 1].

    Example: see `accumulate`.
    """
    check_stats("settle", batch_stats)
    if not any(True for _ in accumulators(batch_stats)):
        raise ValueError("batch_stats holds no accumulators; put them there with accumulate.")

    def update(path: str, node: Node) -> Node:
        del path
        rest = {name: value for name, value in node.items() if name not in ACCUMULATORS}
        if len(rest) == len(node):
            return node
        if isinstance(node["mean"], Resting):
            rest["mean"] = node["mean"].value
        mean, var = (_wide(node[name]) for name in ("mean", "var"))
        running = Moments(mean, var, _wide(node.get("count", jnp.zeros_like(var))))
        batch = Moments(*(node[name] for name in ACCUMULATORS))
        new = update_moments(running, batch, momentum=momentum, unbiased=unbiased, debias=debias)
        # Boxes of a model's own stay.
        kept = {k: v for k, v in new._asdict().items() if k in rest}
        return rest | {k: nn.meta.replace_boxed(rest[k], v) for k, v in kept.items()}

    return map_running(batch_stats, update)


def _wide(value: Any) -> jax.Array:
    """Returns a statistic in float32 or wider, whatever a model keeps it in."""
    value = jnp.asarray(nn.meta.unbox(value))
    return value.astype(compute_dtype(value.dtype))
