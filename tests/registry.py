"""Every public normalization, once. `tests/test_contract_*.py` runs the whole contract over it.

A technique joins by one entry in `NORMS`. A point of the contract that cannot apply to it stands
in `exempt` with the reason. A further size that takes another path of the core is one more key of
`PATHS` and one more shape per entry.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from tests import reference

POINTS = {
    "exact": "float32 results within 4e-6 of float64, whatever the mean",
    "constant": "a constant input gives exactly beta",
    "dtypes": "half and double precision, dtype of the result",
    "complex": "complex input",
    "masks": "masked equals packed; NaN under the mask reaches nothing",
    "memory": "what is kept for the backward pass is the input and per-group statistics",
    "transforms": "jit, vmap, jvp, remat, scan, export, second order",
    "shards": "shard_map and sharded jit, no collective where none is needed",
    "explicit": "explicit mesh axes, every axis sharded in turn",
    "gradients": "equal to the closed form in float64",
    "zero_variance": "finite gradients at zero variance and at zero input",
    "shift": "sum(dx) = 0 over each pool",
    "scale": "sum(dx * x_hat) = 0 over each pool",
    "errors": "input, mask, gamma, beta and epsilon that do not fit",
}

# The shapes of an entry. "plain" is used throughout; values, gradients, masks and memory are also
# tested at the others.
PATHS = ("plain", "large")

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
      shapes: a shape for each of `PATHS`, and for "five" and "many": pools of 5 and of 100,000.
        "plain" has sizes divisible by 8 on two axes or more, "large" has 1 to 8 MB in float32.
      takes: the arguments that the function has.
      batch_axis: the axis of the examples, if there are any.
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
            "pools": self.pools(np.shape(x)),
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
        x = rng.normal(0.5, 2, shape)
        if np.issubdtype(np.dtype(dtype), np.complexfloating):
            x = x + 1j * rng.normal(size=shape)
        cast = functools.partial(jnp.asarray, dtype=dtype)
        gamma, beta = (None if p is None else jnp.asarray(p, jnp.float32) for p in (gamma, beta))
        return cast(x), gamma, beta, (jnp.asarray(mask) if mask is not None else None)

    def free_axes(self, shape):
        """The axes along which nothing is pooled."""
        places = np.array(np.unravel_index(self.pools(shape), shape))
        fixed = (places == places[:, :, :1]).all((1, 2))
        return [a for a in range(len(shape)) if fixed[a] and shape[a] > 1]


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


GIVEN = jaxnorm.Moments(np.float32(3.0), np.float32(4.0), np.float32(1.0))


def standardize_given(x, **given):
    scalar = (1,) * x.ndim
    moments = jaxnorm.Moments(*(np.full(scalar, m) for m in GIVEN))
    return jaxnorm.standardize(x, moments, axis=0, feature_axes=-1, **given)


NOT_CENTERED = "it does not subtract the mean"
GIVEN_MOMENTS = "its moments are arguments, which the input does not change"

FEW_GROUPS = (
    "JAX cannot split an explicitly sharded axis into fewer groups than devices; more groups have "
    "a test of their own in test_sharding.py"
)
NO_PADDING = "it normalizes weights, of which none is padding"


def weights(function, **options):
    """A function of weights, its gain given as gamma."""

    def call(x, gamma=None, *, epsilon):
        return function(x, gamma, epsilon=epsilon, **options)

    return call


def over_length(v, epsilon):
    """v / sqrt(sum |v|^2 + epsilon) (Salimans & Kingma 2016, equation 2 with g = 1)."""
    return v / np.sqrt((np.abs(v) ** 2).sum(-1, keepdims=True) + epsilon)


def over_length_vjp(v, g, epsilon):
    """(g - v_hat sum(g v_hat)) / sqrt(sum |v|^2 + epsilon) (their equation 4)."""
    hat = over_length(v, epsilon)
    length = np.sqrt((np.abs(v) ** 2).sum(-1, keepdims=True) + epsilon)
    return (g - hat * (g * hat).sum(-1, keepdims=True)) / length


NORMS = [
    Norm(
        name="batch_norm",
        public="batch_norm",
        function=first(jaxnorm.batch_norm, axis=0),
        pools=over(0),
        feature_axes=(-1,),
        shapes={"plain": (8, 16), "five": (5, 3), "many": (100_000, 2), "large": (4096, 256)},
    ),
    Norm(
        name="batch_norm_conv",
        public="batch_norm",
        function=first(jaxnorm.batch_norm, axis=(0, 1, 2)),
        pools=over(0, 1, 2),
        feature_axes=(-1,),
        shapes={
            "plain": (8, 2, 3, 8),
            "five": (5, 1, 1, 3),
            "many": (40, 50, 50, 2),
            "large": (16, 28, 28, 32),
        },
    ),
    Norm(
        name="layer_norm",
        public="layer_norm",
        function=jaxnorm.layer_norm,
        pools=over(-1),
        feature_axes=(-1,),
        shapes={"plain": (8, 16), "five": (3, 5), "many": (2, 100_000), "large": (1024, 768)},
    ),
    Norm(
        name="layer_norm_inner",
        public="layer_norm",
        function=first(jaxnorm.layer_norm, axis=(2, -3), feature_axes=(2, 1)),
        pools=over(1, 2),
        feature_axes=(2, 1),
        shapes={
            "plain": (8, 3, 4, 8),
            "five": (2, 5, 1, 3),
            "many": (2, 400, 250, 2),
            "large": (8, 24, 32, 64),
        },
    ),
    Norm(
        name="rms_norm",
        public="rms_norm",
        function=jaxnorm.rms_norm,
        pools=over(-1),
        feature_axes=(-1,),
        formula=reference.over_rms,
        vjp=reference.over_rms_vjp,
        shapes={"plain": (8, 16), "five": (3, 5), "many": (2, 100_000), "large": (1024, 768)},
        exempt={"shift": NOT_CENTERED, "constant": NOT_CENTERED},
    ),
    Norm(
        name="rms_norm_offset",
        public="rms_norm",
        function=first(jaxnorm.rms_norm, axis=1, gamma_offset=1.0),
        pools=over(1),
        feature_axes=(1,),
        formula=reference.over_rms,
        vjp=reference.over_rms_vjp,
        gamma_offset=1.0,
        shapes={
            "plain": (8, 6, 8),
            "five": (2, 5, 3),
            "many": (1, 100_000, 2),
            "large": (16, 256, 128),
        },
        exempt={"shift": NOT_CENTERED, "constant": NOT_CENTERED},
    ),
    Norm(
        name="group_norm",
        public="group_norm",
        function=first(jaxnorm.group_norm, num_groups=2),
        pools=in_groups(2),
        feature_axes=(-1,),
        shapes={
            "plain": (8, 3, 16),
            "five": (4, 1, 10),
            "many": (1, 10_000, 20),
            "large": (8, 28, 28, 64),
        },
        exempt={"explicit": FEW_GROUPS},
    ),
    Norm(
        name="group_norm_channels_first",
        public="group_norm",
        function=first(jaxnorm.group_norm, num_groups=4, channel_axis=1),
        pools=in_groups(4, 1),
        feature_axes=(1,),
        shapes={
            "plain": (8, 8, 3, 2),
            "five": (2, 4, 5, 1),
            "many": (1, 4, 250, 400),
            "large": (8, 64, 28, 28),
        },
        exempt={"explicit": FEW_GROUPS},
    ),
    Norm(
        name="instance_norm",
        public="instance_norm",
        function=jaxnorm.instance_norm,
        pools=lambda shape: reference.pools_over(shape, range(1, len(shape) - 1)),
        feature_axes=(-1,),
        shapes={
            "plain": (8, 3, 4, 8),
            "five": (2, 5, 1, 3),
            "many": (1, 250, 400, 2),
            "large": (8, 28, 28, 64),
        },
    ),
    Norm(
        name="standardize",
        public="standardize",
        function=standardize_given,
        pools=over(0),
        feature_axes=(-1,),
        formula=lambda v, epsilon: (v - 3.0) / np.sqrt(4.0 + epsilon),
        vjp=lambda v, g, epsilon: g / np.sqrt(4.0 + epsilon),
        shapes={"plain": (8, 16), "five": (5, 3), "many": (100_000, 2), "large": (4096, 256)},
        exempt={"shift": GIVEN_MOMENTS, "scale": GIVEN_MOMENTS, "constant": GIVEN_MOMENTS},
    ),
    Norm(
        name="weight_norm",
        public="weight_norm",
        function=weights(jaxnorm.weight_norm, axis=(-2, 0)),
        pools=over(0, 1),
        feature_axes=(-1,),
        formula=over_length,
        vjp=over_length_vjp,
        takes=frozenset({"gamma", "epsilon"}),
        batch_axis=None,
        shapes={
            "plain": (8, 2, 8),
            "five": (5, 1, 3),
            "many": (50_000, 2, 2),
            "large": (9, 512, 512),
        },
        exempt={"masks": NO_PADDING, "shift": NOT_CENTERED, "constant": NOT_CENTERED},
    ),
    Norm(
        name="weight_standardize",
        public="weight_standardize",
        function=weights(jaxnorm.weight_standardize, axis=(-2, 0)),
        pools=over(0, 1),
        feature_axes=(-1,),
        takes=frozenset({"gamma", "epsilon"}),
        batch_axis=None,
        shapes={
            "plain": (8, 2, 8),
            "five": (5, 1, 3),
            "many": (50_000, 2, 2),
            "large": (9, 512, 512),
        },
        exempt={"masks": NO_PADDING},
    ),
    Norm(
        name="scaled_weight_standardize",
        public="scaled_weight_standardize",
        function=weights(jaxnorm.scaled_weight_standardize, axis=(-2, 0)),
        pools=over(0, 1),
        feature_axes=(-1,),
        formula=lambda v, e: reference.standardized(v, e / v.shape[-1]) / v.shape[-1] ** 0.5,
        vjp=lambda v, g, e: reference.standardized_vjp(v, g, e / v.shape[-1]) / v.shape[-1] ** 0.5,
        takes=frozenset({"gamma", "epsilon"}),
        batch_axis=None,
        shapes={
            "plain": (8, 2, 8),
            "five": (5, 1, 3),
            "many": (50_000, 2, 2),
            "large": (9, 512, 512),
        },
        exempt={"masks": NO_PADDING},
    ),
]

# Public, and no normalizations: what they are instead.
OTHERS = {
    "Moments": "the statistics themselves",
    "moments": "computes statistics",
    "merge_moments": "combines statistics",
    "update_moments": "combines statistics",
}


def norms(point):
    """Parametrizes a test by `norm`, over all that `point` of the contract applies to."""
    chosen = [norm for norm in NORMS if point not in norm.exempt]
    return pytest.mark.parametrize("norm", chosen, ids=[norm.name for norm in chosen])


def paths(point, names=PATHS):
    """Parametrizes a test by `norm` and `shape`, over every path of the core."""
    chosen = [(norm, name) for norm in NORMS if point not in norm.exempt for name in names]
    return pytest.mark.parametrize(
        ("norm", "shape"),
        [(norm, norm.shapes[name]) for norm, name in chosen],
        ids=[f"{norm.name}-{name}" for norm, name in chosen],
    )
