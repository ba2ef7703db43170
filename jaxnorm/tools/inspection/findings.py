"""What is wrong with a normalization, in sentences, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jaxnorm.tools.inspection.layers import SMALL, InspectedLayer

FEW = 16  # values that statistics of less than these are noisy
FAR = 100.0  # standard deviations from where on other libraries lose digits
LEFT = 0.05  # share of the initial statistics that is too much

Finding = tuple[float, str]  # how bad it is, and the sentence


def findings_of(layer: InspectedLayer) -> Iterator[Finding]:
    """Yields what is wrong with a layer."""
    for judge in (_infinite, _one_value, _stale, _noisy, _dead, _far):
        for severity, sentence in judge(layer):
            yield severity, f"{layer.path or 'the model'}: {sentence}"


def metric_finding(metrics: dict[str, float]) -> Iterator[Finding]:
    """Yields what the two modes differ by, if they do."""
    evaluation, batch = metrics["evaluation"], metrics["batch"]
    if not np.isclose(evaluation, batch, rtol=0.05):
        yield (
            95,
            f"the metric is {evaluation:.4g} in evaluation, and {batch:.4g} where batches are "
            "normalized by their own statistics, as in training; if that is better, the running "
            "statistics are at fault: recalibrate (jaxnorm.tools.recalibrate).",
        )


def _infinite(layer: InspectedLayer) -> Iterator[Finding]:
    kind, limit = jnp.dtype(layer.dtype), float(jnp.finfo(layer.dtype).max)
    half = kind == jnp.float16
    remedy = (
        "use bfloat16, or scale the layer before it down"
        if half
        else "look for the first layer with such inputs: a division by 0, or too large a step"
    )
    if layer.is_batch and not np.isfinite([*layer.running[:2]]).all():
        yield 99, "its running statistics are not finite; recalibrate (jaxnorm.tools.recalibrate)."
    if layer.infinite:
        yield 100, f"{layer.infinite:.0f} inputs are not finite in {kind}; {remedy}."
    elif half and layer.largest > limit / 8:
        yield (
            40,
            f"inputs reach {layer.largest:.3g}, and {kind} ends at {limit:.3g}; {remedy}.",
        )


def _one_value(layer: InspectedLayer) -> Iterator[Finding]:
    if layer.pooled == 1:
        more = "a larger batch, or " if layer.is_batch else ""
        yield (
            90,
            "each statistic is of one value, which is normalized to 0 whatever it is; use "
            f"{more}a norm that pools more elements (layer norm, fewer groups).",
        )


def _stale(layer: InspectedLayer) -> Iterator[Finding]:
    if not layer.is_batch:
        return
    count = int(layer.stale.sum())
    left = _initial_share(layer)
    if count > 0.1 * layer.channels:
        updates = "" if left is None else f" {_say_updates(layer, left)};"
        varies = np.isfinite(layer.variance_ratio) & np.isfinite(layer.distance)
        worst = np.max(np.abs(layer.distance[varies if varies.any() else layer.stale]))
        ratio = np.median(layer.variance_ratio[varies]) if varies.any() else 1.0
        yield (
            50 + 25 * count / layer.channels + min(worst, 10),
            f"evaluation normalizes {count} of {layer.channels} channels otherwise than training: "
            f"the running mean is up to {worst:.2g} standard deviations off, the running variance "
            f"{ratio:.2g} times the batches' (median);{updates} recalibrate "
            "(jaxnorm.tools.recalibrate), or train on with a lower momentum.",
        )
    elif left is not None and left > LEFT:
        yield (
            45,
            f"{_say_updates(layer, left)}; recalibrate (jaxnorm.tools.recalibrate), lower the "
            "momentum, or set debias=True.",
        )


def _initial_share(layer: InspectedLayer) -> float | None:
    """Returns how much of the running statistics is still what they started with, if known."""
    if layer.updates is None:
        return None
    if layer.momentum is None:
        return float(layer.updates == 0)
    return layer.momentum**layer.updates


def _say_updates(layer: InspectedLayer, left: float) -> str:
    if not layer.updates:
        return "its running statistics have never been updated"
    return (
        f"after {layer.updates:.0f} updates with momentum {layer.momentum:g} its running "
        f"statistics are still {left:.0%} the initial 0 and 1"
    )


def _noisy(layer: InspectedLayer) -> Iterator[Finding]:
    if layer.is_batch and 1 < layer.pooled < FEW:
        yield (
            35,
            f"its statistics in training are of {layer.pooled:.0f} values, which is noisy; use a "
            "larger batch, pool over devices (axis_name), or take group norm.",
        )


def _dead(layer: InspectedLayer) -> Iterator[Finding]:
    if layer.dead:
        yield (
            20 + 10 * layer.dead / layer.channels,
            f"{layer.dead} of {layer.channels} channels are constant (variance 0) and give beta "
            "alone; look at the activation and the learning rate before it, or prune them.",
        )
    if layer.silent:
        start = " (so residual blocks often start)" if layer.silent == layer.channels else ""
        yield (
            10 + 5 * layer.silent / layer.channels,
            f"in {layer.silent} of {layer.channels} channels gamma is below {SMALL:g}{start}: what "
            "comes before is not used; leave gamma out of weight decay "
            "(jaxnorm.tools.norm_params), or prune them.",
        )


def _far(layer: InspectedLayer) -> Iterator[Finding]:
    if layer.centers and layer.far > FAR:
        yield (
            15,
            f"a mean is {layer.far:.3g} standard deviations away from 0, where libraries that "
            "compute E[x^2] - E[x]^2 lose all digits; jaxnorm does not, and a bias before the norm "
            "can be left out.",
        )
