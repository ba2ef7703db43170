"""Why evaluation is bad: what each normalization of a model sees, beside what it remembers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast, overload

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxnorm._core.moments import Moments
from jaxnorm.tools.inspection.findings import findings_of, metric_finding
from jaxnorm.tools.inspection.layers import SMALL, InspectedLayer, Inspection
from jaxnorm.tools.inspection.survey import ROWS, Traits, measure, merge, traits
from jaxnorm.tools.models.batches import one_iterable, split_arrays
from jaxnorm.tools.models.norms import (
    BATCH,
    NORM_CALLS,
    OWN_BATCH,
    arguments,
    is_norm,
    run_with,
)
from jaxnorm.tools.models.places import number_means, running_means
from jaxnorm.tools.models.programs import (
    Call,
    Path,
    Visit,
    as_it_is,
    take_model,
)
from jaxnorm.tools.models.reap import reap

_TAG = "jaxnorm inspect "
Rows = dict[str, list[np.ndarray]]  # of the calls of each layer, by path
Metric = Callable[[Any, Any], Any]  # of the output and the batch


@overload
def inspect(
    model: nn.Module,
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    call: Call | None = ...,
    metric: Metric | None = ...,
    rngs: Any = ...,
) -> Inspection: ...
@overload
def inspect(
    model: nnx.Module,
    batches: Iterable[Any],
    /,
    *,
    call: Call | None = ...,
    metric: Metric | None = ...,
) -> Inspection: ...
def inspect(
    model: Any,
    variables: Any = None,
    batches: Any = None,
    *more: Any,
    call: Call | None = None,
    metric: Metric | None = None,
    rngs: Any = None,
) -> Inspection:
    """Compares what each normalization of a model remembers with what it sees, and says what to do.

    The batches are run once as `recalibrate` does in its first pass: as in evaluation, but that
    batch norms normalize by the batch, so that a layer is not blamed for those before it. Of each
    layer it finds how far the running mean is off, in standard deviations, and the ratio of the
    variances; updates so far; channels that are constant or have a gamma near 0; means of more
    than 100 standard deviations, inputs that are not finite or nearly too large for float16,
    statistics of one value or few. Layers under scan and vmap count as one of all their channels,
    a batch norm that the steps of a scan share as one that is called by each; those in branches
    that data choose are not seen.

    Args:
      model: a linen module, or an NNX model, which stays as it is.
      variables: of a linen module; not given for an NNX model.
      batches: an iterable of batches.
      call: (model, batch) -> output: calls the bound model for evaluation. Default:
        `model(batch)`.
      metric: (output, batch) -> number, such as the accuracy or loss, which is averaged over the
        examples, in evaluation and by the batches' statistics.
      rngs: passed to `apply` of a linen module.

    Returns:
      An `Inspection`: `layers`, `findings` (sentences, worst first), `metrics`; `print` shows a
      table. `jaxnorm.plot.running_statistics` draws it.

    Raises:
      ValueError: there is no batch, the model calls no normalization, the variables have no
        `batch_stats` for one, or are those of another model.
      TypeError: it is no model of flax, has no variables, or cannot be called with a batch.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> from jaxnorm import tools
      >>> norm, x = jnn.BatchNorm(use_running_average=True), jnp.array([[5., 2.], [7., 2.]] * 8)
      >>> seen = tools.inspect(norm, norm.init(jax.random.key(0), x), [x])
      >>> print(seen.findings[0])
      the model: evaluation normalizes 2 of 2 channels otherwise than training: the running mean \
is up to 6 standard deviations off, the running variance 1 times the batches' (median); \
its running statistics have never been updated; recalibrate (jaxnorm.tools.recalibrate), or train \
on with a lower momentum.
    """
    given = (*(value for value in (variables, batches) if value is not None), *more)
    program, rest = take_model("inspect", model, given, call, rngs)
    survey = _Survey(program, metric)
    for batch in one_iterable("inspect", model, rest):
        survey.add(batch)
    return survey.result()


class _Survey:
    """What the batches have shown so far."""

    def __init__(self, program: Any, metric: Metric | None):
        self.program, self.metric = program, metric
        self.traits: dict[str, Traits] = {}
        self.rows: Rows = {}
        self.values: list[tuple[int, float, float]] = []
        self._compiled: dict[Any, Any] = {}
        self._measured: list[Path] = []

    def add(self, batch: Any) -> None:
        arrays, rebuild = split_arrays(batch)
        shapes = {i: (jnp.shape(a), a.dtype) for i, a in arrays.items()}
        key = (rebuild, *shapes.items())
        if key not in self._compiled:
            self._compiled[key] = self._compile(batch, rebuild)
        found, values = self._compiled[key](self.program.state, arrays)
        rows = {
            name.removeprefix(_TAG): [one.reshape(-1, len(ROWS)) for one in calls]
            for name, calls in jax.device_get(found).items()
        }
        for path, calls in self._apart(rows, key, arrays).items():
            self.rows.setdefault(path, []).extend(calls)
        if self.metric is not None:
            size = max((s[0][0] for s in shapes.values() if s[0]), default=1)
            evaluation, batch_value = map(float, values)
            self.values.append((size, evaluation, batch_value))

    def _apart(self, rows: Rows, key: Any, arrays: Any) -> Rows:
        """Returns the rows with the steps of a scan that share a layer as calls of their own."""
        batch = [path for path in rows if self.traits[path].is_batch]
        sizes = {p: leaf.size for p, leaf in running_means(self.program, batch).items()}
        shared = [p for p in batch if any(len(call) > sizes[p] for call in rows[p])]
        if not shared:
            return rows
        _, numbered = number_means(self.program, batch, wide=False)
        found = jax.device_get(self._compiled[key](numbered, arrays)[0])
        apart = dict(rows)
        for path in shared:
            size, column = sizes[path], ROWS.index("running_mean")
            apart[path] = []
            for call, seen in zip(rows[path], found[f"{_TAG}{path}"], strict=True):
                place = seen.reshape(-1, len(ROWS))[:, column]
                if np.unique(place).size != size:
                    # Half precision does not count that far; a scan's steps come first.
                    place = np.resize(np.arange(size), len(call))
                steps = call[np.argsort(place, kind="stable")].reshape(size, -1, len(ROWS))
                apart[path].extend(np.moveaxis(steps, 1, 0))
        return apart

    def _compile(self, batch: Any, rebuild: Any) -> Any:
        closed = self.program.trace(self._look, (batch,), self._finish)

        def run(state, arrays):
            values, found = reap(closed, _TAG)(*jax.tree.leaves((state, arrays)))
            if self.metric is None:
                return found, ()
            output = self.program.run(state, (rebuild(arrays),), as_it_is, object())
            return found, (self._finish(output, (rebuild(arrays),)), *values)

        return jax.jit(run)

    def _finish(self, output: Any, args: tuple) -> Any:
        if self.metric is None:
            return ()
        try:
            value = jnp.asarray(self.metric(output, *args))
        except TypeError as error:
            raise ValueError(
                f"metric must compute one number by jax.numpy, as under jit, but: {error}"
            ) from error
        if value.ndim:
            raise ValueError(
                f"metric must return one number, got an array of shape {value.shape}; take its "
                "mean over the examples."
            )
        return value

    def _look(self, visit, run, args, kwargs):
        if not is_norm(visit.module):
            return run(*args, **kwargs)
        if visit.function not in NORM_CALLS:
            # That of a subclass, which may call the norm's own, and is looked at there.
            before = len(self._measured)
            y = run(*args, **kwargs)
            if visit.path not in self._measured[before:]:
                given = arguments(visit.function, visit.module, args, kwargs)
                self._measure(visit, {"x": next(iter(given.values()), None), **given})
            return y
        given = arguments(visit.function, visit.module, args, kwargs)
        if not self._measure(visit, given) or not isinstance(visit.module, BATCH):
            return run(*args, **kwargs)
        # As in training, where a batch has more than one value per channel.
        return run_with(visit.module, run, given, by_batch=True)

    def _measure(self, visit: Visit, given: dict[str, Any]) -> bool:
        """Measures what a norm is given in a call, if that is an array."""
        module, x = visit.module, cast(Any, given.get("x"))
        if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.inexact):
            return False
        if isinstance(module, BATCH) and visit.value("mean") is None and not _keeps_none(module):
            raise ValueError(
                f"inspect: variables hold no running mean for {visit.name or 'the model'}; give "
                "the collection batch_stats too, as it was trained."
            )
        self._measured.append(visit.path)
        self.traits.setdefault(visit.name, traits(visit, x))
        checkpoint_name(measure(visit, x, given.get("mask")), f"{_TAG}{visit.name}")
        return True

    def result(self) -> Inspection:
        if not self._compiled:
            raise ValueError("batches is empty; an inspection needs at least one batch.")
        if not self.traits:
            raise ValueError(
                f"{self.program.label} calls no normalization of jaxnorm or flax, so that there is "
                "nothing to inspect."
            )
        layers = [
            _layer(path, known, self.rows[path])
            for path, known in self.traits.items()
            if path in self.rows
        ]
        metrics: dict[str, float] = {}
        found = [finding for layer in layers for finding in findings_of(layer)]
        found += [
            (0, f"{path}: it runs in a branch or in a loop of unknown length, and was not seen.")
            for path in self.traits.keys() - self.rows.keys()
        ]
        if self.metric is not None:
            weights, evaluation, batch = np.array(self.values).T
            metrics = {
                "evaluation": float(np.average(evaluation, weights=weights)),
                "batch": float(np.average(batch, weights=weights)),
            }
            found += metric_finding(metrics)
        worst_first = sorted(found, key=lambda finding: -finding[0])
        return Inspection(layers, [sentence for _, sentence in worst_first], metrics)


def _keeps_none(module: Any) -> bool:
    return isinstance(module, OWN_BATCH) and module._keeps_none


def _layer(path: str, known: Traits, rows: list[np.ndarray]) -> InspectedLayer:
    row = dict(zip(ROWS, merge(np.stack(rows)).T, strict=True))
    batch = Moments._make((row["mean"], row["var"], row["count"]))
    running = Moments._make((row["running_mean"], row["running_var"], row["updates"]))
    varies = row["var"] > 0
    deviation = np.sqrt(np.where(varies, row["var"], 1e-5))
    distance = (row["running_mean"] - row["mean"]) / deviation
    ratio = np.where(varies, row["running_var"] / np.where(varies, row["var"], 1), np.nan)
    untouched = (row["running_mean"] == 0).all() and (row["running_var"] == 1).all()
    counted = np.isfinite(row["updates"]).all()
    updates = float(row["updates"].min()) if counted else 0.0 if untouched else None
    return InspectedLayer(
        path=path,
        kind=known.kind,
        is_batch=known.is_batch,
        centers=known.centers,
        momentum=known.momentum if known.is_batch else None,
        dtype=known.dtype,
        channels=row["var"].size,
        distance=distance,
        variance_ratio=ratio,
        updates=updates if known.is_batch else None,
        dead=int(((row["var"] == 0) & (row["count"] > 1)).sum()),
        silent=int((np.abs(row["gamma"]) < SMALL).sum()),
        pooled=float(row["pooled"].min()),
        far=float(row["far"].max()),
        largest=float(row["largest"].max()),
        infinite=float(row["infinite"].sum()),
        running=running,
        batch=batch,
    )
