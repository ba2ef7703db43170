"""What layers that reparametrize weights decide: which parameters, and what is computed of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import Axes, DTypeLike
from jaxnorm._core.flags import check_flag
from jaxnorm._core.pool import compute_dtype
from jaxnorm._layers.call import Context
from jaxnorm._layers.layer import Initializer, Layer
from jaxnorm._layers.options import options
from jaxnorm.functional.moments import moments
from jaxnorm.functional.weight import spectral_norm, weight_length, weight_norm
from jaxnorm.functional.weight_standardization import (
    scaled_weight_standardize,
    weight_standardize,
)

Path = tuple[str, ...]
Weights = dict[str, jax.Array]  # what is kept for one weight, by name, as in own_names
Select = Sequence[str] | Callable[[str, jax.Array], bool]


def own_name(path: Path, name: str) -> str:
    """Returns the name of a variable for the weight at `path`, such as kernel_g."""
    return "_".join((*path, name))


@options
class WeightWrapper(Layer):
    """Base of the wrappers that call a layer with some of its parameters replaced.

    The layer keeps its parameters unchanged: what it is called with is computed from them in each
    call.
    """

    own_names: ClassVar[tuple[str, ...]] = ()

    layer: Any = dataclasses.field(kw_only=False)
    """the layer that is wrapped."""
    select: Select = ("kernel", "embedding")
    """which of its parameters are replaced: patterns that the end of their path must match, as in
    `pathlib.PurePath.match` ("kernel", "dense/kernel", "query/*"), or a function of the path, such
    as "dense/kernel", and the parameter."""
    feature_axes: Axes = -1
    """the axes of the output units in the parameters; the others are reduced over."""

    def _weight(self, value: jax.Array, params: Weights) -> jax.Array:
        """Returns the weights to use for the parameter `value`, as in evaluation."""
        raise NotImplementedError

    def _unit_axes(self, value: jax.Array) -> tuple[int, ...]:
        """Returns the axes of output units in `value`, ascending."""
        return _axes.other_axes(self._input_axes(value), value.ndim)

    def _input_axes(self, value: jax.Array) -> tuple[int, ...]:
        """Returns the axes of `value` that are not of output units."""
        features = _axes.canonical_axes(self.feature_axes, value.shape, "feature_axes")
        return _axes.other_axes(features, value.ndim)

    def _choose(self, found: Mapping[Path, jax.Array], label: str) -> list[Path]:
        """Returns the paths of the parameters to replace, of those `found`."""
        chosen = [path for path, value in found.items() if self._selects(path, value)]
        if not chosen:
            raise ValueError(
                f"{label} found no parameter to normalize with select={self.select!r}: its layer "
                f"{type(self.layer).__name__} has {sorted(map('/'.join, found))}."
            )
        for path in chosen:
            value = found[path]
            if value.ndim == 0 or not self._input_axes(value):
                raise ValueError(
                    f"{label} cannot normalize the parameter {'/'.join(path)} of shape "
                    f"{value.shape}: feature_axes={self.feature_axes!r} leaves no axis to reduce "
                    "over. Leave it out with select, or choose other feature_axes."
                )
        return chosen

    def _selects(self, path: Path, value: jax.Array) -> bool:
        name = "/".join(path)
        if callable(self.select):
            return bool(self.select(name, value))
        patterns = (self.select,) if isinstance(self.select, str) else self.select
        return any(PurePosixPath(name).match(pattern) for pattern in patterns)


@options
class WeightNorm(WeightWrapper):
    """Calls a layer with weights g * v / |v|, v being its own parameters.

    The norms g are parameters of the wrapper, one per output unit, named after what they belong
    to (`kernel_g`). They start at |v|: at initialization the layer computes what it computes
    unwrapped.

    Reference: Salimans & Kingma 2016, Weight Normalization, arXiv:1602.07868.
    """

    own_names: ClassVar[tuple[str, ...]] = ("g",)

    epsilon: float = 1e-12
    """added to the sum of squares."""

    def _weight(self, value: jax.Array, params: Weights) -> jax.Array:
        return weight_norm(value, params["g"], axis=self._input_axes(value), epsilon=self.epsilon)

    def _init_g(self, value: jax.Array, factor: jax.Array | None) -> jax.Array:
        """Returns the g that a parameter starts with: its length, times `factor`."""
        g = weight_length(value, self._input_axes(value), self.epsilon)
        return g if factor is None else g * factor

    def _check_output(self, found: Mapping[Path, jax.Array], shape: Sequence[int]) -> Path:
        """Returns the one path of the parameters chosen, whose units must be those of an output."""
        units = [tuple(v.shape[a] for a in self._unit_axes(v)) for v in found.values()]
        if len(units) != 1 or units[0] != shape[-1:] or any(len(path) != 1 for path in found):
            raise ValueError(
                "data_dependent_init needs a layer with one selected parameter of its own, whose "
                f"output units are the last axis of the output; {type(self.layer).__name__} has "
                f"{sorted(map('/'.join, found))} and an output of shape {shape}. Wrap each layer "
                "on its own."
            )
        (path,) = found
        return path

    @staticmethod
    def _standardize_output(
        y: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the factor of g, and the bias, that standardize the output `y` of the layer."""
        mean, var, _ = moments(y[None], range(y.ndim))
        # A constant output, as of a single example, says nothing about the scale.
        varies = var > 0
        factor = jnp.where(varies, jax.lax.rsqrt(jnp.where(varies, var, 1)), 1)
        if bias is None:
            return factor, None
        new = jnp.where(varies, (bias.astype(factor.dtype) - mean) * factor, bias)
        return factor, new.astype(bias.dtype)


@options
class SpectralNorm(WeightWrapper):
    """Calls a layer with its weights divided by their largest singular value.

    Reference: Miyato, Kataoka, Koyama & Yoshida 2018, Spectral Normalization for Generative
    Adversarial Networks, arXiv:1802.05957.
    """

    own_names: ClassVar[tuple[str, ...]] = ("u", "sigma")

    feature_axes: Axes = -1
    """the axes of the output units in the parameters: the columns of the matrix. All others are its
    rows."""
    update_stats: bool | None = None
    """training or evaluation; here or in the call, which wins."""
    n_steps: int = 1
    """steps of power iteration in each call in training."""
    warmup_steps: int = 200
    """steps at initialization. 15 leave errors of 2 to 4 %, 200 less than 0.3 %."""
    epsilon: float = 1e-12
    """vectors and singular values that are not longer are taken as 0."""

    def _decide(self, update: bool | None, context: Context, training: bool | None = None) -> bool:
        """Returns whether u and sigma are replaced, as the call says, or else the options.

        If neither does, the mode of the model decides, where it has one.
        """
        update = self.update_stats if update is None else update
        update = training if update is None else update
        if update is None:
            raise ValueError(
                "SpectralNorm needs update_stats: True in training, False in evaluation; set it "
                "as a field or pass it in the call."
            )
        update = check_flag(update, "update_stats")
        if context.initializing:
            return False
        if update and not context.mutable:
            raise ValueError(
                f"{context.label} updates u and sigma in training, but the collection batch_stats "
                'is not mutable: call apply(..., mutable=["batch_stats"]) and keep the updates it '
                "returns, or pass update_stats=False to evaluate."
            )
        return update

    def _weight(self, value: jax.Array, params: Weights) -> jax.Array:
        return self._divide(value, params["u"], 0)[0]

    def _step(
        self, value: jax.Array, params: Weights, update: bool
    ) -> tuple[jax.Array, Weights | None]:
        """Returns the weights for the parameter `value`; and the new u and sigma, if they moved."""
        if not update:
            return self._weight(value, params), None
        weight, u, sigma = self._divide(value, params["u"], self.n_steps)
        new = {"u": u, "sigma": jax.lax.stop_gradient(sigma)}
        return weight, {name: value.astype(params[name].dtype) for name, value in new.items()}

    def _init_u(self, value: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the u that a parameter starts with, iterated from a random one."""
        features = _axes.canonical_axes(self.feature_axes, value.shape, "feature_axes")
        shape = tuple(value.shape[a] for a in features)
        u = jax.random.normal(key, shape, compute_dtype(value.dtype))
        return self._divide(value, u, self.warmup_steps)[1]

    def _init_sigma(self, value: jax.Array, u: jax.Array) -> jax.Array:
        """Returns the singular value that belongs to `u`."""
        return self._divide(value, u, 0)[2]

    def _divide(self, value, u, n_steps):
        features = self.feature_axes
        return spectral_norm(value, u, n_steps=n_steps, feature_axes=features, epsilon=self.epsilon)


@options
class WeightStandardization(WeightWrapper):
    """Calls a layer with weights of mean 0 and variance 1, or length 1.

    With `scaled` their length is 1 instead, which preserves the variance of the input; see
    `scaled_weight_standardize`.

    References: Qiao, Wang, Liu, Shen & Yuille 2019, arXiv:1903.10520; scaled: Brock, De & Smith
    2021, arXiv:2101.08692.
    """

    own_names: ClassVar[tuple[str, ...]] = ("gain",)

    scaled: bool = False
    """whether to give weights of length 1 rather than of variance 1."""
    use_gain: bool = False
    """whether to multiply by a parameter, one per output unit (`kernel_gain`)."""
    gain_init: Initializer = jax.nn.initializers.ones
    """initializer of the gain."""
    param_dtype: DTypeLike = jnp.float32
    """dtype of the gain."""
    epsilon: float | None = None
    """added to the variance, or with `scaled` to the sum of squares. Default: 1e-5, with `scaled`
    1e-6."""

    def _weight(self, value: jax.Array, params: Weights) -> jax.Array:
        options: dict[str, Any] = {} if self.epsilon is None else {"epsilon": self.epsilon}
        function = scaled_weight_standardize if self.scaled else weight_standardize
        return function(value, params.get("gain"), axis=self._input_axes(value), **options)
