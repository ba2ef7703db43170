"""What normalizations pool: one as a cube, several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxnorm._core.axes import Axes
from jaxnorm.plot._cubes import draw_cube, figure_size
from jaxnorm.plot._division import Division, usual_choices

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Plot
    from matplotlib.figure import Figure


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
    division = Division.make(
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

        size = figure_size(shape, channel_axis)
        ax = plt.figure(figsize=size, layout="constrained").add_subplot()
    draw_cube(ax, division, names)
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
        choices = usual_choices(shape, channel_axis)
    if not choices:
        raise ValueError(f"there is no normalization of shape {tuple(shape)} to draw.")
    columns = min(columns, len(choices))
    rows = -(-len(choices) // columns)
    if figure is None:
        import matplotlib.pyplot as plt

        size = figure_size(shape, channel_axis, rows, columns)
        figure = plt.figure(figsize=size, layout="constrained")
    for i, (title, choice) in enumerate(choices.items()):
        options: dict[str, Any] = {"channel_axis": channel_axis, "axis_names": axis_names}
        options |= choice if isinstance(choice, Mapping) else {"axis": choice}
        options.setdefault("title", title)
        pools(shape, ax=figure.add_subplot(rows, columns, i + 1), **options)
    return figure
