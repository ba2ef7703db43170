"""What layers that reparametrize weights decide: which parameters, and what is computed of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import Axes
from jaxnorm._core.flags import check_flag
from jaxnorm._core.pool import compute_dtype
from jaxnorm._layers.call import Context
from jaxnorm._layers.layer import Layer
from jaxnorm.functional.moments import moments
from jaxnorm.functional.weight import spectral_norm, weight_length, weight_norm
from jaxnorm.functional.weight_standardization import (
    scaled_weight_standardize,
    weight_standardize,
)

Path = tuple[str, ...]
Own = dict[str, jax.Array]  # what a layer keeps for one weight, by name, as in own_names
Select = Sequence[str] | Callable[[str, jax.Array], bool]


def own_name(path: Path, name: str) -> str:
    """Returns the name of a variable for the weight at `path`, such as kernel_g."""
    return "_".join((*path, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightLayer(Layer):
    """What the layers have in common; options as `jaxnorm.linen.WeightNorm` describes them."""

    own_names: ClassVar[tuple[str, ...]] = ()

    select: Select
    feature_axes: Axes

    def weight(self, value: jax.Array, own: Own) -> jax.Array:
        """Returns the weights to use for the parameter `value`, as in evaluation."""
        raise NotImplementedError

    def unit_axes(self, value: jax.Array) -> tuple[int, ...]:
        """Returns the axes of output units in `value`, ascending."""
        return _axes.other_axes(self.input_axes(value), value.ndim)

    def input_axes(self, value: jax.Array) -> tuple[int, ...]:
        """Returns the axes of `value` that are not of output units."""
        features = _axes.canonical_axes(self.feature_axes, value.shape, "feature_axes")
        return _axes.other_axes(features, value.ndim)

    def choose(self, found: Mapping[Path, jax.Array], label: str, layer: str) -> list[Path]:
        """Returns the paths of the parameters to replace, of those `found` in a `layer`."""
        chosen = [path for path, value in found.items() if self._selects(path, value)]
        if not chosen:
            raise ValueError(
                f"{label} found no parameter to normalize with select={self.select!r}: its layer "
                f"{layer} has {sorted(map('/'.join, found))}."
            )
        for path in chosen:
            value = found[path]
            if value.ndim == 0 or not self.input_axes(value):
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightNormLayer(WeightLayer):
    """Weights g * v / |v|."""

    own_names: ClassVar[tuple[str, ...]] = ("g",)

    epsilon: float

    def weight(self, value: jax.Array, own: Own) -> jax.Array:
        return weight_norm(value, own["g"], axis=self.input_axes(value), epsilon=self.epsilon)

    def first_g(self, value: jax.Array, factor: jax.Array | None) -> jax.Array:
        """Returns the g that a parameter starts with: its length, times `factor`."""
        g = weight_length(value, self.input_axes(value), self.epsilon)
        return g if factor is None else g * factor

    def check_output(self, found: Mapping[Path, jax.Array], shape: Sequence[int], layer: str):
        """Returns the one path of the parameters chosen, whose units must be those of the output.

        Args:
          found: the parameters chosen.
          shape: of the output.
          layer: what errors call the layer.
        """
        units = [tuple(v.shape[a] for a in self.unit_axes(v)) for v in found.values()]
        if len(units) != 1 or units[0] != shape[-1:] or any(len(path) != 1 for path in found):
            raise ValueError(
                "data_dependent_init needs a layer with one selected parameter of its own, whose "
                f"output units are the last axis of the output; {layer} has "
                f"{sorted(map('/'.join, found))} and an output of shape {shape}. Wrap each layer "
                "on its own."
            )
        (path,) = found
        return path

    @staticmethod
    def standardize_output(
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectralNormLayer(WeightLayer):
    """Weights divided by their largest singular value."""

    own_names: ClassVar[tuple[str, ...]] = ("u", "sigma")

    update_stats: bool | None
    n_steps: int
    warmup_steps: int
    epsilon: float

    def decide(self, update: bool | None, context: Context, training: bool | None = None) -> bool:
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

    def weight(self, value: jax.Array, own: Own) -> jax.Array:
        return self._divide(value, own["u"], 0)[0]

    def apply(self, value: jax.Array, own: Own, update: bool) -> tuple[jax.Array, Own | None]:
        """Returns the weights for the parameter `value`; and the new u and sigma, if they moved."""
        if not update:
            return self.weight(value, own), None
        weight, u, sigma = self._divide(value, own["u"], self.n_steps)
        new = {"u": u, "sigma": jax.lax.stop_gradient(sigma)}
        return weight, {name: value.astype(own[name].dtype) for name, value in new.items()}

    def first_u(self, value: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the u that a parameter starts with, iterated from a random one."""
        features = _axes.canonical_axes(self.feature_axes, value.shape, "feature_axes")
        shape = tuple(value.shape[a] for a in features)
        u = jax.random.normal(key, shape, compute_dtype(value.dtype))
        return self._divide(value, u, self.warmup_steps)[1]

    def first_sigma(self, value: jax.Array, u: jax.Array) -> jax.Array:
        """Returns the singular value that belongs to `u`."""
        return self._divide(value, u, 0)[2]

    def _divide(self, value, u, n_steps):
        features = self.feature_axes
        return spectral_norm(value, u, n_steps=n_steps, feature_axes=features, epsilon=self.epsilon)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StandardizationLayer(WeightLayer):
    """Weights of mean 0 and variance 1, or length 1."""

    own_names: ClassVar[tuple[str, ...]] = ("gain",)

    scaled: bool
    epsilon: float | None

    def weight(self, value: jax.Array, own: Own) -> jax.Array:
        options: dict[str, Any] = {} if self.epsilon is None else {"epsilon": self.epsilon}
        function = scaled_weight_standardize if self.scaled else weight_standardize
        return function(value, own.get("gain"), axis=self.input_axes(value), **options)
