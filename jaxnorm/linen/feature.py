"""Layer norm and RMS norm as Flax linen modules."""

from __future__ import annotations

from jaxnorm._core.axes import Axes
from jaxnorm._layers.feature import LayerNormLayer, RMSNormLayer
from jaxnorm.linen._base import MappedNorm


class LayerNorm(MappedNorm, kw_only=True):
    """Layer normalization; see `jaxnorm.layer_norm`.

    The same in training and at test time: it keeps no statistics.

    Attributes:
      reduction_axes: the axes pooled.
      feature_axes: the axes that gamma and beta vary along.
      gamma_offset: added to gamma; give `gamma_init=nn.initializers.zeros` with 1.0.
      axis_name: mapped axes to pool over as well, for features divided over devices.
      axis_index_groups: groups of indices of `axis_name` that pool together.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[1., 3.], [2., 6.]])
      >>> norm = jnn.LayerNorm(epsilon=0.0)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> norm.apply(variables, x).tolist()
      [[-1.0, 1.0], [-1.0, 1.0]]

    Reference: Ba, Kiros & Hinton 2016, Layer Normalization, arXiv:1607.06450.
    """

    technique = LayerNormLayer

    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    gamma_offset: float = 0.0


class RMSNorm(MappedNorm, kw_only=True):
    """Root mean square normalization; see `jaxnorm.rms_norm`. Has no beta by default.

    Attributes:
      reduction_axes: the axes pooled.
      feature_axes: the axes that gamma and beta vary along.
      gamma_offset: added to gamma; 1.0 with `gamma_init=nn.initializers.zeros` is Gemma's rule.
      cast_before_gamma: round to the input's dtype before gamma is applied, Llama's rule.
      axis_name: mapped axes to pool over as well, for features divided over devices.
      axis_index_groups: groups of indices of `axis_name` that pool together.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> x = jnp.array([[2., 2.], [0., 0.]])
      >>> norm = jnn.RMSNorm(epsilon=0.0)
      >>> variables = norm.init(jax.random.key(0), x)
      >>> norm.apply(variables, x).tolist()
      [[1.0, 1.0], [0.0, 0.0]]

    Reference: Zhang & Sennrich 2019, Root Mean Square Layer Normalization, arXiv:1910.07467.
    """

    technique = RMSNormLayer

    use_beta: bool = False
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    gamma_offset: float = 0.0
    cast_before_gamma: bool = False
