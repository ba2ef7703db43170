"""How operations carry labels on: of which example each element of their result depends."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.tools.mixing import indices
from jaxnorm.tools.mixing.labels import Joined, Labels, everything, join_all

ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp clz complex conj convert_element_type copy cos cosh device_put digamma div eq eq_to
    erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow
    is_finite le le_to lgamma log log1p log2 logistic lt lt_to max min mul mulhi name ne neg
    nextafter not one_minus_square optimization_barrier or pcast polygamma population_count pow
    pvary random_gamma_grad real reduce_precision regularized_incomplete_beta rem reshard round
    rsqrt select_n sharding_constraint shift_left shift_right_arithmetic shift_right_logical
    sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta""".split()
)
REDUCTIONS = frozenset(
    """reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin
    reduce""".split()
)
CUMULATIVE = frozenset("cumsum cumprod cummax cummin cumlogsumexp".split())
LINALG = frozenset(
    """cholesky triangular_solve lu eigh eig qr svd geqrf householder_product schur
    tridiagonal_solve hessenberg""".split()
)


def carry_on(eqn: Any, labels: list[Labels], known: list[Any]) -> list[Joined]:
    """Returns the labels of what an operation makes.

    Args:
      eqn: the operation.
      labels: of its inputs; some are not 0.
      known: the values of its inputs, None where they are not known; masked where they are in part.
    """
    name = eqn.primitive.name
    shapes = [tuple(var.aval.shape) for var in eqn.outvars]
    rule = _RULES.get(name)
    if rule is not None:
        return rule(eqn.params, labels, known, shapes)
    if name in ELEMENTWISE:
        return _elementwise(eqn.params, labels, known, shapes)
    if name in REDUCTIONS:
        axes = eqn.params["axes"] if "axes" in eqn.params else eqn.params["dimensions"]
        return [join_all(labels, axes) for _ in shapes]
    if name in CUMULATIVE:
        return _cumulative(eqn.params, labels, known, shapes)
    if name in LINALG:
        return _linalg(eqn.params, labels, known, shapes)
    if name.startswith("reduce_window"):
        return _windows(eqn.params, labels, known, shapes)
    if name.startswith("scatter"):
        return indices.scatter(eqn, labels, known, shapes)
    return everything(labels, shapes)


def _elementwise(params, labels, known, shapes) -> list[Joined]:
    if len(shapes) > 1:  # an optimization barrier
        return [Joined.of(label) for label in labels]
    result = Joined.of(np.zeros(shapes[0], np.int32))
    for label in labels:
        result |= Joined.of(np.broadcast_to(label, shapes[0]))
    return [result]


def _bitcast(params, labels, known, shapes) -> list[Joined]:
    (label,), (shape,) = labels, shapes
    joined = Joined.of(label)
    if label.ndim > len(shape):  # of several narrow elements
        return [joined.over(-1)]
    if label.ndim < len(shape):
        return [joined.map(lambda v: np.broadcast_to(v[..., None], shape))]
    return [joined]


def _select(params, labels, known, shapes) -> list[Joined]:
    which = known[0]
    if which is None or np.ma.is_masked(which):
        return _elementwise(params, labels, known, shapes)
    cases = [np.broadcast_to(label, shapes[0]) for label in labels[1:]]
    return [Joined.of(np.choose(np.broadcast_to(which, shapes[0]).astype(int), cases))]


def _moved(function: Any) -> Any:
    def rule(params, labels, known, shapes):
        return [Joined.of(labels[0]).map(lambda v: function(v, params, shapes[0]))]

    return rule


def _broadcast_in_dim(value, params, shape):
    sizes = [1] * len(shape)
    for size, axis in zip(value.shape, params["broadcast_dimensions"], strict=True):
        sizes[axis] = size
    return np.broadcast_to(value.reshape(sizes), shape)


def _transposed(value, params):
    order = params["dimensions"]
    return value if order is None else np.transpose(value, order)


def _slice(value, params, shape):
    strides = params["strides"] or [1] * value.ndim
    ends = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return value[tuple(slice(*each) for each in ends)]


def _concatenate(params, labels, known, shapes) -> list[Joined]:
    return [Joined.of(np.concatenate(labels, params["dimension"]))]


def _split(params, labels, known, shapes) -> list[Joined]:
    cuts = np.cumsum(params["sizes"])[:-1]
    return [Joined.of(part) for part in np.split(labels[0], cuts, params["axis"])]


def _stack(params, labels, known, shapes) -> list[Joined]:
    return [Joined.of(np.stack(labels, params["axis"]))]


def _unstack(params, labels, known, shapes) -> list[Joined]:
    axis = params["axis"]
    return [Joined.of(np.take(labels[0], i, axis)) for i in range(labels[0].shape[axis])]


def _pad(params, labels, known, shapes) -> list[Joined]:
    padded = jax.lax.pad(jnp.asarray(labels[0]), jnp.int32(0), params["padding_config"])
    filled = jax.lax.pad(jnp.zeros_like(labels[0]), jnp.int32(1), params["padding_config"])
    return [Joined.of(np.where(np.asarray(filled) > 0, labels[1], np.asarray(padded)))]


def _cumulative(params, labels, known, shapes) -> list[Joined]:
    axis = params["axis"]

    def accumulate(value, function):
        value = np.flip(value, axis) if params["reverse"] else value
        value = function.accumulate(value, axis)
        return np.flip(value, axis) if params["reverse"] else value

    one = Joined.of(labels[0])
    return [Joined(accumulate(one.low, np.minimum), accumulate(one.high, np.maximum))]


def _sort(params, labels, known, shapes) -> list[Joined]:
    axis = params["dimension"]
    joined = join_all(labels, axis).map(lambda v: np.expand_dims(v, axis))
    return [joined.map(lambda v: np.broadcast_to(v, shapes[0]))] * len(shapes)


def _top_k(params, labels, known, shapes) -> list[Joined]:
    joined = Joined.of(labels[0]).over(params.get("axis", -1), keep=True)
    return [joined.map(lambda v: np.broadcast_to(v, shapes[0]))] * len(shapes)


def _dot_general(params, labels, known, shapes) -> list[Joined]:
    contracted, batched = params["dimension_numbers"]
    ranks = [label.ndim for label in labels]
    free = [
        [a for a in range(rank) if a not in (*contracted[side], *batched[side])]
        for side, rank in enumerate(ranks)
    ]
    count = len(batched[0])

    def placed(side: int) -> Joined:
        joined = Joined.of(labels[side]).over(contracted[side], keep=True)
        order = (*batched[side], *free[side], *contracted[side])
        kept = count + len(free[side])

        def place(value):
            value = np.transpose(value, order)
            value = value.reshape(value.shape[:kept])
            others = (1,) * len(free[1 - side])
            own = value.shape[count:]
            sizes = (*own, *others) if side == 0 else (*others, *own)
            return np.broadcast_to(value.reshape((*value.shape[:count], *sizes)), shapes[0])

        return joined.map(place)

    return [placed(0) | placed(1)]


def _conv(params, labels, known, shapes) -> list[Joined]:
    if params["batch_group_count"] > 1:
        return everything(labels, shapes)
    lhs, rhs, out = params["dimension_numbers"]
    groups, shape = params["feature_group_count"], shapes[0]
    channels = shape[out[1]]
    images = Joined.of(labels[0]).over(lhs[2:], keep=True)
    kernel = Joined.of(labels[1]).over(rhs[1:], keep=True)

    def image(value):
        value = np.transpose(value, lhs)
        return value.reshape(value.shape[0], groups, -1)

    def place(value):
        value = value.reshape((*value.shape, *(1,) * (len(shape) - 2)))
        return np.broadcast_to(np.transpose(value, np.argsort(out)), shape)

    by_group = images.map(image).over(2)
    by_channel = by_group.map(lambda v: np.repeat(v, channels // groups, 1))
    return [by_channel.map(place) | kernel.map(lambda v: place(v.reshape(1, channels)))]


def _windows(params, labels, known, shapes) -> list[Joined]:
    if "window_dimensions" not in params:
        return everything(labels, shapes)
    axes = tuple(a for a, size in enumerate(params["window_dimensions"]) if size > 1)
    strides = params.get("window_strides") or (1,) * len(axes)
    axes = tuple({*axes, *(a for a, stride in enumerate(strides) if stride > 1)})
    joined = Joined.of(labels[0]).over(axes, keep=True)
    padded = labels[0].shape != shapes[0] and any(
        labels[0].shape[a] != shapes[0][a] for a in range(labels[0].ndim) if a not in axes
    )
    if padded:
        return everything(labels, shapes)
    return [joined.map(lambda v: np.broadcast_to(v, shapes[0]))]


def _fft(params, labels, known, shapes) -> list[Joined]:
    axes = tuple(range(-len(params["fft_lengths"]), 0))
    joined = Joined.of(labels[0]).over(axes, keep=True)
    return [joined.map(lambda v: np.broadcast_to(v, shapes[0]))]


def _pivots(params, labels, known, shapes) -> list[Joined]:
    joined = Joined.of(labels[0]).over(-1, keep=True)
    return [joined.map(lambda v: np.broadcast_to(v, shapes[0]))]


def _linalg(params, labels, known, shapes) -> list[Joined]:
    joined = join_all(labels, (-2, -1))
    count = joined.low.ndim

    def place(value, shape):
        return np.broadcast_to(value.reshape((*value.shape, *(1,) * (len(shape) - count))), shape)

    return [joined.map(lambda v, s=shape: place(v, s)) for shape in shapes]


_RULES = {
    "select_n": _select,
    "bitcast_convert_type": _bitcast,
    "reshape": _moved(lambda v, params, shape: _transposed(v, params).reshape(shape)),
    "squeeze": _moved(lambda v, params, shape: v.reshape(shape)),
    "expand_dims": _moved(lambda v, params, shape: v.reshape(shape)),
    "transpose": _moved(lambda v, params, shape: np.transpose(v, params["permutation"])),
    "rev": _moved(lambda v, params, shape: np.flip(v, params["dimensions"])),
    "broadcast_in_dim": _moved(_broadcast_in_dim),
    "slice": _moved(_slice),
    "concatenate": _concatenate,
    "split": _split,
    "stack": _stack,
    "unstack": _unstack,
    "tile": _moved(lambda v, params, shape: np.tile(v, params["reps"])),
    "pad": _pad,
    "sort": _sort,
    "top_k": _top_k,
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    "fft": _fft,
    "dynamic_slice": indices.dynamic_slice,
    "dynamic_update_slice": indices.dynamic_update_slice,
    "gather": indices.gather,
    "lu_pivots_to_permutation": _pivots,
}
