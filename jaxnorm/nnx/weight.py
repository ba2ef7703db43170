"""Weight norm, spectral norm and weight standardization as wrappers of Flax NNX layers."""

from __future__ import annotations

import functools
from typing import Any

import jax
from flax import nnx

from jaxnorm._core.flags import check_flag
from jaxnorm._layers import weight
from jaxnorm._layers.weight import own_name
from jaxnorm.nnx._base import Mode, draw, module
from jaxnorm.nnx._wrapper import WeightWrapper


@module
class WeightNorm(weight.WeightNorm, WeightWrapper):
    """Calls a layer with weights g * v / |v|, v being its own parameters; see `weight_norm`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> from flax import nnx
      >>> x, linear = jnp.ones((1, 3)), nnx.Linear(3, 2, rngs=nnx.Rngs(0))
      >>> layer = jnx.WeightNorm(linear)
      >>> layer.kernel_g.shape, bool(jnp.allclose(layer(x), linear(x)))
      ((2,), True)
    """

    def _make(self, *, rngs: nnx.Rngs | None, **given: Any) -> None:
        super()._make(rngs=rngs, **given)
        for path, parameter in self._chosen().items():
            self._add_parameter(path, "g", parameter, self._init_g(parameter[...], None))

    def __call__(self, *args: Any, layer_method: str = "__call__", **kwargs: Any) -> Any:
        """Calls the layer, or one of its other methods, with normalized weights."""
        return self._call_layer(self._weights(), layer_method, args, kwargs)

    def data_dependent_init(self, *args: Any, **kwargs: Any) -> Any:
        """Starts from a batch, and returns what the layer makes of it then.

        g, and the layer's bias, become what gives each unit of the output mean 0 and variance 1
        over the batch (without a bias: variance 1). For a layer with a single selected parameter,
        linear in it.
        """
        y = self._call_layer({}, "__call__", args, kwargs)
        values = {path: one[...] for path, one in self._chosen().items()}
        path = self._check_output(values, y.shape)
        variable = getattr(self.layer, "bias", None)
        bias = None if variable is None else variable[...]
        factor, bias = self._standardize_output(y, bias)
        getattr(self, own_name(path, "g")).set_value(self._init_g(values[path], factor))
        if variable is not None:
            variable.set_value(bias)
        return self(*args, **kwargs)


@module
class SpectralNorm(Mode, weight.SpectralNorm, WeightWrapper):
    """Calls a layer with its weights divided by their largest singular value; see `spectral_norm`.

    In training (`model.train()`, as models are made) a step of power iteration is taken, and u and
    sigma (`kernel_u`, `kernel_sigma`), of the kind `nnx.BatchStat`, are replaced. In evaluation
    (`model.eval()`) u is used as it is and nothing changes. At first u is iterated until sigma is
    within 1 % of the singular value.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> layer = jnx.SpectralNorm(nnx.Linear(3, 2, rngs=rngs), rngs=rngs)
      >>> largest = jnp.linalg.svd(layer.layer.kernel[...])[1][0]
      >>> bool(abs(layer.kernel_sigma[...] / largest - 1) < 0.01)
      True
      >>> layer(jnp.ones((1, 3))).shape
      (1, 2)
    """

    use_running_average: bool | None = False
    """evaluation or training, as `model.eval()` and `model.train()` set it."""
    update_stats: bool | None = None
    """training or evaluation, whatever the mode of the model is; here or in the call, which
    wins."""

    def _make(self, *, rngs: nnx.Rngs | None, **given: Any) -> None:
        super()._make(rngs=rngs, **given)
        for path, parameter in self._chosen().items():
            make = functools.partial(self._init_u, parameter[...])
            u = draw(own_name(path, "u"), make, rngs, self._label)
            setattr(self, own_name(path, "u"), nnx.BatchStat(u))
            sigma = self._init_sigma(parameter[...], u)
            setattr(self, own_name(path, "sigma"), nnx.BatchStat(sigma))

    def __call__(
        self,
        *args: Any,
        update_stats: bool | None = None,
        layer_method: str = "__call__",
        **kwargs: Any,
    ) -> Any:
        """Calls the layer, or one of its other methods, with normalized weights."""
        weights: dict[weight.Path, jax.Array] = {}
        evaluate = check_flag(self.use_running_average, "use_running_average")
        update = self._decide(update_stats, self._context(), not evaluate)
        for path, parameter in self._chosen().items():
            weights[path], new = self._step(parameter[...], self._kept(path), update)
            self._write_state({own_name(path, k): value for k, value in (new or {}).items()})
        return self._call_layer(weights, layer_method, args, kwargs)


@module
class WeightStandardization(weight.WeightStandardization, WeightWrapper):
    """Calls a layer with weights of mean 0 and variance 1; see `weight_standardize`.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> from flax import nnx
      >>> x, rngs = jnp.eye(3), nnx.Rngs(0)
      >>> layer = jnx.WeightStandardization(nnx.Linear(3, 2, rngs=rngs))
      >>> kernel = layer(x)
      >>> [round(float(v), 3) + 0.0 for v in (*kernel.mean(0), *kernel.std(0))]
      [0.0, 0.0, 1.0, 1.0]
    """

    def _make(self, *, rngs: nnx.Rngs | None, **given: Any) -> None:
        super()._make(rngs=rngs, **given)
        chosen = self._chosen()  # checks the options, without a gain too
        for path, parameter in chosen.items() if self.use_gain else ():
            shape = self._unit_shape(parameter)
            make = functools.partial(self.gain_init, shape=shape, dtype=self.param_dtype)
            gain = draw(own_name(path, "gain"), make, rngs, self._label)
            self._add_parameter(path, "gain", parameter, gain)

    def __call__(self, *args: Any, layer_method: str = "__call__", **kwargs: Any) -> Any:
        """Calls the layer, or one of its other methods, with standardized weights."""
        return self._call_layer(self._weights(), layer_method, args, kwargs)
