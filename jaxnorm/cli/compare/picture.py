"""The picture of `compare`: final accuracies as numbers, and the training curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from jaxnorm.cli.compare.results import Result, Summary, summarize

# Colours of Okabe and Ito, which colour-blind readers tell apart; dashes and markers tell the
# lines apart without any colour.
STYLES = {
    "none": ("#000000", (0, (1, 1)), "x"),
    "batch": ("#D55E00", "-", "o"),
    "layer": ("#0072B2", (0, (5, 1.5)), "s"),
    "rms": ("#56B4E9", (0, (3, 1, 1, 1)), "D"),
    "group": ("#009E73", "-", "^"),
    "instance": ("#CC79A7", (0, (5, 1.5)), "v"),
    "another": ("#E69F00", (0, (3, 1, 1, 1)), "P"),
    "one more": ("#6B4C9A", "-", "*"),
}
# Where there are more normalizations than styles, those that do worse than the others.
REST, REST_STYLE = "the rest", {"color": "#c4c4c4", "linewidth": 0.8, "zorder": 1}
# Accuracies are drawn on a logit scale: 0.95 and 0.98 stand as far apart as 0.5 and 0.72.
TICKS = (0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999)
EVERY = 5  # points from marker to marker


def draw(results: Sequence[Result], title: str) -> Figure:
    """Draws a column per batch size: final accuracies on top, curves per learning rate below."""
    summaries = summarize(results)
    cells = {(s.norm, s.batch_size, s.learning_rate): s for s in summaries}
    norms = list(dict.fromkeys(s.norm for s in summaries))
    styles = _choose_styles(summaries)
    batch_sizes = list(dict.fromkeys(s.batch_size for s in summaries))
    rates = list(dict.fromkeys(s.learning_rate for s in summaries))
    limits = _limits(results)

    heights = [0.32 * len(norms) + 0.2] + [2.0] * len(rates)
    width = max(1.0 + max(3.4, 0.6 * len(rates) + 0.3) * len(batch_sizes), 8.0)
    figure = Figure(
        figsize=(width, sum(heights) + 2.4),
        layout=ConstrainedLayoutEngine(hspace=0.03, wspace=0.03, h_pad=0.08),
    )
    figure.suptitle(title, fontsize=12, fontweight="bold", parse_math=False)
    grid = figure.add_gridspec(len(heights), len(batch_sizes), height_ratios=heights)
    for column, batch_size in enumerate(batch_sizes):
        axes = figure.add_subplot(grid[0, column])
        axes.set_title(f"batch size {batch_size}: final test accuracy in %", fontsize=11)
        rows = [[cells.get((norm, batch_size, rate)) for rate in rates] for norm in norms]
        _draw_numbers(axes, rows, norms if column == 0 else [], rates, limits)
        curves: Axes | None = None
        for row, rate in enumerate(rates):
            # Steps are read at the bottom of the column, also where a run was shorter.
            axes = curves = figure.add_subplot(grid[row + 1, column], sharex=curves)
            for norm in norms:
                if summary := cells.get((norm, batch_size, rate)):
                    offset = {"markevery": (norms.index(norm) % EVERY, EVERY)}
                    style = {**styles[norm], **offset} if norm in styles else REST_STYLE
                    _draw_curve(axes, summary, limits, style)
            _finish_curves(axes, results[0].target, limits)
            axes.set_title(f"learning rate {rate:g}", fontsize=10, loc="left")
            axes.tick_params(labelleft=column == 0, labelbottom=row == len(rates) - 1)
            if column == 0:
                axes.set_ylabel("test accuracy in %")
        axes.set_xlabel("training steps")
    lines = {**styles, f"target {results[0].target:.4g}": TARGET_STYLE}
    if len(styles) < len(norms):
        lines[REST] = REST_STYLE
    handles = [Line2D([], [], label=name, **style) for name, style in lines.items()]
    columns = math.ceil(len(handles) / math.ceil(len(handles) / 6))  # no more fit in a row
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=3)
    return figure


TARGET_STYLE = {"color": "#999999", "linewidth": 1.0, "linestyle": "-"}


def _choose_styles(summaries: Sequence[Summary]) -> dict[str, dict]:
    """Returns the style of each normalization, or of none and the best, as many as there are.

    The best are those with the highest mean accuracy over batch sizes, each at its best rate.
    """
    best: dict[str, dict[int, float]] = {}
    for s in summaries:
        accuracies = best.setdefault(s.norm, {})
        accuracies[s.batch_size] = max(s.mean_accuracy, accuracies.get(s.batch_size, 0.0))
    ranked = sorted(best, key=lambda n: (n == "none", sum(best[n].values())), reverse=True)
    chosen = [norm for norm in best if norm in ranked[: len(STYLES)]]
    free = iter(name for name in STYLES if name not in chosen and name != "none")
    return {norm: _style(norm if norm in STYLES else next(free)) for norm in chosen}


def _style(name: str) -> dict:
    color, linestyle, marker = STYLES[name]
    return {
        "color": color,
        "linestyle": linestyle,
        "linewidth": 1.6,
        "marker": marker,
        "markersize": 4.5,
    }


def _limits(results: Sequence[Result]) -> tuple[float, float]:
    """Returns the accuracies at the ends of the scale: 0 and 1 are infinitely far away."""
    values = np.array([p.test_accuracy for r in results for p in r.curve])
    low = min(values.min(), 0.1) / 1.5
    high = max(values[values < 1].max(initial=0.0), 0.99)
    return max(low, 1e-4), 1 - (1 - high) / 1.5


def _logit(accuracy: float, limits: tuple[float, float]) -> float:
    clipped = min(max(accuracy, limits[0]), limits[1])
    return float(np.log(clipped / (1 - clipped)))


def _draw_numbers(
    axes: Axes,
    rows: list[list[Summary | None]],
    names: list[str],
    rates: list[float],
    limits: tuple[float, float],
) -> None:
    """Draws a table of final accuracies, brighter where higher, the best in bold."""
    values = [[s.mean_accuracy if s else np.nan for s in row] for row in rows]
    best = np.nanmax(values)
    colors = mpl.colormaps["cividis"]
    low, high = (_logit(limit, limits) for limit in limits)
    shades = [[(_logit(v, limits) - low) / (high - low) for v in row] for row in values]
    axes.imshow(shades, cmap=colors, vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if not np.isnan(value):
                axes.text(
                    j,
                    i,
                    f"{100 * value:.1f}",
                    ha="center",
                    va="center",
                    color="black" if shades[i][j] > 0.5 else "white",
                    fontweight="bold" if value == best else "normal",
                )
    axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("learning rate")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_curve(axes: Axes, summary: Summary, limits: tuple[float, float], style: dict) -> None:
    """Draws the accuracy after each evaluated step, the mean over the seeds."""
    longest = max((r.curve for r in summary.results), key=len)
    steps = [point.step for point in longest]
    accuracies = np.array(
        [
            # A seed that diverged stays where it was.
            [point.test_accuracy for point in r.curve]
            + [r.test_accuracy] * (len(longest) - len(r.curve))
            for r in summary.results
        ]
    ).mean(axis=0)
    heights = [_logit(a, limits) for a in accuracies]
    axes.plot(steps, heights, **style)


def _finish_curves(axes: Axes, target: float, limits: tuple[float, float]) -> None:
    low, high = limits
    ticks = [t for t in TICKS if low < t < high]
    axes.set_ylim(_logit(low, limits), _logit(high, limits))
    axes.yaxis.set_major_locator(FixedLocator([_logit(t, limits) for t in ticks]))
    labels = {round(_logit(t, limits), 6): f"{100 * t:g}" for t in ticks}
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: labels.get(round(v, 6), "")))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axhline(_logit(target, limits), zorder=0, **TARGET_STYLE)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
