"""What the normalization modules share: gamma and beta, as parameters or from the call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._core import axes as _axes
from jaxnorm._core.axes import ArrayLike, Axes
from jaxnorm._core.collectives import AxisIndexGroups


class AffineModule(nn.Module, kw_only=True):
    """Base of the normalization modules: fields and parameters, no arithmetic.

    Attributes:
      epsilon: added to the variance.
      dtype: dtype of the result; default: that of the input.
      param_dtype: dtype of the parameters.
      use_gamma: whether to scale by a parameter gamma.
      use_beta: whether to add a parameter beta.
      gamma_init: initializer of gamma.
      beta_init: initializer of beta.
      param_names: the names of the two parameters; ("scale", "bias") are flax.linen's.
    """

    epsilon: float = 1e-6
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32
    use_gamma: bool = True
    use_beta: bool = True
    gamma_init: nn.initializers.Initializer = nn.initializers.ones
    beta_init: nn.initializers.Initializer = nn.initializers.zeros
    param_names: tuple[str, str] = ("gamma", "beta")

    def field_axes(self, field: str, x: ArrayLike) -> tuple[int, ...]:
        """Returns the axes in a field, checked under its own name."""
        shape = _axes.check_input(x).shape
        return _axes.canonical_axes(getattr(self, field), shape, field, allow_empty=True)

    def affine(
        self,
        x: ArrayLike,
        axes: Axes,
        gamma: ArrayLike | None,
        beta: ArrayLike | None,
        leading: tuple[int, ...] = (),
    ) -> tuple[ArrayLike | None, ArrayLike | None]:
        """Returns gamma and beta: those of the call, else the module's own parameters.

        The parameters have the sizes `leading`, and then those of `x` along `axes`.
        """
        sizes = np.shape(x)
        features = _axes.canonical_axes(axes, sizes, "feature_axes")
        shape = (*leading, *(sizes[a] for a in features))
        gamma_name, beta_name = self.param_names
        if gamma is None and self.use_gamma:
            gamma = self.param(gamma_name, self.gamma_init, shape, self.param_dtype)
        if beta is None and self.use_beta:
            beta = self.param(beta_name, self.beta_init, shape, self.param_dtype)
        return gamma, beta


class MappedModule(AffineModule, kw_only=True):
    """Base of the modules that can pool over mapped axes.

    Attributes:
      axis_name: mapped axes to pool over as well; not while initializing.
      axis_index_groups: groups of indices of `axis_name` that pool together.
    """

    axis_name: str | Sequence[str] | None = None
    axis_index_groups: AxisIndexGroups = None

    def mapped(self) -> dict[str, Any]:
        """Returns the options of a function that pools over mapped axes."""
        if self.is_initializing():
            return {}
        return {"axis_name": self.axis_name, "axis_index_groups": self.axis_index_groups}
