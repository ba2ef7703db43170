"""A technique whose form the contract's registry does not fit, and its formula in float64."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from tests.support.programs import QUICKLY

NOT_CENTERED = (0.0,)
CENTERED = (0.0, 1e4, -1e6)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Technique:
    """A function of arrays, and the same in float64 NumPy.

    Attributes:
      name: shown in test ids.
      public: the name in `jaxnorm` of the function behind `function`.
      function: (x, *parameters, mask=None) -> result.
      reference: the same of float64 arrays, written from the paper.
      shape: of x.
      parameters: the shapes of the other arrays, by the name that each is drawn by: "gamma" is
        near 1, any other a normal number.
      means: of x, at which the result is exact.
      masked: whether it takes a mask; masks have the axes `mask_axes` of x.
      mask_axes: the axes that a mask can vary along; default: all.
      finite_at: constants of x at which derivatives are finite.
      has_dtype: whether it takes `dtype`.
    """

    name: str
    public: str
    function: Callable
    reference: Callable
    shape: tuple[int, ...]
    parameters: Sequence[tuple[str, tuple[int, ...]]] = ()
    means: tuple[float, ...] = NOT_CENTERED
    masked: bool = True
    mask_axes: tuple[int, ...] | None = None
    finite_at: tuple[float, ...] = (0.0, 1.0)
    has_dtype: bool = True

    def draw(self, rng, dtype=np.float32):
        """x and the parameters, and a mask or None, that keeps most of each pool."""
        arrays = [rng.normal(0.5, 2, self.shape)]
        arrays += [
            rng.normal(1 if name == "gamma" else 0, 0.3 if name == "gamma" else 1, shape)
            for name, shape in self.parameters
        ]
        mask = None
        if self.masked:
            axes = range(len(self.shape)) if self.mask_axes is None else self.mask_axes
            sizes = tuple(s if a in axes else 1 for a, s in enumerate(self.shape))
            mask = rng.random(sizes) < 0.8
        return [np.asarray(a, dtype) for a in arrays], mask

    def expected(self, arrays, mask=None):
        """The result in float64; masked slots give 0."""
        wide = [np.asarray(a, np.float64) for a in arrays]
        if mask is None:
            return self.reference(*wide)
        full = np.broadcast_to(mask, self.shape)
        return np.where(full, self.reference(*wide, mask=full), 0)

    def slope(self, arrays, steps, dy, mask=None, size=1e-6):
        """The derivative of sum(dy * result) along `steps`, by central differences in float64."""
        dy = np.asarray(dy, np.float64)
        ends = [
            [
                np.asarray(a, np.float64) + s * np.asarray(d, np.float64)
                for a, d in zip(arrays, steps, strict=True)
            ]
            for s in (size, -size)
        ]
        high, low = (float((dy * self.expected(end, mask)).sum()) for end in ends)
        return (high - low) / (2 * size)


def with_gradients(technique, mask=None):
    """(arrays, dy) -> result and gradients, to be compiled."""
    f = functools.partial(technique.function, **({} if mask is None else {"mask": mask}))

    def run(arrays, dy):
        y, transpose = jax.vjp(f, *arrays)
        return y, transpose(dy)

    return run


def with_derivatives(technique, mask=None):
    """(arrays, dy, steps) -> result, gradients and tangent, to be compiled."""
    f = functools.partial(technique.function, **({} if mask is None else {"mask": mask}))

    def run(arrays, dy, steps):
        tangent = jax.jvp(f, tuple(arrays), tuple(steps))[1]
        return *with_gradients(technique, mask)(arrays, dy), tangent

    return run


@functools.cache  # each test runs the same programs, which take long to compile
def derivatives(technique):
    """A program of result, gradients and tangent, given arrays, dy and steps.

    Where the result is exact whatever the mean. Elsewhere a program that takes less to compile and
    has no tangent, which `mapped` has for all.
    """
    if len(technique.means) > 1:
        return jax.jit(with_derivatives(technique))
    gradients = with_gradients(technique)
    return jax.jit(lambda arrays, dy, _: gradients(arrays, dy), compiler_options=QUICKLY)


@functools.cache
def mapped(technique):
    """That with a mask, over the last axis of all but this: (mask, arrays, dy, steps)."""

    def run(mask, *given):
        return jax.vmap(with_derivatives(technique, mask), in_axes=-1, out_axes=-1)(*given)

    return jax.jit(run, compiler_options=QUICKLY)


def one_of_three(technique, mask, *given):
    """A result of `mapped` of three equal ones."""
    found = mapped(technique)(mask, *jax.tree.map(lambda v: np.stack([v] * 3, -1), given))
    return jax.tree.map(lambda v: np.asarray(v)[..., 1], found)


def mean_of(v, axes, mask=None):
    """The mean over `axes` of what `mask` keeps, 0 where that is nothing."""
    kept = np.ones(v.shape) if mask is None else np.asarray(mask, float)
    count = np.maximum(kept.sum(axes, keepdims=True), 1)
    return (np.where(kept > 0, v, 0)).sum(axes, keepdims=True) / count


def var_of(v, axes, mask=None):
    """The biased variance over `axes` of what `mask` keeps."""
    return mean_of((v - mean_of(v, axes, mask)) ** 2, axes, mask)
