"""Normalizations of each example over its positions: group norm and instance norm."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes, DTypeLike
from jaxnorm._core.collectives import AxisIndexGroups
from jaxnorm._core.formula import Options
from jaxnorm._core.mesh import splits_evenly
from jaxnorm._core.normalize import normalize
from jaxnorm._core.pool import Pool, pool_of
from jaxnorm._core.sums import split_axis

Report = Callable[[str], None]  # is told of pools that hold one value


def group_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    num_groups: int | None = None,
    group_size: int | None = None,
    channel_axis: int = -1,
    axis: Axes | None = None,
    epsilon: float = 1e-6,
    mask: ArrayLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: AxisIndexGroups = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Normalizes each example within groups of neighbouring channels.

    y = (x - mean) / sqrt(var + epsilon) * gamma + beta, with the mean and the biased variance
    over `axis` and the channels of a group. One group is layer norm over those axes and the
    channels; one channel per group is instance norm.

    Args:
      x: floating-point or complex array of rank 1 or more.
      gamma: scale; one value per channel, or the rank of `x` (broadcast), or rank 0.
      beta: offset; like `gamma`.
      num_groups: into how many groups the channels are divided; must divide them. Default 32.
      group_size: channels per group, instead of `num_groups`.
      channel_axis: the axis of the channels.
      axis: the axes pooled beside the group's channels. Default: all but axis 0 and the channels.
      epsilon: added to the variance.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) to pool over as well, as for
        positions that are divided over devices.
      axis_index_groups: groups of indices of `axis_name` that pool together.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, in the shape of `x`.

    Raises:
      TypeError: `x` or `dtype` is of integers, `mask` is not boolean, or a number is no integer.
      ValueError: the groups do not divide the channels or are given twice, each holds one value, an
        axis is out of range or given twice, gamma, beta or mask does not fit, or epsilon is
        negative.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[1., 3., 10., 30.]])
      >>> jaxnorm.group_norm(x, num_groups=2, epsilon=0.0).tolist()
      [[-1.0, 1.0, -1.0, 1.0]]

    Reference: Wu & He 2018, Group Normalization, arXiv:1803.08494.
    """
    return normalize_groups(
        functools.partial(refuse, "group_norm"),
        *(x, gamma, beta, mask),
        num_groups=num_groups,
        group_size=group_size,
        channel_axis=channel_axis,
        axis=axis,
        epsilon=epsilon,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )


def count_groups(num_groups, group_size, shape, channel) -> int:
    channels = shape[channel]
    if num_groups is not None and group_size is not None:
        raise ValueError(
            f"give num_groups or group_size, not both; got num_groups={num_groups!r} and "
            f"group_size={group_size!r}."
        )
    name, value = ("num_groups", num_groups) if group_size is None else ("group_size", group_size)
    value = 32 if value is None else _axes.check_int(value, name)
    if value < 1 or channels % value:
        raise ValueError(
            f"{name}={value!r} does not divide the {channels} channels on axis {channel} of the "
            f"input of shape {shape}; choose a divisor of {channels}."
        )
    return value if group_size is None else channels // value


def instance_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: Axes | None = None,
    channel_axis: int = -1,
    epsilon: float = 1e-6,
    mask: ArrayLike | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: AxisIndexGroups = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Normalizes each channel of each example over its positions.

    y = (x - mean) / sqrt(var + epsilon) * gamma + beta, with the mean and the biased variance
    over `axis`.

    Args:
      x: floating-point or complex array of rank 1 or more.
      gamma: scale; one value per channel, or the rank of `x` (broadcast), or rank 0.
      beta: offset; like `gamma`.
      axis: the axes pooled. Default: all but axis 0 and the channels.
      channel_axis: the axis of the channels.
      epsilon: added to the variance.
      mask: boolean, broadcasts against `x`; elements where it is False are not pooled and give 0.
      axis_name: mapped axes (of `jax.vmap` or `jax.shard_map`) to pool over as well, as for
        positions that are divided over devices.
      axis_index_groups: groups of indices of `axis_name` that pool together.
      dtype: of the result; default: that of `x`.

    Returns:
      The normalized array, in the shape of `x`.

    Raises:
      TypeError: `x` or `dtype` is of integers, or `mask` is not boolean.
      ValueError: there is no axis to pool, or one position, an axis is out of range or given twice,
        gamma, beta or mask does not fit, or epsilon is negative.
      NameError: an `axis_name` is not bound.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[[1., 10.], [3., 30.]]])
      >>> jaxnorm.instance_norm(x, epsilon=0.0).tolist()
      [[[-1.0, -1.0], [1.0, 1.0]]]

    Reference: Ulyanov, Vedaldi & Lempitsky 2016, Instance Normalization, arXiv:1607.08022.
    """
    return normalize_positions(
        functools.partial(refuse, "instance_norm"),
        *(x, gamma, beta, mask),
        channel_axis=channel_axis,
        axis=axis,
        epsilon=epsilon,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )


def normalize_groups(
    report: Report,
    x: ArrayLike,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    mask: ArrayLike | None,
    *,
    num_groups: int | None,
    group_size: int | None,
    channel_axis: int,
    axis: Axes | None,
    epsilon: float,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: AxisIndexGroups = None,
    dtype: DTypeLike | None,
) -> jax.Array:
    """Computes `group_norm`; `report` is told if each group is of one value."""
    x = _axes.check_input(x)
    channel = _axes.canonical_axis(channel_axis, x.shape, "channel_axis")
    groups = count_groups(num_groups, group_size, x.shape, channel)
    if axis is None:
        pooled = tuple(a for a in range(1, x.ndim) if a != channel)
    else:
        axes = _axes.canonical_axes(axis, x.shape, allow_empty=True)
        pooled = tuple(a for a in axes if a != channel)

    gamma = _axes.expand_parameter(gamma, x, None, (channel,), "gamma")
    beta = _axes.expand_parameter(beta, x, None, (channel,), "beta")
    mask = _axes.expand_mask(mask, x)
    pool = pool_of(pooled, axis_name, axis_index_groups, (channel, groups))
    _check_values(report, pool, x.shape, mask)
    options = Options(pool, _axes.check_epsilon(epsilon), _axes.result_dtype(x, dtype))
    # Groups of nothing but channels are rows, which takes fewer passes over memory; but not where
    # that moved the input between devices.
    if any(x.shape[a] != 1 for a in pooled) or not splits_evenly(x, channel, groups):
        return normalize(x, gamma, beta, mask, options)[0]
    pool = pool._replace(axes=(channel + 1,), groups=None)
    rows = (split_axis(array, channel, groups) for array in (x, gamma, beta, mask))
    return normalize(*rows, options._replace(pool=pool))[0].reshape(x.shape)


def normalize_positions(
    report: Report,
    x: ArrayLike,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    mask: ArrayLike | None,
    *,
    channel_axis: int,
    axis: Axes | None,
    epsilon: float,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: AxisIndexGroups = None,
    dtype: DTypeLike | None,
) -> jax.Array:
    """Computes `instance_norm`; `report` is told if there is one position."""
    x = _axes.check_input(x)
    channel = _axes.canonical_axis(channel_axis, x.shape, "channel_axis")
    if axis is None:
        axes = tuple(a for a in range(1, x.ndim) if a != channel)
        if not axes:
            raise ValueError(
                f"an input of shape {x.shape} has no axis besides the batch and the channels to "
                "normalize over; instance norm needs positions, or pass axis."
            )
    else:
        axes = _axes.canonical_axes(axis, x.shape)
        if channel in axes:
            raise ValueError(
                f"axis={axis!r} contains the channel axis {channel} of the input of shape "
                f"{x.shape}; instance norm keeps the channels apart. Use layer_norm to pool them."
            )
    gamma = _axes.expand_parameter(gamma, x, None, (channel,), "gamma")
    beta = _axes.expand_parameter(beta, x, None, (channel,), "beta")
    mask = _axes.expand_mask(mask, x)
    pool = pool_of(axes, axis_name, axis_index_groups)
    _check_values(report, pool, x.shape, mask)
    options = Options(pool, _axes.check_epsilon(epsilon), _axes.result_dtype(x, dtype))
    return normalize(x, gamma, beta, mask, options)[0]


def _check_values(
    report: Report, pool: Pool, shape: tuple[int, ...], mask: jax.Array | None
) -> None:
    """Reports a pool of a single value, as far as the input's shape tells."""
    if mask is None and not pool.names:
        report_one_value(report, pool.size(shape), shape, pool.axes, pool.groups)


def report_one_value(
    report: Report,
    size: int,
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    groups: tuple[int, int] | None = None,
) -> None:
    """Tells `report` of pools of `size` values if that is 1; a symbolic size is not known."""
    if not isinstance(size, int) or size != 1:
        return
    if groups is None:
        where, remedy = f"reduced over axes {axes}", "reduce over axes that hold several positions"
    else:
        where = f"with {groups[1]} groups of one channel"
        where += f", reduced over axes {axes} as well" if axes else ""
        remedy = "have fewer groups, of 8 channels or more"
    report(
        f"one value in each {'channel of an example' if groups is None else 'group'}: an input of "
        f"shape {shape} {where}. One value cannot be normalized; {remedy}, or take a norm over the "
        "channels, such as layer norm."
    )


def refuse(label: str, message: str) -> None:
    """Raises an error, for the norm that is called `label`."""
    raise ValueError(f"{label} got {message}")


def ignore(message: str) -> None:
    """Does nothing, as where a model is initialized by an input smaller than those to come."""
