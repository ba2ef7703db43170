"""The thin modules of the catalogue: each is its function, its parameters start as it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
import jaxnorm.linen as jnn

SHAPE = (2, 5, 3, 8)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Thin:
    """A module, the function of the same name, and what the parameters start at.

    Attributes:
      name: shown in test ids.
      module: without variables.
      function: (x, parameters, mask) -> what the module returns.
      starts: the shape and the first value of each parameter.
      masked: whether the call takes a mask.
    """

    name: str
    module: object
    function: object
    starts: dict
    masked: bool = True


CHANNELS = {"gamma": ((8,), 1.0), "beta": ((8,), 0.0)}

THIN = [
    Thin(
        name="scale_norm",
        module=jnn.ScaleNorm(reduction_axes=(1, -1)),
        function=lambda x, p, **o: jaxnorm.lp_norm(x, p["gamma"], axis=(1, 3), epsilon=1e-5, **o),
        starts={"gamma": ((), 40**0.5)},
    ),
    Thin(
        name="local_response_norm",
        module=jnn.LocalResponseNorm(size=5, alpha=1.0, average=False),
        function=lambda x, p: jaxnorm.local_response_norm(x, size=5, alpha=1.0, average=False),
        starts={},
        masked=False,
    ),
    Thin(
        name="divisive_norm",
        module=jnn.DivisiveNorm(window=(3, 5)),
        function=lambda x, p, **o: jaxnorm.divisive_norm(x, **p, axis=(1, 2), window=(3, 5), **o),
        starts={**CHANNELS, "sigma": ((8,), 1.0)},
    ),
    Thin(
        name="filter_response_norm",
        module=jnn.FilterResponseNorm(use_learned_epsilon=True),
        function=lambda x, p, **o: jaxnorm.filter_response_norm(x, **p, **o),
        starts={**CHANNELS, "tau": ((8,), 0.0), "learned_epsilon": ((8,), 1e-4)},
    ),
    Thin(
        name="global_response_norm",
        module=jnn.GlobalResponseNorm(channel_axis=1),
        function=lambda x, p, **o: jaxnorm.global_response_norm(x, **p, channel_axis=1, **o),
        starts={"gamma": ((5,), 0.0), "beta": ((5,), 0.0)},
    ),
]


@pytest.mark.parametrize("thin", THIN, ids=[t.name for t in THIN])
def test_is_its_function(thin, rng):
    x = jnp.asarray(rng.normal(0.5, 2, SHAPE), jnp.float32)
    params = jax.eval_shape(thin.module.init, jax.random.key(0), x).get("params", {})
    first = thin.module.init(jax.random.key(0), x).get("params", {})
    assert set(params) == set(thin.starts)
    for name, (shape, value) in thin.starts.items():
        assert first[name].shape == shape and first[name].dtype == jnp.float32
        np.testing.assert_array_equal(first[name], np.full(shape, value, np.float32))
    drawn = {
        n: jnp.asarray(rng.normal(1, 0.3, s), jnp.float32) for n, (s, _) in thin.starts.items()
    }
    masks = [{}]
    if thin.masked:
        masks.append({"mask": jnp.asarray(rng.random(SHAPE) < 0.8)})
    for mask in masks:
        y = thin.module.apply({"params": drawn}, x, **mask)
        np.testing.assert_allclose(y, thin.function(x, drawn, **mask), atol=2e-6)
    half = thin.module.clone(dtype=jnp.bfloat16)
    assert half.apply({"params": drawn}, x).dtype == jnp.bfloat16


@pytest.mark.parametrize("thin", THIN, ids=[t.name for t in THIN])
def test_parameters_can_be_left_out_or_given(thin, rng):
    x = jnp.asarray(rng.normal(0.5, 2, SHAPE), jnp.float32)
    for name in ("gamma", "beta"):
        if name not in thin.starts:
            continue
        without = thin.module.clone(**{f"use_{name}": False})
        assert name not in without.init(jax.random.key(0), x).get("params", {})
        variables = thin.module.init(jax.random.key(0), x)
        value = jnp.asarray(rng.normal(size=thin.starts[name][0]), jnp.float32)
        given = thin.module.apply(variables, x, **{name: value})
        changed = {"params": {**variables["params"], name: value}}
        np.testing.assert_array_equal(given, thin.module.apply(changed, x))
