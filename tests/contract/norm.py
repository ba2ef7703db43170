"""A normalization as the contract sees it: how to call it, what it must equal, at which shapes."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np

from tests.support import reference

POINTS = {
    "exact": "float32 results within 4e-6 of float64, whatever the mean",
    "constant": "a constant input gives exactly beta",
    "dtypes": "half and double precision, dtype of the result",
    "complex": "complex input",
    "masks": "masked equals packed; NaN under the mask reaches nothing",
    "memory": "what is kept for the backward pass is the input and per-group statistics",
    "transforms": "jit, vmap, jvp, remat, scan, export",
    "second_order": "derivatives of derivatives, in both modes",
    "shards": "shard_map and sharded jit, no collective where none is needed",
    "explicit": "explicit mesh axes, every axis sharded in turn",
    "gradients": "equal to the closed form in float64",
    "zero_variance": "finite gradients at zero variance and at zero input",
    "shift": "sum(dx) = 0 over each pool",
    "scale": "sum(dx * x_hat) = 0 over each pool",
    "plain": "inside `plain()` the textbook formula in everyday operations",
    "errors": "arguments that do not fit, with the exact text",
}

# Reasons for exemptions that several entries give.
NOT_CENTERED = "it does not subtract the mean"
STOPPED = "its paper stops gradients, so that derivatives are not those of the function's values"

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Norm:
    """A normalization, how to call it, what it must equal, and at which shapes.

    Attributes:
      name: shown in test ids.
      public: the name in `jaxnorm` of the function behind `function`.
      function: (x, *, gamma, beta, mask, epsilon, dtype) -> result, of which `takes` are given.
      pools: shape -> flat indices (pools, elements) of the elements with common statistics.
      feature_axes: the axes that gamma and beta vary along.
      formula: (values of the pools, epsilon) -> normalized, in `reference`.
      vjp: (values, cotangent, epsilon) -> gradient, in `reference`.
      shapes: a shape for each of `registry.PATHS`; "five" and "many" have pools of 5 and 100,000.
        "plain" has sizes divisible by 8 on two axes or more, "large" has 1 to 8 MB in float32.
      takes: the arguments that the function has.
      batch_axis: the axis of the examples, if there are any.
      batch_size: a symbolic number of examples.
      statistics: shape -> how many numbers, in float32 or wider, describe the pools.
      called: what the function calls its arguments x and gamma, where it has other names.
      exempt: points of the contract that cannot apply, and why.
    """

    name: str
    public: str
    function: Callable
    pools: Callable[[Shape], np.ndarray]
    feature_axes: tuple[int, ...]
    shapes: Mapping[str, Shape]
    formula: Callable = reference.standardized
    vjp: Callable = reference.standardized_vjp
    gamma_offset: float = 0.0
    takes: frozenset[str] = frozenset({"gamma", "beta", "mask", "dtype", "epsilon"})
    batch_axis: int | None = 0
    batch_size: str = "b"
    statistics: Callable[[Shape], int] | None = None
    called: Mapping[str, str] = dataclasses.field(default_factory=dict)
    exempt: Mapping[str, str] = dataclasses.field(default_factory=dict)

    epsilon = 1e-6

    def __call__(self, x, gamma=None, beta=None, mask=None, **options):
        given = {"gamma": gamma, "beta": beta, "mask": mask, "epsilon": self.epsilon} | options
        given = {k: v for k, v in given.items() if v is not None}
        return self.function(x, **given)

    def expected(self, x, gamma=None, beta=None, mask=None, epsilon=None):
        """The result in float64."""
        return reference.normalize(
            x, gamma, beta, mask, formula=self.formula, **self._of(x, epsilon)
        )

    def expected_vjp(self, x, gamma, beta, mask, dy, epsilon=None):
        """dx, dgamma and dbeta in float64."""
        return reference.normalize_vjp(
            x, gamma, beta, mask, dy, formula=self.formula, vjp=self.vjp, **self._of(x, epsilon)
        )

    def _of(self, x, epsilon):
        return {
            "pools": pools_of(self, np.shape(x)),
            "feature_axes": self.feature_axes,
            "epsilon": self.epsilon if epsilon is None else epsilon,
            "gamma_offset": self.gamma_offset,
        }

    def draw(self, rng, shape, dtype=np.float32, mask=None):
        """Random x, gamma, beta and a mask, each None where the function does not take it."""
        features = tuple(shape[a] for a in self.feature_axes)
        gamma = rng.normal(1, 0.3, features) if "gamma" in self.takes else None
        beta = rng.normal(size=features) if "beta" in self.takes else None
        mask = rng.random(shape) < 0.7 if mask and "mask" in self.takes else None
        if mask is not None:
            # Of each pool at least three stay: two alone have gradients of rounding errors only,
            # multiplied by 1 / sqrt(epsilon) if they happen to be close.
            mask.reshape(-1)[rng.permuted(self.pools(shape), axis=1)[:, :3]] = True
        x = rng.normal(0.5, 2, shape)
        if np.issubdtype(np.dtype(dtype), np.complexfloating):
            x = x + 1j * rng.normal(size=shape)
        gamma, beta = (None if p is None else np.float32(p) for p in (gamma, beta))
        # NumPy's, so that what tests do to them beforehand compiles nothing.
        return x.astype(dtype), gamma, beta, mask

    def count_statistics(self, shape):
        """How many numbers describe the pools: by default a mean in two parts, variance, count."""
        return 4 * len(self.pools(shape)) if self.statistics is None else self.statistics(shape)

    def free_axes(self, shape):
        """The axes along which nothing is pooled."""
        places = np.array(np.unravel_index(self.pools(shape), shape))
        fixed = (places == places[:, :, :1]).all((1, 2))
        return [a for a in range(len(shape)) if fixed[a] and shape[a] > 1]


@functools.cache
def pools_of(norm, shape):
    return norm.pools(shape)


def first(function, **options):
    """`function` with options given, its first result alone."""

    def call(x, **given):
        result = function(x, **options, **given)
        return result[0] if isinstance(result, tuple) else result

    return call


def over(*axes):
    return lambda shape: reference.pools_over(shape, axes)


def in_groups(num_groups, channel_axis=-1):
    def pools(shape):
        axes = [a for a in range(1, len(shape)) if a != channel_axis % len(shape)]
        return reference.pools_of_groups(shape, num_groups, channel_axis, axes)

    return pools
