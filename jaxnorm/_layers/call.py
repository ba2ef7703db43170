"""What is said of a call: by the framework, and by the one who calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from jaxnorm._core.axes import ArrayLike
from jaxnorm._core.flags import check_switch
from jaxnorm._core.mesh import placed
from jaxnorm._layers.sources import Statistics, check_statistics

State = Mapping[str, jax.Array]
StateInit = dict[str, Callable[[], jax.Array]]  # what makes each array that a state starts with
NO_STATE: State = MappingProxyType({})
Params = Mapping[str, Any]  # the values of parameters, by name; absent where there is none


class Context(NamedTuple):
    """What a framework says of a call.

    Attributes:
      label: what errors call the layer, such as "BatchNorm block_1/norm".
      initializing: whether variables are only made: no state moves, nothing is sent to others.
      mutable: whether new state can be kept.
      accumulates: whether the state has accumulators; see `jaxnorm.tools.accumulate`.
      evaluation: how the call is told to evaluate, for errors.
      widening: how parameters are cast and the state is not, for warnings.
    """

    label: str
    initializing: bool = False
    mutable: bool = True
    accumulates: bool = False
    evaluation: str = "use_running_average=True"
    widening: str = (
        "Keep batch_stats in float32 and cast the parameters alone: variables = {**variables, "
        "'params': jax.tree.map(lambda a: a.astype(jnp.bfloat16), variables['params'])}."
    )


class Decisions(NamedTuple):
    """The decisions of one call.

    Attributes:
      sources: the statistics that normalize; with a traced `evaluate` those of training and those
        of evaluation.
      evaluate: whether to evaluate, maybe traced.
      update: whether to update the running statistics, maybe traced.
    """

    sources: tuple[Statistics, ...]
    evaluate: bool | jax.Array
    update: bool | jax.Array

    @property
    def needs_running(self) -> bool:
        return self.update is not False or any(s != "batch" for s in self.sources)

    def tracks(self, context: Context) -> bool:
        """Returns whether the batch's moments are to be kept, which then must be possible."""
        if context.initializing:
            return False
        if not context.mutable:
            if self.update is not False:
                raise ValueError(
                    f"{context.label} updates its running statistics in training, but the "
                    'collection batch_stats is not mutable: call apply(..., mutable=["batch_stats"]'
                    ") and keep the updates it returns, or pass use_running_average=True to "
                    "evaluate, or update_running=False to leave them as they are."
                )
            return False
        return self.update is not False

    @classmethod
    def of_mode(cls, evaluate: Any, context: Context) -> Decisions:
        """Returns those of training by the batch and evaluation by running statistics."""
        return cls.make(evaluate, None, "batch", "running", None, context.label)

    @classmethod
    def make(
        cls,
        evaluate: Any,
        update: Any,
        train_statistics: Statistics,
        eval_statistics: Statistics,
        frozen: str | None,
        label: str,
    ) -> Decisions:
        if frozen not in (None, "statistics", "all"):
            raise ValueError(f'frozen must be None, "statistics" or "all", got {frozen!r}.')
        train = check_statistics(train_statistics, "train_statistics")
        test = check_statistics(eval_statistics, "eval_statistics")
        if frozen is not None:
            return cls(("running",), True, False)
        if evaluate is None:
            raise ValueError(
                f"{label} needs use_running_average: False in training, True in evaluation; set it "
                "as a field or pass it in the call."
            )
        evaluate = check_switch(evaluate, "use_running_average")
        if update is None:
            update = not evaluate if isinstance(evaluate, bool) else ~evaluate
        else:
            update = check_switch(update, "update_running")
        if isinstance(evaluate, bool):
            return cls((test,) if evaluate else (train,), evaluate, update)
        return cls((train, test), evaluate, update)


class Call(NamedTuple):
    """A call of a layer.

    Attributes:
      context: what the framework says of it.
      mask: which elements count.
      decisions: which statistics normalize, and whether they are updated.
      domain: the domain of the batch or of each example.
      overrides: the parameters that the call brings.
    """

    context: Context
    mask: ArrayLike | None = None
    decisions: Decisions = Decisions(("running",), True, False)
    domain: ArrayLike | None = None
    overrides: Params = MappingProxyType({})


def placed_init(init: StateInit, specs: Mapping[str, Any]) -> StateInit:
    """Returns `init` so that each array, by its name, lies where `specs` says.

    A state that starts as it goes on can be carried through a loop.
    """
    return {name: functools.partial(_make, make, specs[name]) for name, make in init.items()}


def _make(make: Callable[[], jax.Array], spec: Any) -> jax.Array:
    return placed(make(), spec)
