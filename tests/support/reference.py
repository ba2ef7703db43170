"""Float64 NumPy references, written from each paper's formula, and their closed-form VJPs.

Statistics are taken over pools: an index array of shape (pools, elements) into the flattened
input. Masks are applied by packing: the elements left out are dropped and the formula is applied
to the rest, so no reference shares a line of thought with the masked code that it checks.
"""

import numpy as np


def pools_over(shape, axes):
    """Flat indices (pools, elements) of the elements that a reduction over `axes` pools."""
    axes = tuple(a % len(shape) for a in axes)
    kept = [a for a in range(len(shape)) if a not in axes]
    size = int(np.prod([shape[a] for a in axes]))
    indices = np.arange(int(np.prod(shape))).reshape(shape)
    return indices.transpose(*kept, *sorted(axes)).reshape(-1, size)


def pools_of_groups(shape, num_groups, channel_axis, axes):
    """As `pools_over`, for groups of neighbouring channels pooled together with `axes`."""
    rank = len(shape)
    channel = channel_axis % rank
    pooled = sorted({a % rank for a in axes} - {channel})
    kept = [a for a in range(rank) if a != channel and a not in pooled]
    indices = np.moveaxis(np.arange(int(np.prod(shape))).reshape(shape), channel, -1)
    per_group = [
        pools_over_trailing(part, [a - (a > channel) for a in kept])
        for part in np.split(indices, num_groups, axis=-1)
    ]
    return np.concatenate(per_group)


def pools_over_trailing(indices, kept):
    """Pools of all axes of `indices` but `kept`."""
    rest = [a for a in range(indices.ndim) if a not in kept]
    size = int(np.prod([indices.shape[a] for a in rest]))
    return indices.transpose(*kept, *rest).reshape(-1, size)


def standardized(v, epsilon):
    """(v - mean) / sqrt(var + epsilon), var = mean |v - mean|^2 (biased), over the last axis.

    Ioffe & Szegedy 2015, algorithm 1; Ba et al. 2016, equation 3; Wu & He 2018, equations 1 and 2;
    Ulyanov et al. 2016, equation 3: they differ in the pools alone.
    """
    centered = centered_at_mean(v)
    return centered / np.sqrt((np.abs(centered) ** 2).mean(-1, keepdims=True) + epsilon)


def centered_at_mean(v):
    """v - mean. Twice, for the mean of large values is itself rounded."""
    centered = v - v.mean(-1, keepdims=True)
    return centered - centered.mean(-1, keepdims=True)


def over_rms(v, epsilon):
    """v / sqrt(mean |v|^2 + epsilon), over the last axis (Zhang & Sennrich 2019, equation 4)."""
    return v / np.sqrt((np.abs(v) ** 2).mean(-1, keepdims=True) + epsilon)


def standardized_vjp(v, g, epsilon):
    """(g - mean(g) - v_hat mean(g v_hat)) / sqrt(var + epsilon)."""
    hat = standardized(v, epsilon)
    sigma = np.sqrt((np.abs(centered_at_mean(v)) ** 2).mean(-1, keepdims=True) + epsilon)
    projected = g - g.mean(-1, keepdims=True) - hat * (g * hat).mean(-1, keepdims=True)
    return projected / sigma


def over_rms_vjp(v, g, epsilon):
    """(g - v_hat mean(g v_hat)) / sqrt(mean(v^2) + epsilon)."""
    hat = over_rms(v, epsilon)
    rms = np.sqrt((v**2).mean(-1, keepdims=True) + epsilon)
    return (g - hat * (g * hat).mean(-1, keepdims=True)) / rms


def wide(x):
    """`x` in float64 or complex128, or wider if it is."""
    x = np.asarray(x)
    kind = np.complex128 if np.iscomplexobj(x) else np.float64
    # ml_dtypes' types do not promote with NumPy's.
    return x if x.dtype in (np.longdouble, np.clongdouble) else x.astype(kind)


def apply_over_pools(formula, pools, mask, *arrays):
    """Applies `formula` to the elements of each pool that `mask` keeps; the others are 0."""
    arrays = [wide(a) for a in arrays]
    flat = [a.reshape(-1) for a in arrays]
    out = np.zeros_like(flat[0])
    if mask is None:
        out[pools] = formula(*(a[pools] for a in flat))
    else:
        kept = np.broadcast_to(mask, arrays[0].shape).reshape(-1)
        for pool in pools:
            packed = pool[kept[pool]]
            if packed.size:
                out[packed] = formula(*(a[packed] for a in flat))
    return out.reshape(arrays[0].shape)


def expand(parameter, shape, feature_axes):
    """gamma or beta at the rank of an input of `shape`; of that rank already, it stays."""
    parameter = wide(parameter)
    if parameter.ndim == len(shape):
        return parameter
    axes = [a % len(shape) for a in feature_axes]
    return parameter.reshape([shape[a] if a in axes else 1 for a in range(len(shape))])


def affine(y, gamma, beta, mask, feature_axes, gamma_offset=0.0):
    """y (gamma + gamma_offset) + beta, 0 where `mask` leaves out."""
    if gamma is not None:
        y = y * (expand(gamma, y.shape, feature_axes) + gamma_offset)
    elif gamma_offset:
        y = y * gamma_offset
    if beta is not None:
        y = y + expand(beta, y.shape, feature_axes)
    return y if mask is None else np.where(mask, y, 0)


def normalize(
    x, gamma=None, beta=None, mask=None, *, formula, pools, feature_axes, epsilon, gamma_offset=0.0
):
    """The whole forward pass."""
    hat = apply_over_pools(lambda v: formula(v, epsilon), pools, mask, x)
    return affine(hat, gamma, beta, mask, feature_axes, gamma_offset)


def normalize_vjp(
    x,
    gamma,
    beta,
    mask,
    dy,
    *,
    formula,
    vjp,
    pools,
    feature_axes,
    epsilon,
    gamma_offset=0.0,
):
    """Gradients (dx, dgamma, dbeta) of sum(dy * normalize(...)), each None where its input is."""
    dy = wide(dy) if mask is None else np.where(mask, wide(dy), 0)
    hat = apply_over_pools(lambda v: formula(v, epsilon), pools, mask, x)
    scale = 1.0
    if gamma is not None:
        scale = expand(gamma, hat.shape, feature_axes) + gamma_offset
    elif gamma_offset:
        scale = gamma_offset
    dx = apply_over_pools(lambda v, g: vjp(v, g, epsilon), pools, mask, x, dy * scale)
    dgamma = None if gamma is None else reduce_to(dy * hat, gamma, feature_axes)
    dbeta = None if beta is None else reduce_to(dy, beta, feature_axes)
    return dx, dgamma, dbeta


def reduce_to(full, parameter, feature_axes):
    """Sums `full` over the axes that a parameter was broadcast along."""
    shape = np.shape(parameter)
    if len(shape) == full.ndim:
        axes = tuple(a for a in range(full.ndim) if shape[a] == 1)
        return full.sum(axes, keepdims=True)
    axes = [a % full.ndim for a in feature_axes]
    return full.sum(tuple(a for a in range(full.ndim) if a not in axes))


def running_average(start, batches, axes, momentum, unbiased, epsilon=None):
    """Running (mean, var) after each of `batches`: Ioffe & Szegedy 2015, algorithm 2."""
    mean, var = map(wide, start)
    for batch in batches:
        batch = wide(batch)
        size = np.prod([batch.shape[a] for a in axes])
        correction = size / (size - 1) if unbiased else 1.0
        mean = momentum * mean + (1 - momentum) * batch.mean(axes)
        var = momentum * var + (1 - momentum) * batch.var(axes) * correction
        yield mean, var
