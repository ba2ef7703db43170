"""Layer norm and RMS norm as Flax NNX modules."""

from __future__ import annotations

from jaxnorm._core.axes import Axes
from jaxnorm._layers.feature import LayerNormLayer, RMSNormLayer
from jaxnorm.nnx._base import MappedNorm, module


@module
class LayerNorm(MappedNorm):
    """Layer normalization; see `jaxnorm.layer_norm`.

    The same in training and at test time: it keeps no statistics.

    The options that are not listed are those of `jaxnorm.linen.LayerNorm`.

    Attributes:
      num_features: size of gamma and beta; sizes where they have several axes, ascending.
      gamma_offset: added to gamma; give `gamma_init=nnx.initializers.zeros` with 1.0.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x = jnp.array([[1., 3.], [2., 6.]])
      >>> norm = jnx.LayerNorm(2, epsilon=0.0)
      >>> norm(x).tolist()
      [[-1.0, 1.0], [-1.0, 1.0]]

    Reference: Ba, Kiros & Hinton 2016, Layer Normalization, arXiv:1607.06450.
    """

    technique = LayerNormLayer

    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    gamma_offset: float = 0.0


@module
class RMSNorm(MappedNorm):
    """Root mean square normalization; see `jaxnorm.rms_norm`. Has no beta by default.

    The options that are not listed are those of `jaxnorm.linen.RMSNorm`.

    Attributes:
      num_features: size of gamma; sizes where it has several axes, ascending.
      gamma_offset: added to gamma; 1.0 with `gamma_init=nnx.initializers.zeros` is Gemma's rule.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx as jnx
      >>> x = jnp.array([[2., 2.], [0., 0.]])
      >>> norm = jnx.RMSNorm(2, epsilon=0.0)
      >>> norm(x).tolist()
      [[1.0, 1.0], [0.0, 0.0]]

    Reference: Zhang & Sennrich 2019, Root Mean Square Layer Normalization, arXiv:1910.07467.
    """

    technique = RMSNormLayer

    use_beta: bool = False
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    gamma_offset: float = 0.0
    cast_before_gamma: bool = False
