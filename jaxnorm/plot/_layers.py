"""Pictures of a model's layers: distributions of activations, and running statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from jaxnorm._core.axes import ArrayLike
from jaxnorm._core.moments import Moments
from jaxnorm.tools import Inspection

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Plot
    from matplotlib.figure import Figure

# Vermilion and blue of Okabe and Ito's palette, which colour-blind readers tell apart.
BEFORE, AFTER = "#D55E00", "#0072B2"
GRID = "#C8C8C8"
BINS = 80
OUTER = 0.001  # share of the activations left out on either side
ROW = 0.52  # inches for each layer
SQUARE = 2.5  # inches for each scatter plot
SPREAD = 30.0  # ratio of largest to smallest from which a scale is logarithmic


def activations(
    before: Mapping[str, ArrayLike],
    after: Mapping[str, ArrayLike] | None = None,
    *,
    labels: tuple[str, str] = ("before", "after"),
    figure: Figure | None = None,
) -> Figure:
    """Draws the distribution of activations in each layer, before and after normalization.

    One row per layer, the first on top; a column for before and one for after, each with one
    scale for all layers, so that their widths can be compared. Mean and standard deviation are
    written in each row. The outer 0.1 percent on either side is not drawn.

    Args:
      before: an array per layer, by name; see `record`.
      after: like `before`, with the same names, or None.
      labels: titles of the two columns.
      figure: a matplotlib figure or subfigure to draw in; default: a new one.

    Returns:
      The matplotlib figure.

    Raises:
      ValueError: there is no layer, the names differ, or an array holds no finite number.
      TypeError: `before` or `after` is no dict.

    Example:
      >>> import numpy as np
      >>> from jaxnorm import plot
      >>> x = np.linspace(0.0, 10.0, 100)
      >>> drawn = plot.activations({"layer 1": x}, {"layer 1": (x - x.mean()) / x.std()})
      >>> [ax.get_title() for ax in drawn.axes]
      ['before', 'after']
    """
    import matplotlib.pyplot as plt

    for name, layers in (("before", before), ("after", after)):
        if not (layers is None or isinstance(layers, Mapping)):
            raise TypeError(
                f"{name} must be a dict of arrays by the names of layers, as plot.record returns "
                f"it, got a {type(layers).__name__}; of one array: {{'layer': array}}."
            )
    if not before:
        raise ValueError("before must hold at least one layer, got none.")
    columns = [(before, labels[0], BEFORE)]
    if after is not None:
        _check_names("before", before, "after", after)
        columns.append((after, labels[1], AFTER))
    if figure is None:
        size = (0.8 + 4.2 * len(columns), 1.0 + ROW * len(before))
        figure = plt.figure(figsize=size, layout="constrained")
    for i, (layers, label, color) in enumerate(columns):
        ax = figure.add_subplot(1, len(columns), i + 1)
        _draw_rows(ax, {name: _read(name, layers[name]) for name in before}, color)
        ax.set_title(label, fontsize=12)
        ax.tick_params(labelleft=i == 0)
    return figure


def _check_names(first: str, a: Mapping, second: str, b: Mapping) -> None:
    if set(a) != set(b):
        raise ValueError(
            f"{first} and {second} must hold the same layers; only {first} has "
            f"{sorted(set(a) - set(b))}, only {second} has {sorted(set(b) - set(a))}."
        )


def _read(name: str, values: ArrayLike) -> np.ndarray:
    """Returns the values in one row, of which one at least is finite."""
    flat = np.asarray(values).astype(np.float64).ravel()
    if not np.isfinite(flat).any():
        raise ValueError(f"layer {name!r} holds no finite number; there is nothing to draw.")
    return flat


def _draw_rows(ax: Plot, layers: Mapping[str, np.ndarray], color: str) -> None:
    finite = {name: values[np.isfinite(values)] for name, values in layers.items()}
    quantiles = [np.quantile(values, (OUTER, 1 - OUTER)) for values in finite.values()]
    low, high = min(q[0] for q in quantiles), max(q[1] for q in quantiles)
    margin = 0.04 * (high - low) or 1.0
    edges = np.linspace(low - margin, high + margin, BINS + 1)
    for row, values in enumerate(finite.values()):
        counts, _ = np.histogram(values, edges)
        heights = 0.85 * counts / max(counts.max(), 1)
        ax.stairs(row - heights, edges, baseline=row, fill=True, color=color, alpha=0.75)
        ax.axhline(row, color=GRID, linewidth=0.6, zorder=0)
    ax.axvline(0, color=GRID, linewidth=0.9, zorder=0)
    middles = np.arange(len(layers)) - 0.3
    ax.set_yticks(middles, list(layers))
    ax.set_ylim(len(layers) - 0.85, -1.1)
    ax.set_xlim(edges[0], edges[-1])
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "left", "right"]].set_visible(False)
    right = ax.secondary_yaxis("right")
    right.set_yticks(
        [-1.0, *middles],
        ["mean ± std", *(_describe(values) for values in layers.values())],
        fontsize=9,
    )
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)


def _describe(values: np.ndarray) -> str:
    """Returns mean ± standard deviation, and how many are not finite if there are any."""
    finite = values[np.isfinite(values)]
    mean, std = finite.mean(), finite.std()
    if std == 0:
        text = f"{mean:.2g} ± 0"
    elif 1e-3 <= std < 1e4:
        # Two digits of the standard deviation, and the mean to the same place.
        places = max(0, 1 - math.floor(math.log10(std)))
        text = f"{mean:z.{places}f} ± {std:.{places}f}"
    else:
        text = f"{mean:.1e} ± {std:.1e}"
    text = text.replace("-", "\N{MINUS SIGN}")
    if finite.size < values.size:
        text += f"\n{values.size - finite.size:,} not finite"
    return text


def running_statistics(
    running: Mapping[str, Moments] | Inspection,
    batch: Mapping[str, Moments] | None = None,
    *,
    columns: int = 4,
    figure: Figure | None = None,
) -> Figure:
    """Draws the running statistics of each layer against those of a batch, a point per channel.

    Two rows for each line of layers: means and standard deviations. On the diagonal the two are
    equal, so a model in evaluation computes what it did in training; points off it are channels
    that evaluation normalizes wrongly (stale averages, too small batches, other data).

    Args:
      running: the running `Moments` of each layer, by name; see `record`. Or what
        `jaxnorm.tools.inspect` returned, alone.
      batch: the moments of a batch, with the same names.
      columns: layers in a line.
      figure: a matplotlib figure or subfigure to draw in; default: a new one.

    Returns:
      The matplotlib figure.

    Raises:
      ValueError: there is no layer, or the names differ.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> from jaxnorm import plot
      >>> batch = jaxnorm.moments(jnp.array([[1., 5.], [3., 6.]]), axis=0)
      >>> running = jaxnorm.Moments(jnp.zeros(2), jnp.ones(2), jnp.zeros(()))
      >>> drawn = plot.running_statistics({"layer 1": running}, {"layer 1": batch})
      >>> [ax.get_title() for ax in drawn.axes]
      ['layer 1', '']
    """
    import matplotlib.pyplot as plt

    if isinstance(running, Inspection):
        running, batch = running.running, running.batch
    if not running:
        raise ValueError("running must hold at least one layer, got none.")
    batch = batch or {}
    _check_names("running", running, "batch", batch)
    lines = -(-len(running) // columns)
    columns = -(-len(running) // lines)
    if figure is None:
        size = (SQUARE * columns + 0.3, 2 * SQUARE * lines + 0.4)
        figure = plt.figure(figsize=size, layout="constrained")
    for i, name in enumerate(running):
        line, column = divmod(i, columns)
        pair = running[name], batch[name]
        means = [np.asarray(m.mean).ravel() for m in pair]
        stds = [np.sqrt(np.asarray(m.var)).ravel() for m in pair]
        for j, (label, values) in enumerate((("mean", means), ("std", stds))):
            place = (2 * line + j) * columns + column + 1
            ax = figure.add_subplot(2 * lines, columns, place)
            _draw_scatter(ax, values[0], values[1], logarithmic=j == 1)
            ax.set_xlabel(f"running {label}", fontsize=9)
            if j == 0:
                ax.set_title(name, fontsize=11)
            if column == 0:
                ax.set_ylabel(f"batch's {label}", fontsize=9)
    return figure


def _draw_scatter(ax: Plot, x: np.ndarray, y: np.ndarray, *, logarithmic: bool) -> None:
    both = np.concatenate([x, y])
    low, high = both.min(), both.max()
    if logarithmic and low > 0 and high / low > SPREAD:
        ax.set_xscale("log")
        ax.set_yscale("log")
        limits = (low / 1.5, high * 1.5)
    else:
        margin = 0.08 * (high - low) or 1.0
        limits = (low - margin, high + margin)
        ax.locator_params(nbins=5)  # more labels touch each other in so small a picture
    ax.axline((limits[0],) * 2, (limits[1],) * 2, color=GRID, linewidth=1.2, zorder=0)
    ax.scatter(x, y, s=16, color=AFTER, alpha=0.7, linewidths=0)
    ax.set_xlim(limits)
    ax.set_ylim(limits)
    ax.set_box_aspect(1)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
