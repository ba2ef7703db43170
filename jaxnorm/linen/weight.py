"""Weight norm, spectral norm and weight standardization as wrappers of Flax linen layers."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from jaxnorm._layers import weight
from jaxnorm._layers.weight import own_name
from jaxnorm.linen._wrapper import WeightWrapper, box_features, rebox, unbox


class WeightNorm(weight.WeightNorm, WeightWrapper, kw_only=True):
    """Calls a layer with weights g * v / |v|, v being its own parameters; see `weight_norm`.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.ones((1, 3))
      >>> layer = jnn.WeightNorm(nn.Dense(2))
      >>> variables = layer.init(jax.random.key(0), x)
      >>> jax.tree.map(jnp.shape, variables["params"])
      {'kernel_g': (2,), 'layer': {'bias': (2,), 'kernel': (3, 2)}}
      >>> plain = nn.Dense(2).apply({"params": variables["params"]["layer"]}, x)
      >>> bool(jnp.allclose(layer.apply(variables, x), plain))
      True
    """

    data_dependent_init: bool = False
    """choose g, and the layer's bias, so that each unit of the output has mean 0 and variance 1
    over the batch that the model is initialized with (without a bias: variance 1). For a layer with
    a single selected parameter, linear in it."""

    @nn.compact
    def __call__(self, *args: Any, layer_method: str = "__call__", **kwargs: Any) -> Any:
        """Calls the layer, or one of its other methods, with normalized weights."""
        factor = None
        if self.is_initializing():
            y = self._call_layer(None, layer_method, args, kwargs)
            if self.data_dependent_init:
                factor = self._start_from(y)
        weights = {}
        for path, (stored, _) in self._chosen().items():
            g = self.param(own_name(path, "g"), self._draw_g, stored, factor)
            weights[path] = self._weight(unbox(stored), {"g": g})
        return self._call_layer(weights, layer_method, args, kwargs)

    @nn.nowrap
    def _draw_g(self, key, stored, factor):
        del key  # g is computed from the parameter, not drawn
        value = unbox(stored)
        return box_features(stored, self._init_g(value, factor), self._unit_axes(value))

    @nn.nowrap
    def _start_from(self, y: jax.Array) -> jax.Array | None:
        """Moves the layer's bias, and returns the factor of g, that standardize the output `y`."""
        values = {path: unbox(one.stored) for path, one in self._chosen().items()}
        path = self._check_output(values, y.shape)
        if self.has_variable("params", own_name(path, "g")):
            return None  # another call of the same wrapper came first
        stored = self.layer.variables["params"].get("bias")
        bias = None if stored is None else unbox(stored)
        factor, bias = self._standardize_output(y, bias)
        if bias is not None:
            self.layer.put_variable("params", "bias", rebox(stored, bias))
        return factor


class SpectralNorm(weight.SpectralNorm, WeightWrapper, kw_only=True):
    """Calls a layer with its weights divided by their largest singular value; see `spectral_norm`.

    In training (`update_stats=True`) a step of power iteration is taken, and u and sigma in the
    collection `batch_stats` (`kernel_u`, `kernel_sigma`) are replaced: apply with
    `mutable=["batch_stats"]`. In evaluation (`update_stats=False`) u is used as it is and nothing
    changes. At initialization u is iterated until sigma is within 1 % of the singular value.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.ones((1, 3))
      >>> layer = jnn.SpectralNorm(nn.Dense(2))
      >>> variables = layer.init(jax.random.key(0), x, update_stats=False)
      >>> largest = jnp.linalg.svd(variables["params"]["layer"]["kernel"])[1][0]
      >>> bool(abs(variables["batch_stats"]["kernel_sigma"] / largest - 1) < 0.01)
      True
      >>> y, updates = layer.apply(variables, x, update_stats=True, mutable=["batch_stats"])
    """

    @nn.compact
    def __call__(
        self,
        *args: Any,
        update_stats: bool | None = None,
        layer_method: str = "__call__",
        **kwargs: Any,
    ) -> Any:
        """Calls the layer, or one of its other methods, with normalized weights."""
        update = self._decide(update_stats, self._context())
        if self.is_initializing():
            self._call_layer(None, layer_method, args, kwargs)
        weights = {}
        for path, (stored, _) in self._chosen().items():
            value = unbox(stored)
            name = own_name(path, "u")
            u = self.variable("batch_stats", name, self._draw_u, value)
            name = own_name(path, "sigma")
            sigma = self.variable("batch_stats", name, self._init_sigma, value, u.value)
            params = {"u": u.value, "sigma": sigma.value}
            weights[path], new = self._step(value, params, update)
            if new is not None:
                u.value, sigma.value = new["u"], new["sigma"]
        return self._call_layer(weights, layer_method, args, kwargs)

    @nn.nowrap
    def _draw_u(self, value):
        return self._init_u(value, self.make_rng("params"))


class WeightStandardization(weight.WeightStandardization, WeightWrapper, kw_only=True):
    """Calls a layer with weights of mean 0 and variance 1; see `weight_standardize`.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.eye(3)
      >>> layer = jnn.WeightStandardization(nn.Dense(2))
      >>> kernel, variables = layer.init_with_output(jax.random.key(0), x)
      >>> [round(float(v), 3) + 0.0 for v in (*kernel.mean(0), *kernel.std(0))]
      [0.0, 0.0, 1.0, 1.0]
    """

    @nn.compact
    def __call__(self, *args: Any, layer_method: str = "__call__", **kwargs: Any) -> Any:
        """Calls the layer, or one of its other methods, with standardized weights."""
        if self.is_initializing():
            self._call_layer(None, layer_method, args, kwargs)
        weights = {}
        for path, (stored, _) in self._chosen().items():
            params = {}
            if self.use_gain:
                params["gain"] = self.param(own_name(path, "gain"), self._draw_gain, stored)
            weights[path] = self._weight(unbox(stored), params)
        return self._call_layer(weights, layer_method, args, kwargs)

    @nn.nowrap
    def _draw_gain(self, key, stored):
        value = unbox(stored)
        kept = self._unit_axes(value)
        gain = self.gain_init(key, tuple(value.shape[a] for a in kept), self.param_dtype)
        return box_features(stored, gain, kept)
