"""What a call of batch norm decides: which statistics normalize, and whether they are updated."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jaxnorm._core.flags import check_switch
from jaxnorm._layers.layer import Context
from jaxnorm._layers.sources import Statistics, check_statistics


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
