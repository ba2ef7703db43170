"""Pictures: what a normalization pools, what it does to each layer, and its running statistics.

`pools` and `norms` draw arrays as cubes; `activations` and `running_statistics` draw what
`record` saw in a Flax model. They need matplotlib: `pip install "jaxnorm[demo]"`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxnorm import _plot_cubes, _plot_layers
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.moments import Moments
from jaxnorm._plot_record import Record as Record
from jaxnorm._plot_record import record as record

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Plot
    from matplotlib.figure import Figure

__all__ = ["Record", "activations", "norms", "pools", "record", "running_statistics"]


def pools(
    shape: Sequence[int],
    axis: Axes,
    *,
    num_groups: int | None = None,
    group_size: int | None = None,
    channel_axis: int = -1,
    num_virtual_batches: int = 1,
    axis_names: Sequence[str] | None = None,
    title: str | None = None,
    ax: Plot | None = None,
) -> Plot:
    """Draws which elements of an array share one mean and variance.

    The array is a cube: examples to the left, channels to the right, all other axes stacked
    upwards. The elements of one pool are coloured, and dark lines part it from the other pools.
    Beyond 40 cells along an edge only the first are drawn, and the label says so.

    Args:
      shape: of the array: examples first, unless that is the channel axis.
      axis: the axes pooled.
      num_groups: of the channels, as in `jaxnorm.group_norm`.
      group_size: channels per group, instead of `num_groups`.
      channel_axis: the axis of the channels.
      num_virtual_batches: of the examples, as in `jaxnorm.ghost_batch_norm`.
      axis_names: a name for each axis; default: N, H, W, C and the like.
      title: above the cube; default: `axis`.
      ax: matplotlib axes to draw in; default: a new figure's.

    Returns:
      The matplotlib axes. Under the title stand the number of means and the size of a pool.

    Raises:
      TypeError: an axis is not an int.
      ValueError: `shape` is not one of positive ints, an axis is out of range or given twice, the
        groups or virtual batches do not divide, or there is not one name for each axis.

    Example:
      >>> from jaxnorm import plot
      >>> drawn = plot.pools((4, 6, 6, 8), axis=(0, 1, 2), title="batch norm")
      >>> drawn.get_title(), drawn.texts[-1].get_text()
      ('batch norm', '8 means, each of 144 values')

    Reference: the picture is that of Wu & He 2018, Group Normalization, arXiv:1803.08494.
    """
    division = _plot_cubes.Division.make(
        shape,
        axis,
        num_groups=num_groups,
        group_size=group_size,
        channel_axis=channel_axis,
        num_virtual_batches=num_virtual_batches,
    )
    names = division.names if axis_names is None else tuple(axis_names)
    if len(names) != len(division.shape):
        raise ValueError(
            f"axis_names={axis_names!r} must hold one name for each axis of shape "
            f"{division.shape}; give {len(division.shape)}."
        )
    if ax is None:
        import matplotlib.pyplot as plt

        size = _plot_cubes.figure_size(shape, channel_axis)
        ax = plt.figure(figsize=size, layout="constrained").add_subplot()
    _plot_cubes.draw_cube(ax, division, names)
    heading = f"axis={axis!r}" if title is None else title
    ax.set_title(heading, fontsize=12, fontweight="bold", pad=20)
    ax.text(0.5, 1.0, division.caption, transform=ax.transAxes, ha="center", fontsize=10.5)
    return ax


def norms(
    shape: Sequence[int],
    choices: Mapping[str, Axes | Mapping[str, Any]] | None = None,
    *,
    channel_axis: int = -1,
    axis_names: Sequence[str] | None = None,
    columns: int = 3,
    figure: Figure | None = None,
) -> Figure:
    """Draws several normalizations of one array side by side.

    Args:
      shape: of the array.
      choices: by title, the axes pooled or a dict of arguments of `pools`. Default: batch, layer,
        group and instance norm, and batch and layer norm of each position.
      channel_axis: the axis of the channels.
      axis_names: a name for each axis; default: N, H, W, C and the like.
      columns: pictures in a row.
      figure: a matplotlib figure or subfigure to draw in; default: a new one.

    Returns:
      The matplotlib figure.

    Raises:
      TypeError: as `pools`.
      ValueError: as `pools`, or there is nothing to draw.

    Example:
      >>> from jaxnorm import plot
      >>> drawn = plot.norms((4, 5, 8), {"layer norm": -1, "my own": {"axis": 1, "num_groups": 2}})
      >>> [(ax.get_title(), ax.texts[-1].get_text()) for ax in drawn.axes]
      [('layer norm', '20 means, each of 8 values'), ('my own', '8 means, each of 20 values')]
    """
    if choices is None:
        choices = _plot_cubes.usual_choices(shape, channel_axis)
    if not choices:
        raise ValueError(f"there is no normalization of shape {tuple(shape)} to draw.")
    columns = min(columns, len(choices))
    rows = -(-len(choices) // columns)
    if figure is None:
        import matplotlib.pyplot as plt

        size = _plot_cubes.figure_size(shape, channel_axis, rows, columns)
        figure = plt.figure(figsize=size, layout="constrained")
    for i, (title, choice) in enumerate(choices.items()):
        options: dict[str, Any] = {"channel_axis": channel_axis, "axis_names": axis_names}
        options |= choice if isinstance(choice, Mapping) else {"axis": choice}
        options.setdefault("title", title)
        pools(shape, ax=figure.add_subplot(rows, columns, i + 1), **options)
    return figure


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

    Example:
      >>> import numpy as np
      >>> from jaxnorm import plot
      >>> x = np.linspace(0.0, 10.0, 100)
      >>> drawn = plot.activations({"layer 1": x}, {"layer 1": (x - x.mean()) / x.std()})
      >>> [ax.get_title() for ax in drawn.axes]
      ['before', 'after']
    """
    return _plot_layers.draw_activations(before, after, labels, figure)


def running_statistics(
    running: Mapping[str, Moments],
    batch: Mapping[str, Moments],
    *,
    columns: int = 4,
    figure: Figure | None = None,
) -> Figure:
    """Draws the running statistics of each layer against those of a batch, a point per channel.

    Two rows for each line of layers: means and standard deviations. On the diagonal the two are
    equal, so a model in evaluation computes what it did in training; points off it are channels
    that evaluation normalizes wrongly (stale averages, too small batches, other data).

    Args:
      running: the running `Moments` of each layer, by name; see `record`.
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
    return _plot_layers.draw_running(running, batch, columns, figure)
